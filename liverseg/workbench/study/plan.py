"""Plan a study: its runs, and what each place of each table is made of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import liverseg
from liverseg.data import load_datalist
from liverseg.data.datalist_schema import read_datalist
from liverseg.errors import InputError
from liverseg.files import atomic_write
from liverseg.io.paths import absolute
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.results import LARGEST_IS_BEST, check_metric
from liverseg.workbench.study.schema import Place, Protocol, Table, check_choice
from liverseg.workbench.study.spec import Bundle, Study

# The setting of the bundles that chooses one of their `postprocessings`.
POSTPROCESSING = "postprocessing"
REQUIRED = ("data", "network", "task", "loss", "postprocessing", "metric")
DEFAULTS = {
    "postprocessing": "none", "task": "all", "evaluation": None, "section": "validation",
    "reference": None,
}  # fmt: skip
# Keys of a row that is made of others.
DERIVED = {"average", "max", "min", "rank", "difference"}
RUN_KEYS = ("data", "network", "loss", "task", "fold", "seed", "settings", "dataset")


@dataclass
class Run:
    """One training, and the evaluations of its model.

    Attributes:
        data, network, loss, task: names in the study; `fold` and `seed` with them.
        bundle: the bundle that it runs.
        run_ids: of the bundle's config, which make the model, one after the other.
        settings: the overrides that both commands take.
        dataset: the options that name the data set.
        digest: SHA-256 of all that decides the result.
        folder: where everything of it goes.
        protocol: the paper's training of the same; None without one.
        evaluations: by name, the settings that the model is evaluated with, once for each.
    """

    data: str
    network: str
    loss: str
    task: str
    fold: int
    seed: int
    bundle: Bundle
    run_ids: list[str]
    settings: dict[str, Any]
    dataset: dict[str, str]
    digest: str
    folder: Path
    protocol: Protocol | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def datalist(self) -> str:
        """Path of the data set's datalist."""
        return self.dataset.get("datalist", f"{self.dataset['dataset_dir']}/dataset.json")

    @property
    def name(self) -> str:
        """Of the run's folder: readable, and another one for other settings."""
        return self.folder.name


@dataclass
class Plan:
    """All runs of a study by name, and its tables: JSON that needs neither study nor bundles.

    A table has `title`, `rows` and `columns` (labels), `paper`, `surfaces`, `derived` (row → how
    it is made of others), `chosen` (columns that take the best of the others), and `places`: row →
    column → `metric`, `evaluation` (its name), `reference` ([row, column] or null) and `parts`:
    lists of the names of runs, one for each fold and seed; the place's value is the mean over the
    parts.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)


def make_plan(study: Study, folder: StudyFolder) -> Plan:
    """Expand the study's tables; a training that several of them need is one run.

    Raises:
        InputError: for a table that names what the study or its bundles do not have, or data that
            is not there.
    """
    plan = Plan()
    for name, table in study.tables.items():
        place = f"{study.path}: tables: {name}"
        _check_labels(place, table)
        planner = _TablePlanner(study, folder, plan.runs, place, table)
        plan.tables[name] = {
            "title": table.title or name,
            "rows": list(table.rows),
            "columns": list(table.columns),
            "paper": table.paper,
            "surfaces": table.surfaces,
            **planner.resolve(),
        }
    return plan


def save_plan(
    study: Study, plan: Plan, lengths: Sequence[Mapping[str, Any]], folder: StudyFolder
) -> None:
    """Write the tables of the plan as `plan.json`, what each run is, and how long it trains."""
    runs = {name: {key: getattr(run, key) for key in RUN_KEYS} for name, run in plan.runs.items()}
    for name, run in plan.runs.items():
        runs[name]["protocol"] = run.protocol and run.protocol.model_dump()
    content = {
        "phantoms": any(data.phantoms is not None for data in study.data.values()),
        "differences": study.differences,
        "lengths": lengths,
        "tables": plan.tables,
        "cells": runs,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with atomic_write(folder.plan) as file:
        file.write(f"{text}\n".encode())


def make_run(
    study: Study,
    folder: StudyFolder,
    choice: Mapping[str, Any],
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> Run:
    """Make one training.

    Args:
        study: the study.
        folder: its folder.
        choice: `data`, `network`, `loss`, `task`, `fold` and `seed`.
        extra: settings over all others.

    Raises:
        InputError: for a loss that the bundle does not have, or a data set that is not there.
    """
    data, network = study.data[choice["data"]], study.networks[choice["network"]]
    bundle, task = study.bundles[network.bundle], choice["task"]
    losses = {name: {"loss": f"@losses#{name}"} for name in bundle.train["losses"]} | study.losses
    check_choice(f"{study.path}: loss", choice["loss"], sorted(losses))
    settings = (
        study.settings | data.settings | network.settings | losses[choice["loss"]] | dict(extra)
    )
    labels = data.labels if task == "all" else {task: data.labels[task]}
    settings["classes"] = {"background": None, **labels}
    settings |= {"fold": choice["fold"], "seed": choice["seed"]}
    dataset, identity = _data_set(study, folder, choice["data"], choice["fold"])
    decides = [settings, identity, bundle.train, bundle.evaluate, liverseg.__version__]
    text = json.dumps([*decides, *network.run[1:]], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    words = [*(choice[key] for key in ("data", "network", "loss", "task"))]
    words += [f"fold{choice['fold']}", f"seed{choice['seed']}", digest[:8]]
    return Run(
        **choice,
        bundle=bundle,
        run_ids=network.run,
        settings=settings,
        dataset=dataset,
        digest=digest,
        folder=folder.run("_".join(map(_word, words))),
        protocol=data.protocol and data.protocol.model_copy(update=network.protocol),
    )


def _data_set(
    study: Study, folder: StudyFolder, name: str, fold: int
) -> tuple[dict[str, str], Any]:
    """Return the options that name a data set, and what tells it from others wherever it lies."""
    data = study.data[name]
    if data.phantoms is not None:
        num_folds = data.phantoms.get("folds", 5)
        if fold not in range(num_folds):
            raise InputError(
                f"{study.path}: folds: found {fold}, but the phantoms of {name} have the folds 0 "
                f"to {num_folds - 1}: correct one of the two."
            )
        return {"dataset_dir": str(folder.phantoms(name, data.phantoms))}, data.phantoms
    datalist = absolute(data.datalist or Path(str(data.dataset_dir)) / "dataset.json")
    identity = []
    known = read_datalist(datalist)
    num_folds = len({item["fold"] for item in known.sections.get("training", []) if "fold" in item})
    if data.num_folds not in (None, num_folds):
        raise InputError(
            f"{datalist}: found {num_folds} folds, expected the {data.num_folds} of {study.path} "
            f"(num_folds of {name}): write the scans with --folds {data.num_folds} into a folder "
            "of their own, because another study may need these."
        )
    num_scans = sum(map(len, known.sections.values()))
    if data.num_scans not in (None, num_scans):
        raise InputError(
            f"{datalist}: found {num_scans} scans, expected the {data.num_scans} of {study.path} "
            f"(num_scans of {name}): write them anew with the commands at the top of the study, or "
            "set num_scans in a study of your own, whose base this one is."
        )
    # The test section is part of it where there is one, as an evaluation may choose it.
    test = ["test"] if known.sections.get("test") else []
    for section in ("training", "validation", *test):
        for item in load_datalist(datalist, section, fold):
            files = [Path(item[key]) for key in ("image", "label")]
            identity.append([section, *((file.name, file.stat().st_size) for file in files)])
    options = {"dataset_dir": str(datalist.parent)}
    return options | ({"datalist": str(datalist)} if data.datalist else {}), identity


def _check_labels(place: str, table: Table) -> None:
    rows, columns = list(table.rows), list(table.columns)
    for label in (table.reference, *(column.reference for column in table.columns.values())):
        if label is not None:
            check_choice(
                f"{place}: reference", label, rows + columns, "the label of a row or column, "
            )
    for row, entry in table.rows.items():
        if entry.column is not None:
            check_choice(
                f"{place}: rows: {row}: column", entry.column, columns, "the label of a column, "
            )
        for label in entry.difference or ():
            check_choice(f"{place}: rows: {row}: difference", label, rows, "the label of a row, ")
        numbers = table.paper.get(row)
        if numbers is not None and len(numbers) != len(columns):
            raise InputError(
                f"{place}: paper: {row}: found {len(numbers)} numbers, expected {len(columns)}, "
                "one for each column, or null: correct it."
            )


@dataclass
class _TablePlanner:
    study: Study
    folder: StudyFolder
    runs: dict[str, Run]
    where: str
    table: Table

    def resolve(self) -> dict[str, Any]:
        """Return how derived rows are made, and what each place of other rows is made of."""
        derived, places = {}, {}
        own = {label: column for label, column in self.table.columns.items() if not column.best}
        for row, entry in self.table.rows.items():
            made = entry.model_dump(include=DERIVED, exclude_unset=True)
            if made:
                derived[row] = made
            elif entry.column is not None:
                # The row borrows the column's place for its own number.
                column = entry.column
                places[row] = {column: self._place(row, column, self.table.columns[column], entry)}
            else:
                places[row] = {
                    column: self._place(row, column, entry, of_column)
                    for column, of_column in own.items()
                }
        chosen = [label for label in self.table.columns if label not in own]
        for row, of_row in places.items():
            for place in of_row.values() if chosen else ():
                if place["metric"].partition(":")[0] not in LARGEST_IS_BEST:
                    raise InputError(
                        f"{self.where}: columns: {chosen[0]}: best: found {place['metric']} in "
                        f"{row}, expected a metric of which the largest is best, one of "
                        f"{', '.join(LARGEST_IS_BEST)}: take best or the row out."
                    )
        return {"derived": derived, "chosen": chosen, "places": places}

    def _place(self, row: str, column: str, *entries: Place) -> dict[str, Any]:
        place, study = f"{self.where}: {row} / {column}", self.study
        keys: dict[str, Any] = {**DEFAULTS}
        for entry in (self.table.where, *entries):
            keys |= entry.model_dump(exclude_unset=True)
        for key in REQUIRED:
            if keys.get(key) is None:
                raise InputError(
                    f"{place}: found no {key}, expected one from where, the row or the column: "
                    "correct it."
                )
        check_choice(f"{place}: data", keys["data"], study.data)
        check_choice(f"{place}: network", keys["network"], study.networks)
        classes = list(study.data[keys["data"]].labels)
        check_choice(f"{place}: task", keys["task"], ["all", "each", *classes])
        tasks = [keys["task"]]
        if tasks == ["each"]:
            of_class = keys["metric"].partition(":")[2]
            # What each network calls background is all but its own class: it is the mean of all.
            tasks = classes if of_class == "background" else [of_class]
        evaluation, settings = self._evaluation(place, keys)
        in_network = classes if tasks == ["all"] else tasks
        if not check_metric(keys["metric"], in_network) or not set(tasks) <= {"all", *classes}:
            raise InputError(
                f"{place}: metric: found {keys['metric']}, expected a metric of liverseg, of "
                f"{', '.join(in_network)}: correct it."
            )
        if keys["metric"].startswith("auc:") and not self._setting(keys, settings, "roc"):
            raise InputError(
                f"{place}: metric: found {keys['metric']} without roc, expected roc: true among "
                "the settings, or those of an evaluation: add it."
            )
        reference = keys["reference"] or self.table.reference
        by_row = reference in self.table.rows
        compared = reference is not None and reference not in (row, column)
        return {
            "metric": keys["metric"],
            "evaluation": evaluation,
            "parts": [
                [run.name for run in self._runs(keys, task, {evaluation: settings})]
                for task in tasks
            ],
            "reference": ([reference, column] if by_row else [row, reference])
            if compared
            else None,
        }

    def _setting(self, keys: Mapping[str, Any], evaluation: Mapping[str, Any], name: str) -> Any:
        """Return the value of a setting of an evaluation, None where the study does not set it."""
        data, network = self.study.data[keys["data"]], self.study.networks[keys["network"]]
        loss = self.study.losses.get(keys["loss"], {})
        settings = self.study.settings | data.settings | network.settings | loss | dict(evaluation)
        return settings.get(name)

    def _evaluation(self, place: str, keys: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the name and the settings of what a place is read from."""
        bundle = self.study.bundles[self.study.networks[keys["network"]].bundle]
        name = keys["postprocessing"]
        check_choice(f"{place}: postprocessing", name, bundle.train["postprocessings"])
        settings = {POSTPROCESSING: f"@postprocessings#{name}"}
        own, section = keys["evaluation"], keys["section"]
        check_choice(f"{place}: section", section, ["validation", "test"])
        if own is not None:
            check_choice(
                f"{place}: evaluation", own, self.study.evaluations, "the study's evaluations, "
            )
            name, settings = _word(f"{name}_{own}"), settings | self.study.evaluations[own]
        if section == "validation":
            return name, settings
        return f"{name}_{section}", settings | {"section": section}

    def _runs(
        self, keys: Mapping[str, Any], task: str, evaluations: dict[str, dict[str, Any]]
    ) -> Iterator[Run]:
        choice = {key: keys[key] for key in ("data", "network", "loss")} | {"task": task}
        for fold, seed in product(self.table.folds or self.study.folds, self.study.seeds):
            run = make_run(self.study, self.folder, choice | {"fold": fold, "seed": seed})
            if keys["section"] == "test" and self.study.data[keys["data"]].phantoms is None:
                # Found missing now, not when all networks are trained.
                load_datalist(run.datalist, "test")
            # Two names may stand for the same training, as an own loss for one of the bundle's.
            same = (known for known in self.runs.values() if known.digest == run.digest)
            run = self.runs.setdefault(next(same, run).name, run)
            run.evaluations |= evaluations
            yield run


def _word(text: str) -> str:
    """Return a word for a file's name."""
    return re.sub(r"[^\w.-]+", "-", text)
