"""Cells: one training each, with the commands of the bundle that make it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import liverseg
from liverseg.data import load_datalist
from liverseg.errors import InputError
from liverseg.io.paths import absolute
from liverseg.workbench.study.read import Bundle, Study


@dataclass
class Cell:
    """One training, and the evaluations of its model.

    Attributes:
        data, network, loss, task: names in the study; `fold` and `seed` with them.
        bundle: the bundle that it runs.
        run: ids of the bundle's config that make the model, one after the other.
        settings: the overrides that both commands take.
        dataset: the options that name the data set.
        digest: SHA-256 of all that decides the result.
        evaluations: by name, the settings that the model is evaluated with, once for each.
    """

    data: str
    network: str
    loss: str
    task: str
    fold: int
    seed: int
    bundle: Bundle
    run: list[str]
    settings: dict[str, Any]
    dataset: dict[str, str]
    digest: str
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """Of the cell's folder: readable, and another one for other settings."""
        words = (
            self.data,
            self.network,
            self.loss,
            self.task,
            f"fold{self.fold}",
            f"seed{self.seed}",
            self.digest[:8],
        )
        return "_".join(re.sub(r"[^\w.-]+", "-", word) for word in words)


@dataclass(frozen=True)
class Step:
    """A command of a cell: its name, the arguments after `python`, and the file that is there once it is done.

    A bundle that trains by stages writes files of each, so the training's file is the study's own.
    """

    name: str
    arguments: list[str]
    result: Path
    trains: bool

    def is_done(self) -> bool:
        """Whether the file is there, and of an evaluation is that of all scans."""
        if not self.result.is_file():
            return False
        return self.trains or not json.loads(self.result.read_text(encoding="utf-8")).get(
            "failures"
        )


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
    settings |= {
        **(study.networks[network].get("settings") or {}),
        **_loss_settings(study, bundle, loss),
        **extra,
    }
    labels = study.data[data]["labels"]
    settings["classes"] = {
        "background": None,
        **(labels if task == "all" else {task: labels[task]}),
    }
    settings |= {"fold": fold, "seed": seed}
    dataset, identity = _data_set(study, out, data, fold)
    run = study.networks[network].get("run", ["training"])
    decides = [settings, identity, bundle.train, bundle.evaluate, liverseg.__version__, *run[1:]]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return Cell(data, network, loss, task, fold, seed, bundle, run, settings, dataset, digest)


def phantoms_folder(study: Study, out: Path, data: str) -> Path:
    """Where the phantoms of a data set are, another folder for other phantoms."""
    text = json.dumps([study.data[data]["phantoms"], liverseg.__version__], sort_keys=True)
    return out / "data" / f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def steps(cell: Cell, folder: Path) -> Iterator[Step]:
    """The bundle's commands of a cell: those that train, then its evaluations.

    The held-out fold is what they evaluate on, never the test section.

    Args:
        cell: the cell.
        folder: the folder that everything of it goes to.
    """
    common = {
        "bundle_root": cell.bundle.folder,
        **cell.dataset,
        "ckpt_dir": folder / "models",
        **cell.settings,
    }
    # Settings of the study may be of the evaluation alone, such as the planes that vote.
    common_training = {
        name: value for name, value in common.items() if name.partition("#")[0] in cell.bundle.train
    }
    training = {"output_dir": folder / "training", "resume": True}
    for run_id in cell.run:
        arguments = _arguments(run_id, cell, ["train"], common_training | training)
        yield Step(run_id, arguments, folder / "training" / f"{run_id}.done", trains=True)
    handlers = cell.bundle.evaluate["validate#handlers"]
    report = next(
        i
        for i, handler in enumerate(handlers)
        if handler["_target_"].endswith(".SegmentationReport")
    )
    for name, settings in cell.evaluations.items():
        results = folder / "evaluation" / name
        evaluation = {
            "output_dir": results,
            f"validate#handlers#{report}#masks_dir": results / "masks",
            "section": "validation",
            **settings,
        }
        arguments = _arguments("evaluating", cell, ["train", "evaluate"], common | evaluation)
        yield Step(f"evaluation_{name}", arguments, results / "summary.json", trains=False)


def python_command(step: Step) -> list[str]:
    """The step's command with the Python that runs this."""
    return [sys.executable, *step.arguments]


def _arguments(run_id: str, cell: Cell, configs: list[str], options: dict[str, Any]) -> list[str]:
    files = [str(cell.bundle.folder / "configs" / f"{name}.json") for name in configs]
    options = {"config_file": files if len(files) > 1 else files[0], **options}
    pairs = [
        (f"--{name}", value if isinstance(value, str) else literal(value))
        for name, value in options.items()
    ]
    return ["-m", "monai.bundle", "run", run_id, *(word for pair in pairs for word in pair)]


def literal(value: Any) -> str:
    """A value as the command line of monai.bundle reads it: Python, with double quotes, which are easy to quote."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{literal(key)}: {literal(inner)}" for key, inner in value.items())
            + "}"
        )
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
    datalist = absolute(entry.get("datalist") or Path(entry["dataset_dir"]) / "dataset.json")
    identity = []
    for section in ("training", "validation"):
        for item in load_datalist(datalist, section, fold):
            files = [Path(item[key]) for key in ("image", "label")]
            identity.append([section, *((file.name, file.stat().st_size) for file in files)])
    options = {"dataset_dir": str(datalist.parent)}
    return options | ({"datalist": str(datalist)} if "datalist" in entry else {}), identity
