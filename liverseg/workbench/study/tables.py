"""Compute the tables of a study: our numbers, the paper's beside them, and a paired test."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from liverseg.workbench.study.results import (
    OF_CONVERGENCE,
    OF_TRAINING,
    PAIRED,
    files_of,
    is_share,
)

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
    cases: pd.Series | None = None
    paper: float | None = None
    difference_pp: float | None = None
    p_value: float | None = None
    pairs: int | None = None

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
        if self.paper is None or not is_share(self.metric):
            return None
        return 100 * (self.mean - self.paper)


@dataclass
class StudyTable:
    """A table with its values.

    `derived` rows are made of others, `missing` names what an empty place waits for, `choices` what
    a column of the best has taken.
    """

    name: str
    title: str
    rows: list[str]
    columns: list[str]
    derived: list[str] = field(default_factory=list)
    values: dict[Labels, Value] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)


def compute_table(results: pd.DataFrame, name: str, plan: Mapping[str, Any]) -> StudyTable:
    """Compute a table of the plan.

    A place is the mean and sd over folds and seeds; it stays empty as long as one of its runs is
    missing. Where a metric has a counterpart for each case, the place is compared with its
    reference by Wilcoxon's signed-rank test over the cases of all folds, each case's mean over
    seeds; pairs without a difference are left out, as Wilcoxon did.

    Args:
        results: what `read_results` returns.
        name: the table's.
        plan: an entry of the plan's `tables`.
    """
    table = StudyTable(name, plan["title"], plan["rows"], plan["columns"], list(plan["derived"]))
    reader = _Reader(results, table)
    places = {
        (row, column): place
        for row, of_row in plan["places"].items()
        for column, place in of_row.items()
    }
    found = {labels: reader.read(place) for labels, place in places.items()}
    table.values = {labels: value for labels, value in found.items() if value is not None}
    references = {labels: place["reference"] for labels, place in places.items()}
    for column, row in product(plan.get("chosen", []), plan["places"]):
        of_row = plan["places"][row]
        folds = [reader.folds.get(run) for run in next(iter(of_row.values()))["parts"][0]]
        best = _best(table, row, column, list(of_row), np.array(folds))
        if best is not None:
            table.values[row, column] = best
            compared = [place["reference"] for place in of_row.values() if place["reference"]]
            references[row, column] = compared[0] if compared else None
    for row, kind in plan["derived"].items():
        for column in table.columns:
            derived = _derive(table, row, column, kind)
            if derived is not None:
                table.values[row, column] = derived
    for (row, column), value in table.values.items():
        if row in plan["paper"]:
            value.paper = plan["paper"][row][table.columns.index(column)]
    first: dict[str, Any] = next(iter(plan["places"].values()), {})
    for row, kind in plan["derived"].items():
        # An average is compared with the average of the column that its classes are compared with.
        for column, place in first.items() if kind.get("average") else ():
            references[row, column] = place["reference"] and [row, place["reference"][1]]
    for labels, reference in references.items():
        if reference is not None and {labels, tuple(reference)} <= table.values.keys():
            _compare(table.values[labels], table.values[tuple(reference)])
    return table


class _Reader:
    """Read the places of a table out of the results."""

    def __init__(self, results: pd.DataFrame, table: StudyTable) -> None:
        self.table = table
        self.files = set(zip(results["run"], results["file"], strict=True))
        self.folds = dict(zip(results["run"], results["fold"], strict=True))
        whole = results[results["case"] == ""]
        key = ["run", "evaluation", "metric", "class"]
        self.numbers = whole.set_index(key)["value"].to_dict()
        self.cases = results[(results["case"] != "") & results["metric"].isin(["iou", "dice"])]

    def read(self, place: Mapping[str, Any]) -> Value | None:
        metric, evaluation = place["metric"], place["evaluation"]
        runs = [run for part in place["parts"] for run in part]
        missing = []
        for run in runs:
            files = files_of(metric, evaluation)
            missing += [
                f"{run}: {file} is not there" for file in files if (run, file) not in self.files
            ][:1]
        self.table.missing += [line for line in missing if line not in self.table.missing]
        if missing:
            return None
        cases = self._cases(runs, metric, evaluation)
        if metric.startswith("case_iou"):
            return self._one_case(cases, metric)
        values = [
            [self._number(run, metric, evaluation) for run in part] for part in place["parts"]
        ]
        with warnings.catch_warnings():
            # Of a class that is in no mask of any part.
            warnings.simplefilter("ignore", RuntimeWarning)
            return Value(metric, np.nanmean(np.array(values), axis=0), cases)

    def _number(self, run: str, metric: str, evaluation: str) -> float:
        kind, _, of = metric.partition(":")
        of_training = kind in (*OF_TRAINING, *OF_CONVERGENCE)
        return float(self.numbers[run, "" if of_training else evaluation, kind, of])

    def _cases(self, runs: Sequence[str], metric: str, evaluation: str) -> pd.Series | None:
        """Return the counterpart of a metric for each case, by image: what a paired test compares.

        `iou:CLASS` and `dice:CLASS` are that class's, `mean_iou` is the mean IoU of the foreground
        classes, `case_iou:N` the first class's IoU. Other metrics have none, and give None.
        """
        kind, _, of = metric.partition(":")
        if kind not in PAIRED or of == "background":
            return None
        cases = self.cases[
            self.cases["run"].isin(runs)
            & (self.cases["evaluation"] == evaluation)
            & (self.cases["metric"] == ("dice" if kind == "dice" else "iou"))
        ].sort_values("run", key=lambda run: run.map(runs.index), kind="stable")
        if kind == "mean_iou":
            cases = cases.groupby(["run", "case"], sort=False, as_index=False)["value"].mean()
        else:
            cases = cases[cases["class"] == (cases["class"].iloc[0] if kind == "case_iou" else of)]
        # A case without a value in one seed has none.
        return cases.groupby("case", sort=False)["value"].agg(
            lambda of_case: np.mean(of_case.to_numpy())
        )

    def _one_case(self, cases: pd.Series, metric: str) -> Value | None:
        number = int(metric.partition(":")[2])
        if number > len(cases):
            line = f"case {number}: the folds hold only {len(cases)} cases"
            self.table.missing.append(line)
            return None
        # In order of fold, then of name, as they were read.
        note = f"{number} is {Path(cases.index[number - 1]).name}"
        if note not in self.table.notes:
            self.table.notes.append(note)
        return Value(metric, np.array([cases.iloc[number - 1]]))


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
    if "max" in kind or "min" in kind:
        known = [value for value in _above(table, row, column) if np.isfinite(value.mean)]
        choose = max if "max" in kind else min
        # The row's own numbers, so that it is one of the column.
        chosen = choose(known, key=lambda value: value.mean, default=None)
        return chosen and Value(chosen.metric, chosen.runs)
    return _average(table, row, column)


def _best(
    table: StudyTable, row: str, column: str, others: Sequence[str], folds: np.ndarray
) -> Value | None:
    """Return the best of the row's `others`, chosen for each fold on all other folds.

    So no fold chooses what it is evaluated with.

    Args:
        table: gets a line in `choices`.
        row: its label.
        column: that of the best.
        others: the columns to choose from.
        folds: of each run.
    """
    values = [table.values[row, other] for other in others if (row, other) in table.values]
    if len(values) < len(others):
        return None
    if len(set(folds)) < 2:
        line = f"{column}: needs two folds, to choose on other ones than it is evaluated on."
        table.choices += [line] * (line not in table.choices)
        return None
    runs = np.array([value.runs for value in values])
    found, taken = np.empty(len(folds)), []
    for fold in sorted(set(folds)):
        with warnings.catch_warnings():
            # Of a class that is in no mask of the other folds.
            warnings.simplefilter("ignore", RuntimeWarning)
            scores = np.nan_to_num(np.nanmean(runs[:, folds != fold], axis=1), nan=-1)
        found[folds == fold] = runs[scores.argmax(), folds == fold]
        taken.append(f"{others[scores.argmax()]} in fold {fold}")
    table.choices.append(f"{column}: {row}: {'; '.join(taken)}.")
    return Value(values[0].metric, found)


def _above(table: StudyTable, row: str, column: str) -> list[Value]:
    """Return the values above a derived row; none as long as one is missing."""
    above = [label for label in table.rows[: table.rows.index(row)] if label not in table.derived]
    values = [table.values[label, column] for label in above if (label, column) in table.values]
    return values if len(values) == len(above) else []


def _average(table: StudyTable, row: str, column: str) -> Value | None:
    values = _above(table, row, column)
    if not values:
        return None
    by_case = [value.cases for value in values if value.cases is not None]
    cases = pd.concat(by_case, axis=1).mean(axis=1) if by_case else None
    return Value(values[0].metric, np.nanmean([value.runs for value in values], axis=0), cases)


def _compare(value: Value, other: Value) -> None:
    if is_share(value.metric):
        value.difference_pp = 100 * (value.mean - other.mean)
    if value.cases is not None and other.cases is not None:
        value.p_value, pairs = wilcoxon_p(value.cases, other.cases)
        value.pairs = None if value.p_value is None else pairs


def wilcoxon_p(ours: pd.Series, others: pd.Series) -> tuple[float | None, int]:
    """Return the two-sided p of Wilcoxon's signed-rank test, and the number of cases.

    Of the cases that both have. None with less than two; 1 where no case differs.
    """
    from scipy.stats import wilcoxon

    differences = (ours - others).to_numpy()
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return None, len(differences)
    return (float(wilcoxon(differences).pvalue) if differences.any() else 1.0), len(differences)
