"""From a study to its cells, one for each training, and to what each place of each table is made of."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import liverseg
from liverseg.data import load_datalist
from liverseg.errors import InputError
from liverseg.files import write_atomically
from liverseg.workbench.study.metrics import check_metric
from liverseg.workbench.study.read import Bundle, Study

CHOICES = ("data", "network", "task", "loss", "postprocessing", "metric")
CELL_KEYS = ("data", "network", "loss", "task", "fold", "seed", "settings", "dataset")
PLACE_KEYS = {*CHOICES, "column", "reference", "average", "rank", "difference"}


@dataclass
class Cell:
    """One training, and the evaluations of its model.

    Attributes:
        data, network, loss, task: names in the study; `fold` and `seed` with them.
        bundle: the bundle that it runs.
        settings: the overrides that both commands take.
        dataset: the options that name the data set.
        digest: SHA-256 of all that decides the result.
        postprocessings: the model is evaluated once with each.
    """

    data: str
    network: str
    loss: str
    task: str
    fold: int
    seed: int
    bundle: Bundle
    settings: dict[str, Any]
    dataset: dict[str, str]
    digest: str
    postprocessings: list[str] = field(default_factory=list)

    @cached_property
    def name(self) -> str:
        """Of the cell's folder: readable, and another one for other settings."""
        words = (self.data, self.network, self.loss, self.task, f"fold{self.fold}", f"seed{self.seed}", self.digest[:8])
        return "_".join(re.sub(r"[^\w.-]+", "-", word) for word in words)


@dataclass(frozen=True)
class Step:
    """A command of a cell: its name, the arguments after `python`, and the file that is there once it is done."""

    name: str
    arguments: list[str]
    result: Path


@dataclass
class Plan:
    """All cells of a study by name, and its tables, resolved: JSON that needs neither the study nor the bundles.

    A table has `title`, `rows` and `columns` (labels), `paper`, `derived` (row → how it is made of others), and
    `places`: row → column → `metric`, `postprocessings`, `reference` ([row, column] or null) and `parts`: lists of the
    names of cells, one for each fold and seed; the place's value is the mean over the parts.
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
    cells = {name: {key: getattr(cell, key) for key in CELL_KEYS} for name, cell in plan.cells.items()}
    phantoms = any("phantoms" in entry for entry in study.data.values())
    content = {"phantoms": phantoms, "tables": plan.tables, "cells": cells}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(out / "plan.json", lambda file: file.write(f"{text}\n".encode()))


def make_cell(
    study: Study,
    out: Path,
    *,
    data: str,
    network: str,
    loss: str,
    task: str,
    fold: int,
    seed: int,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> Cell:
    """The cell of one training; `extra` are settings over all others.

    Raises:
        InputError: for a loss that the bundle does not have, or a data set that is not there.
    """
    bundle = study.bundles[study.networks[network]["bundle"]]
    settings = {**study.settings, **(study.data[data].get("settings") or {})}
    settings |= {**(study.networks[network].get("settings") or {}), **_loss_settings(study, bundle, loss), **extra}
    labels = study.data[data]["labels"]
    settings["classes"] = {"background": None, **(labels if task == "all" else {task: labels[task]})}
    settings |= {"fold": fold, "seed": seed}
    dataset, identity = _data_set(study, out, data, fold)
    decides = [settings, identity, bundle.train, bundle.evaluate, liverseg.__version__]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return Cell(data, network, loss, task, fold, seed, bundle, settings, dataset, digest)


def phantoms_folder(study: Study, out: Path, data: str) -> Path:
    """Where the phantoms of a data set are, another folder for other phantoms."""
    text = json.dumps([study.data[data]["phantoms"], liverseg.__version__], sort_keys=True)
    return out / "data" / f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def steps(cell: Cell, folder: Path) -> Iterator[Step]:
    """The bundle's commands of a cell: the training, then an evaluation for each post-processing.

    The held-out fold is what they evaluate on, never the test section.

    Args:
        cell: the cell.
        folder: the folder that everything of it goes to.
    """
    common = {"bundle_root": cell.bundle.folder, **cell.dataset, "ckpt_dir": folder / "models", **cell.settings}
    training = {"output_dir": folder / "training", "resume": True}
    yield Step("training", _arguments("training", cell, ["train"], common | training), folder / "training/metrics.json")
    handlers = cell.bundle.evaluate["validate#handlers"]
    report = next(i for i, handler in enumerate(handlers) if handler["_target_"].endswith(".SegmentationReport"))
    for name in cell.postprocessings:
        results = folder / "evaluation" / name
        evaluation = {
            "output_dir": results,
            f"validate#handlers#{report}#masks_dir": results / "masks",
            "section": "validation",
            "mask_cleaning": f"@postprocessings#{name}",
        }
        arguments = _arguments("evaluating", cell, ["train", "evaluate"], common | evaluation)
        yield Step(f"evaluation_{name}", arguments, results / "summary.json")


def python_command(step: Step) -> list[str]:
    """The step's command with the Python that runs this."""
    return [sys.executable, *step.arguments]


def _arguments(run_id: str, cell: Cell, configs: list[str], options: dict[str, Any]) -> list[str]:
    files = [str(cell.bundle.folder / "configs" / f"{name}.json") for name in configs]
    options = {"config_file": files if len(files) > 1 else files[0], **options}
    pairs = [(f"--{name}", value if isinstance(value, str) else literal(value)) for name, value in options.items()]
    return ["-m", "monai.bundle", "run", run_id, *(word for pair in pairs for word in pair)]


def literal(value: Any) -> str:
    """A value as the command line of monai.bundle reads it: Python, with double quotes, which are easy to quote."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _loss_settings(study: Study, bundle: Bundle, loss: str) -> dict[str, Any]:
    if loss in study.losses:
        return study.losses[loss]
    if loss not in bundle.train["losses"]:
        known = ", ".join(sorted({*bundle.train["losses"], *study.losses}))
        raise InputError(f"{study.path}: loss: found {loss}, expected one of {known}: choose one.")
    return {"loss": f"@losses#{loss}"}


def _data_set(study: Study, out: Path, data: str, fold: int) -> tuple[dict[str, str], Any]:
    """The options that name a data set, and what tells it from others wherever it lies."""
    entry = study.data[data]
    if "phantoms" in entry:
        num_folds = entry["phantoms"].get("folds", 5)
        if fold not in range(num_folds):
            raise InputError(
                f"{study.path}: folds: found {fold}, but the phantoms of {data} have the folds 0 to {num_folds - 1}: "
                "correct one of the two."
            )
        return {"dataset_dir": str(phantoms_folder(study, out, data))}, entry["phantoms"]
    datalist = Path(entry.get("datalist") or Path(entry["dataset_dir"]) / "dataset.json").expanduser().resolve()
    identity = []
    for section in ("training", "validation"):
        for item in load_datalist(datalist, section, fold):
            files = [Path(item[key]) for key in ("image", "label") if key in item]
            if len(files) < 2:
                raise InputError(f"{datalist}: {item['image']} has no label, expected one to train with: add it.")
            identity.append([section, *((file.name, file.stat().st_size) for file in files)])
    options = {"dataset_dir": str(datalist.parent)}
    return options | ({"datalist": str(datalist)} if "datalist" in entry else {}), identity


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
            kind = {key: row_keys[key] for key in ("average", "rank", "difference") if key in row_keys}
            if kind:
                resolved["derived"][row] = kind
                continue
            where = self.table["where"]
            if "column" in row_keys:
                # The row borrows the column's place for a number of its own.
                column = row_keys["column"]
                resolved["places"][row] = {column: self._place(row, column, where | columns[column] | row_keys)}
            else:
                resolved["places"][row] = {
                    column: self._place(row, column, where | row_keys | column_keys)
                    for column, column_keys in columns.items()
                }
        return resolved

    def _check_labels(self, rows: Any, columns: Any) -> None:
        for kind, entries in (("where", {"": self.table["where"]}), ("rows", rows), ("columns", columns)):
            if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
                raise self._wrong(kind, repr(entries), "labels with what each stands for, as in {FCN: {network: FCN}}")
            for label, entry in entries.items():
                for key in entry:
                    if key not in PLACE_KEYS:
                        raise self._wrong(f"{kind}: {label}".rstrip(": "), key, "one of " + ", ".join(PLACE_KEYS))
        for label in [self.table.get("reference"), *(entry.get("reference") for entry in columns.values())]:
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
        keys = {"postprocessing": "none", "task": "all", **keys}
        place = f"{row} / {column}"
        for key in CHOICES:
            if key not in keys:
                raise self._wrong(place, f"no {key}", "one from where, the row or the column")
        for key, known in (("data", self.study.data), ("network", self.study.networks)):
            if keys[key] not in known:
                raise self._wrong(f"{place}: {key}", keys[key], f"one of {', '.join(known)}")
        classes = list(self.study.data[keys["data"]]["labels"])
        if keys["task"] not in ("all", "each", *classes):
            raise self._wrong(f"{place}: task", keys["task"], f"all, each or one of {', '.join(classes)}")
        known_postprocessings = self.study.bundles[self.study.networks[keys["network"]]["bundle"]].train[
            "postprocessings"
        ]
        wanted = keys["postprocessing"]
        postprocessings = wanted if isinstance(wanted, list) else [wanted]
        for name in postprocessings:
            if name not in known_postprocessings:
                raise self._wrong(f"{place}: postprocessing", name, f"one of {', '.join(known_postprocessings)}")
        tasks = [keys["task"]]
        if keys["task"] == "each":
            of_class = keys["metric"].partition(":")[2]
            # What each network calls background is all but its own class: for it the mean of them all.
            tasks = classes if of_class == "background" else [of_class]
        in_network = classes if tasks == ["all"] else tasks
        if not check_metric(keys["metric"], in_network) or not set(tasks) <= {"all", *classes}:
            raise self._wrong(f"{place}: metric", keys["metric"], f"a metric of liverseg, of {', '.join(in_network)}")
        parts = [[cell.name for cell in self._cells(keys, task, postprocessings)] for task in tasks]
        reference = keys.get("reference") or self.table.get("reference")
        by_row = reference in self.table["rows"]
        compared = reference is not None and reference not in (row, column)
        return {
            "metric": keys["metric"],
            "postprocessings": postprocessings,
            "parts": parts,
            "reference": ([reference, column] if by_row else [row, reference]) if compared else None,
        }

    def _cells(self, keys: dict[str, Any], task: str, postprocessings: list[str]) -> Iterator[Cell]:
        choice = {**{key: keys[key] for key in ("data", "network", "loss")}, "task": task}
        for fold, seed in product(self.table.get("folds", self.study.folds), self.study.seeds):
            cell = make_cell(self.study, self.out, fold=fold, seed=seed, **choice)
            # Two names may stand for the same training, as a loss of the study's own for one of the bundle's.
            same = (known for known in self.plan.cells.values() if known.digest == cell.digest)
            cell = self.plan.cells.setdefault(next(same, cell).name, cell)
            cell.postprocessings += [name for name in postprocessings if name not in cell.postprocessings]
            yield cell
