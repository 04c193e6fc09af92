"""From a study to its cells, and to what each place of each table is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from liverseg.errors import InputError
from liverseg.files import atomic_write
from liverseg.workbench.study.cells import Cell, make_cell
from liverseg.workbench.study.metrics import check_metric
from liverseg.workbench.study.read import Study

CHOICES = ("data", "network", "task", "loss", "postprocessing", "metric")
DEFAULTS = {"postprocessing": "none", "task": "all", "evaluation": None}
CELL_KEYS = ("data", "network", "loss", "task", "fold", "seed", "settings", "dataset")
PLACE_KEYS = {*CHOICES, "evaluation", "column", "reference", "average", "rank", "difference"}


@dataclass
class Plan:
    """All cells of a study by name, and its tables, resolved: JSON that needs neither the study nor the bundles.

    A table has `title`, `rows` and `columns` (labels), `paper`, `derived` (row → how it is made of others), and
    `places`: row → column → `metric`, `evaluations` (names), `reference` ([row, column] or null) and `parts`: lists of
    the names of cells, one for each fold and seed; the place's value is the mean over the parts.
    """

    cells: dict[str, Cell] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)


def make_plan(study: Study, out: Path) -> Plan:
    """Expand the study's tables; a training that several of them need is one cell.

    Args:
        study: what `read_study` returns.
        out: the study's output folder, where phantoms are written.

    Raises:
        InputError: for a table that names what the study or its bundles do not have, or data that is not there.
    """
    plan = Plan()
    for name, table in study.tables.items():
        plan.tables[name] = _Table(study, out, plan, name, table).resolve()
    return plan


def save_plan(study: Study, plan: Plan, out: Path) -> None:
    """Write the tables of the plan as `plan.json`, and what each cell is."""
    cells = {
        name: {key: getattr(cell, key) for key in CELL_KEYS} for name, cell in plan.cells.items()
    }
    phantoms = any("phantoms" in entry for entry in study.data.values())
    content = {"phantoms": phantoms, "tables": plan.tables, "cells": cells}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with atomic_write(out / "plan.json") as file:
        file.write(f"{text}\n".encode())


@dataclass
class _Table:
    study: Study
    out: Path
    plan: Plan
    name: str
    table: dict[str, Any]

    def resolve(self) -> dict[str, Any]:
        rows, columns = self.table["rows"], self.table["columns"]
        resolved: dict[str, Any] = {
            "title": self.table.get("title", self.name),
            "rows": list(rows),
            "columns": list(columns),
            "paper": self.table.get("paper", {}),
            "derived": {},
            "places": {},
        }
        self._check_labels(rows, columns)
        for row, row_keys in rows.items():
            kind = {
                key: row_keys[key] for key in ("average", "rank", "difference") if key in row_keys
            }
            if kind:
                resolved["derived"][row] = kind
                continue
            where = self.table["where"]
            if "column" in row_keys:
                # The row borrows the column's place for a number of its own.
                column = row_keys["column"]
                resolved["places"][row] = {
                    column: self._place(row, column, where | columns[column] | row_keys)
                }
            else:
                resolved["places"][row] = {
                    column: self._place(row, column, where | row_keys | column_keys)
                    for column, column_keys in columns.items()
                }
        return resolved

    def _check_labels(self, rows: Any, columns: Any) -> None:
        for kind, entries in (
            ("where", {"": self.table["where"]}),
            ("rows", rows),
            ("columns", columns),
        ):
            if not isinstance(entries, dict) or not all(
                isinstance(entry, dict) for entry in entries.values()
            ):
                raise self._wrong(
                    kind,
                    repr(entries),
                    "labels with what each stands for, as in {FCN: {network: FCN}}",
                )
            for label, entry in entries.items():
                for key in entry:
                    if key not in PLACE_KEYS:
                        raise self._wrong(
                            f"{kind}: {label}".rstrip(": "), key, "one of " + ", ".join(PLACE_KEYS)
                        )
        for label in [
            self.table.get("reference"),
            *(entry.get("reference") for entry in columns.values()),
        ]:
            if label is not None and label not in {**rows, **columns}:
                raise self._wrong("reference", label, "the label of a row or column")
        for row, entry in rows.items():
            if entry.get("column", next(iter(columns))) not in columns:
                raise self._wrong(f"rows: {row}: column", entry["column"], "the label of a column")
            for label in entry.get("difference", []):
                if label not in rows:
                    raise self._wrong(f"rows: {row}: difference", label, "the label of a row")

    def _wrong(self, place: str, found: str, expected: str) -> InputError:
        return InputError(
            f"{self.study.path}: tables: {self.name}: {place}: found {found}, expected {expected}: correct it."
        )

    def _place(self, row: str, column: str, keys: dict[str, Any]) -> dict[str, Any]:
        keys = DEFAULTS | keys
        place = f"{row} / {column}"
        for key in CHOICES:
            if key not in keys:
                raise self._wrong(place, f"no {key}", "one from where, the row or the column")
        for key, known in (("data", self.study.data), ("network", self.study.networks)):
            if keys[key] not in known:
                raise self._wrong(f"{place}: {key}", keys[key], f"one of {', '.join(known)}")
        classes = list(self.study.data[keys["data"]]["labels"])
        if keys["task"] not in ("all", "each", *classes):
            raise self._wrong(
                f"{place}: task", keys["task"], f"all, each or one of {', '.join(classes)}"
            )
        known_postprocessings = self.study.bundles[
            self.study.networks[keys["network"]]["bundle"]
        ].train["postprocessings"]
        wanted = keys["postprocessing"]
        postprocessings = wanted if isinstance(wanted, list) else [wanted]
        for name in postprocessings:
            if name not in known_postprocessings:
                raise self._wrong(
                    f"{place}: postprocessing", name, f"one of {', '.join(known_postprocessings)}"
                )
        evaluations: dict[str, dict[str, Any]] = {
            name: {"postprocessing": f"@postprocessings#{name}"} for name in postprocessings
        }
        own = keys["evaluation"]
        if own is not None:
            if own not in self.study.evaluations:
                names = (
                    ", ".join(self.study.evaluations) or "the study's evaluations, which has none"
                )
                raise self._wrong(f"{place}: evaluation", own, f"one of {names}")
            settings = self.study.evaluations[own]
            evaluations = {
                _word(f"{key}_{own}"): value | settings for key, value in evaluations.items()
            }
        tasks = [keys["task"]]
        if keys["task"] == "each":
            of_class = keys["metric"].partition(":")[2]
            # What each network calls background is all but its own class: for it the mean of them all.
            tasks = classes if of_class == "background" else [of_class]
        in_network = classes if tasks == ["all"] else tasks
        if not check_metric(keys["metric"], in_network) or not set(tasks) <= {"all", *classes}:
            raise self._wrong(
                f"{place}: metric",
                keys["metric"],
                f"a metric of liverseg, of {', '.join(in_network)}",
            )
        parts = [[cell.name for cell in self._cells(keys, task, evaluations)] for task in tasks]
        reference = keys.get("reference") or self.table.get("reference")
        by_row = reference in self.table["rows"]
        compared = reference is not None and reference not in (row, column)
        return {
            "metric": keys["metric"],
            "evaluations": list(evaluations),
            "parts": parts,
            "reference": ([reference, column] if by_row else [row, reference])
            if compared
            else None,
        }

    def _cells(
        self, keys: dict[str, Any], task: str, evaluations: dict[str, dict[str, Any]]
    ) -> Iterator[Cell]:
        choice = {**{key: keys[key] for key in ("data", "network", "loss")}, "task": task}
        for fold, seed in product(self.table.get("folds", self.study.folds), self.study.seeds):
            cell = make_cell(self.study, self.out, fold=fold, seed=seed, **choice)
            # Two names may stand for the same training, as a loss of the study's own for one of the bundle's.
            same = (known for known in self.plan.cells.values() if known.digest == cell.digest)
            cell = self.plan.cells.setdefault(next(same, cell).name, cell)
            cell.evaluations |= evaluations
            yield cell


def _word(text: str) -> str:
    """For a file's name."""
    return re.sub(r"[^\w.-]+", "-", text)
