"""The tables of a study: our numbers, the paper's beside them, and a paired test."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from liverseg.errors import InputError
from liverseg.workbench.study.metrics import is_share, read_cases, read_metric

Labels = tuple[str, str]


@dataclass
class Value:
    """One place of a table.

    Attributes:
        runs: the value of each fold and seed, NaN where it does not exist.
        cases: its counterpart for each case, by image; None for a metric without one.
        metric: its name; "pp" for a difference in percentage points, "rank" for a rank.
        difference_pp: to the reference, in percentage points.
        p_value: of the Wilcoxon signed-rank test against the reference, over `pairs` cases.
    """

    metric: str
    runs: np.ndarray
    cases: dict[str, float] | None = None
    paper: float | None = None
    difference_pp: float | None = None
    p_value: float | None = None
    pairs: int = 0

    @property
    def mean(self) -> float:
        """Mean over folds and seeds."""
        return float(np.nanmean(self.runs)) if np.isfinite(self.runs).any() else float("nan")

    @property
    def sd(self) -> float | None:
        """Standard deviation of a sample (n − 1) over folds and seeds; None for a single one."""
        values = self.runs[np.isfinite(self.runs)]
        return float(values.std(ddof=1)) if len(values) > 1 else None

    @property
    def difference_to_paper_pp(self) -> float | None:
        """Our mean less the paper's number, in percentage points, for shares."""
        return (
            100 * (self.mean - self.paper)
            if self.paper is not None and is_share(self.metric)
            else None
        )


@dataclass
class StudyTable:
    """A table with its values; `derived` rows are made of others, `missing` names what an empty place waits for."""

    name: str
    title: str
    rows: list[str]
    columns: list[str]
    derived: list[str] = field(default_factory=list)
    values: dict[Labels, Value] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_plan(out: Path) -> dict[str, Any]:
    """The resolved plan that the study left in its folder.

    Raises:
        InputError: when it is not there.
    """
    path = out / "plan.json"
    if not path.is_file():
        raise InputError(
            f"{out}: found no plan.json, expected the folder of a study: run it first, or name its --out."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def compute_table(out: Path, name: str, plan: Mapping[str, Any]) -> StudyTable:
    """Compute a table of the plan from the cells' folders.

    A place is the mean and sd over folds and seeds; it stays empty as long as one of its cells is missing. Where a
    metric has a counterpart for each case, the place is compared with its reference by Wilcoxon's signed-rank test
    over the cases of all folds, each case's mean over seeds; pairs without a difference are left out, as Wilcoxon did.

    Args:
        out: the study's folder.
        name: the table's.
        plan: an entry of the plan's `tables`.
    """
    table = StudyTable(name, plan["title"], plan["rows"], plan["columns"], list(plan["derived"]))
    for row, places in plan["places"].items():
        for column, place in places.items():
            value = _read_place(out, place, table)
            if value is not None:
                table.values[row, column] = value
    for row, kind in plan["derived"].items():
        for column in table.columns:
            derived = _derive(table, row, column, kind)
            if derived is not None:
                table.values[row, column] = derived
    for row, numbers in plan["paper"].items():
        for column, number in zip(table.columns, numbers, strict=True):
            if (row, column) in table.values:
                table.values[row, column].paper = number
    for row, places in plan["places"].items():
        for column, place in places.items():
            _compare(table, (row, column), place["reference"])
    for row, kind in plan["derived"].items():
        if kind.get("average"):
            _compare_average(table, row, plan["places"])
    return table


def _read_place(out: Path, place: Mapping[str, Any], table: StudyTable) -> Value | None:
    metric, evaluations = place["metric"], place["evaluations"]
    runs: list[list[float]] = []
    cases: dict[str, list[float]] = {}
    missing = []
    for part in place["parts"]:
        runs.append([])
        for cell in part:
            folder = out / "cells" / cell
            try:
                for case, share in (read_cases(folder, metric, evaluations[0]) or {}).items():
                    cases.setdefault(case, []).append(share)
                if not metric.startswith("case_iou"):
                    number = read_metric(folder, metric, evaluations)
                    runs[-1].append(float("nan") if number is None else number)
            except FileNotFoundError as error:
                missing.append(
                    f"{cell}: {Path(str(error.filename)).relative_to(folder)} is not there"
                )
    table.missing += [line for line in missing if line not in table.missing]
    if missing:
        return None
    by_case = {case: float(np.mean(shares)) for case, shares in cases.items()}
    if metric.startswith("case_iou"):
        return _one_case(by_case, metric, table)
    with warnings.catch_warnings():
        # Of a class that is in no mask of any part.
        warnings.simplefilter("ignore", RuntimeWarning)
        return Value(metric, np.nanmean(np.array(runs), axis=0), by_case or None)


def _one_case(by_case: dict[str, float], metric: str, table: StudyTable) -> Value | None:
    number = int(metric.partition(":")[2])
    if number > len(by_case):
        table.missing.append(f"case {number}: the folds hold only {len(by_case)} cases")
        return None
    # In order of fold, then of name, as they were read.
    case = list(by_case)[number - 1]
    note = f"{number} is {Path(case).name}"
    if note not in table.notes:
        table.notes.append(note)
    return Value(metric, np.array([by_case[case]]))


def _derive(table: StudyTable, row: str, column: str, kind: Mapping[str, Any]) -> Value | None:
    if "difference" in kind:
        start, end = (table.values.get((label, column)) for label in kind["difference"])
        return None if start is None or end is None else Value("pp", 100 * (end.runs - start.runs))
    if "rank" in kind:
        means = {other: _average(table, row, other) for other in table.columns}
        own = means[column]
        if own is None or any(value is None for value in means.values()):
            return None
        better = sum(value.mean > own.mean for value in means.values() if value is not None)
        return Value("rank", np.array([1.0 + better]))
    return _average(table, row, column)


def _average(table: StudyTable, row: str, column: str) -> Value | None:
    above = [label for label in table.rows[: table.rows.index(row)] if label not in table.derived]
    values = [table.values.get((label, column)) for label in above]
    if not values or any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    by_case = [pd.Series(value.cases) for value in known if value.cases]
    cases = pd.concat(by_case, axis=1).mean(axis=1).to_dict() if by_case else None
    return Value("iou", np.nanmean([value.runs for value in known], axis=0), cases)


def _compare(table: StudyTable, labels: Labels, reference: Sequence[str] | None) -> None:
    if reference is None or labels not in table.values or tuple(reference) not in table.values:
        return
    value, other = table.values[labels], table.values[reference[0], reference[1]]
    if is_share(value.metric):
        value.difference_pp = 100 * (value.mean - other.mean)
    if value.cases and other.cases:
        value.p_value, value.pairs = wilcoxon_p(value.cases, other.cases)


def _compare_average(table: StudyTable, row: str, places: Mapping[str, Any]) -> None:
    """An average is compared with the average of the column that its classes are compared with."""
    first = next(iter(places.values()))
    for column, place in first.items():
        if place["reference"] is not None:
            _compare(table, (row, column), (row, place["reference"][1]))


def wilcoxon_p(ours: Mapping[str, float], others: Mapping[str, float]) -> tuple[float | None, int]:
    """Two-sided p-value of Wilcoxon's signed-rank test over the cases that both have, and how many those are.

    None with less than two cases; 1 where no case differs.
    """
    from scipy.stats import wilcoxon

    both = [(ours[case], others[case]) for case in ours if case in others]
    pairs = np.array([pair for pair in both if np.isfinite(pair).all()])
    if len(pairs) < 2:
        return None, len(pairs)
    differences = pairs[:, 0] - pairs[:, 1]
    return (float(wilcoxon(differences).pvalue) if differences.any() else 1.0), len(pairs)
