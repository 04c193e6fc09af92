"""Train a bundle on the labels of the studies, and publish what is better than the model in use."""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import re
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list

from lib.bundles import Bundle, as_text
from lib.trainers.scans import items, patient, read_validation, split
from liverseg.bundle import is_true
from liverseg.chain import die_with_parent
from liverseg.errors import InputError, sentence
from liverseg.versions import (
    RUNNING,
    Version,
    evaluate,
    find_version,
    keep_model_in_use,
    list_versions,
    lock,
    model_files,
    new_version,
    publish,
    version_in_use,
    weights_in_use,
)

logger = logging.getLogger(__name__)

LOSS = "@losses#"
METRIC = "val_mean_dice"


class Retraining(TrainTask):
    """The training of one bundle: its own `train.json` in processes of its own, into a new version.

    Args:
        bundle: what trains.
        validation_file: where the scans that validate are written down, of all bundles.
        known: names of segments that other bundles have.
    """

    def __init__(self, bundle: Bundle, validation_file: Path, known: Collection[str] = ()) -> None:
        super().__init__(bundle.metadata.get("description", ""))
        self.bundle = bundle
        self.validation_file = validation_file
        self.known = known
        self.train: dict[str, Any] = ConfigParser.load_config_file(bundle.folder / "configs" / "train.json")
        self.learning_rate = float(self._resolve("learning_rate"))

    def info(self) -> dict[str, Any]:
        """What clients show: options, the bundle's version, and the scans that validate."""
        validation = read_validation(self.validation_file)
        return {**super().info(), "version": self.bundle.metadata.get("version"), "validation": validation}

    def config(self) -> dict[str, Any]:
        """The options; of a list, the first is the default."""
        defaults = {
            key: value.removeprefix(LOSS)
            for key, value in self.train.items()
            if isinstance(value, str) and value.startswith(LOSS)
        }
        losses = self.train.get("losses", {})
        choices = {key: [first, *(name for name in losses if name != first)] for key, first in defaults.items()}
        return {
            "device": device_list(),
            "pretrained": True,
            "max_epochs": 50,
            "learning_rate": self.learning_rate,
            "val_split": 0.2,
            **choices,
        }

    def options(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each option for what a client chose.

        Raises:
            InputError: for a value that is none.
        """
        chosen: dict[str, Any] = {}
        for key, default in self.config().items():
            value = request.get(key, default)
            if isinstance(default, list):
                value = value[0] if isinstance(value, list) and value else value
                # Which devices there are besides, the bundle knows.
                if value not in default and not (key == "device" and value and isinstance(value, str)):
                    raise self._wrong(key, value, f"one of {', '.join(default)}")
            elif isinstance(default, bool):
                value = is_true(value)
            else:
                value = self._number(key, value, type(default))
            chosen[key] = value
        return {**chosen, **self.bundle.device(chosen)}

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Options, and the scans of each kind by the names in `version.json`; who validates is drawn if need be.

        Raises:
            InputError: as `options`, for too few labels, and for weights in use that no network can start from.
        """
        options = self.options(request)
        labelled = {name: patient(datastore, name) for name in datastore.get_labeled_images()}
        training, validation, left_out = split(self.validation_file, labelled, options["val_split"])
        if options["pretrained"] and model_files(self.bundle.folder / "models"):
            starts = self._starts(weights_in_use(self.bundle.folder))
            missing = [file for file in starts if not file.is_file()]
            if missing:
                raise InputError(
                    f"model {self.bundle.name}: found no {', '.join(map(str, missing))}, expected the weights of each "
                    "network to start from: copy them there, or train with pretrained false."
                )
        return options, {"training": training, "validation": validation, "left_out": left_out}

    def stats(self) -> dict[str, Any]:
        """How far the newest training is, as MONAI Label's clients read it; nothing before the first."""
        version = next((one for one in list_versions(self.bundle.folder) if "epochs" in one.record), None)
        if version is None:
            return {}
        record, state = version.record, version.state
        histories = sorted((version.folder / "training").rglob("history.csv"), key=lambda file: file.stat().st_mtime)
        rows = [list(csv.DictReader(file.read_text().splitlines())) for file in histories]
        # A stage with `metrics.json` is at its end, if patience ended it before the last epoch too.
        ended = [file.with_name("metrics.json").is_file() for file in histories]
        epoch = sum(record["epochs"] if end else len(some) for end, some in zip(ended, rows, strict=True))
        total = record["epochs"] * record["stages"]
        validated = [float(row[METRIC]) for row in (rows[-1] if rows else []) if row[METRIC]]
        running = state in RUNNING
        # One that was stopped could not write down when.
        stopped = max((file.stat().st_mtime for file in histories), default=record["start_ts"])
        seconds = int(record.get("end_ts", time.time() if running else stopped) - record["start_ts"])
        left = {"time_left": str(timedelta(seconds=int(seconds * (total - epoch) / epoch)))} if epoch else {}
        return {
            "epoch": epoch,
            "total_epochs": total,
            "start_ts": record["start_ts"],
            **({"current_time": str(timedelta(seconds=seconds)), **left} if running else {}),
            # 3D Slicer's bar takes this for the end.
            **({} if running else {"total_time": str(timedelta(seconds=seconds))}),
            "best_metric": max(validated, default=0),
            "train": {"metrics": {"loss": float(rows[-1][-1]["loss"])} if rows and rows[-1] else {}},
            "eval": {"metrics": {METRIC: validated[-1]} if validated else {}, "key_metric_name": METRIC},
            "model_version": version.name,
            "state": state,
            **{
                key: record.get(key)
                for key in ("reason", "parent", "mean_dice", "mean_dice_in_use", "training", "validation", "left_out")
            },
        }

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, evaluate, and publish if better.

        Args:
            request: options by their names in `config`.
            datastore: the studies; scans with a final label are used.

        Returns:
            As `stats`.

        Raises:
            InputError: as `check`, and for a training or an evaluation that failed.
        """
        options, scans = self.check(request, datastore)
        if scans["left_out"]:
            logger.warning(
                "%s: left out %s: their patients validate with other scans.",
                self.bundle.name,
                ", ".join(scans["left_out"]),
            )
        folder = self.bundle.folder
        keep_model_in_use(folder)
        parent = version_in_use(folder)
        stages = len(self.train.get("all_stages", [None]))
        version = new_version(
            folder,
            state="training",
            parent=parent,
            options=options,
            epochs=options["max_epochs"],
            stages=stages,
            **scans,
        )
        with lock(version.folder / ".lock"):
            try:
                self._write_settings(version, options, datastore)
                self._train(version)
                version = self._publish_if_better(version.update(state="evaluating"))
            except Exception as error:
                reason = sentence(error) or f"{type(error).__name__}: {error}".splitlines()[0]
                find_version(folder, version.name).update(state="failed", reason=reason, end_ts=int(time.time()))
                raise
            finally:
                # Several times the size of the weights and of no use any more; a cancelled training leaves them too.
                for one in list_versions(folder):
                    for checkpoint in one.folder.rglob("checkpoint.pt") if one.state not in RUNNING else ():
                        checkpoint.unlink()
        logger.info("%s %s: %s: %s", self.bundle.name, version.name, version.state, version.record["reason"])
        return self.stats()

    def _write_settings(self, version: Version, options: Mapping[str, Any], datastore: Datastore) -> None:
        """What differs from the bundle's `train.json`, as one more config."""
        classes = {name: index for index, name in enumerate(self._resolve("classes"))}
        lists = {
            section: items(datastore, version.record[section], classes, version.folder / "labels", self.known)
            for section in ("training", "validation")
        }
        start = {}
        if options["pretrained"] and version.record["parent"]:
            weights = find_version(self.bundle.folder, version.record["parent"]).folder
            several = "pretrain_dir" in self.train
            start = {"pretrain_dir": str(weights)} if several else {"load_pretrain": str(weights / "model.pt")}
        settings = {
            **self._of_inference(),
            "datalist": str(version.folder / "datalist.json"),
            "classes": {name: [index] for name, index in classes.items()},
            "ckpt_dir": str(version.folder),
            "output_dir": str(version.folder / "training"),
            "max_epochs": options["max_epochs"],
            "val_interval": min(self.train["val_interval"], options["max_epochs"]),
            "learning_rate": options["learning_rate"],
            "device": options["device"],
            **{key: LOSS + options[key] for key in options if str(self.train.get(key)).startswith(LOSS)},
            **start,
        }
        for name, content in {"datalist": lists, "settings": settings}.items():
            (version.folder / f"{name}.json").write_text(json.dumps(content, indent=1))

    def _starts(self, weights: Path) -> list[Path]:
        """The files in `weights` that the networks start from."""
        if "pretrain_dir" not in self.train:
            return [weights / "model.pt"]
        stages = self.train["all_stages"]
        return [Path(self._resolve("load_pretrain", pretrain_dir=str(weights), **stage)) for stage in stages]

    def _resolve(self, key: str, **settings: Any) -> Any:
        """What a setting of `train.json` is when it runs with these."""
        path = sys.path[:]
        try:
            # The parser resolves macros in place.
            parser = ConfigParser(copy.deepcopy(self.train))
            parser.update({"bundle_root": str(self.bundle.folder), **self._of_inference(), **settings})
            return parser.get_parsed_content(key)
        finally:
            sys.path[:] = path

    def _of_inference(self) -> dict[str, Any]:
        """What clients get their masks with, such as `spacing`, where `train.json` says something else."""
        settings = {}
        for key, value in self.bundle.config.items():
            own = self.train.get(key)
            plain = not set("$@%") & set(json.dumps(value)) and not isinstance(value, dict)
            choice = bool(re.fullmatch(r"@(?!postprocessings)\w+#\w+", str(value)))
            if type(own) is type(value) and own != value and (plain or choice):
                settings[key] = value
        return settings

    def _train(self, version: Version) -> None:
        configs = [str(self.bundle.folder / "configs" / "train.json"), str(version.folder / "settings.json")]
        command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(configs)]
        command += ["--bundle_root", str(self.bundle.folder)]
        file = version.folder / "training.log"
        logger.info("%s trains %s; its output: %s", self.bundle.name, version.name, file)
        with file.open("w") as output:
            status = subprocess.run(
                command, stdout=output, stderr=output, cwd=self.bundle.folder, check=False, preexec_fn=die_with_parent
            ).returncode
        if status != 0:
            said = [
                line.removeprefix("error: ") for line in file.read_text().splitlines() if line.startswith("error: ")
            ]
            raise InputError(
                f"model {self.bundle.name}: the training ended early ({said[-1] if said else f'status {status}'}), the "
                f"model in use stays: see {file}."
            )

    def _publish_if_better(self, version: Version) -> Version:
        """Compare with the model in use on the same scans, and with the next one, if another is put into use then."""
        folder = self.bundle.folder
        reached = _mean(evaluate(folder, version.folder, version, version.folder / "evaluation"))
        version, reason = version.update(mean_dice=reached), "the first model"
        worse: set[str | None] = {None}
        while version.state != "published":
            if publish(folder, version.name, worse):
                return version.update(state="published", reason=f"published: {reason}", end_ts=int(time.time()))
            name = version_in_use(folder)
            if name is None:
                continue
            in_use = find_version(folder, name)
            before = _mean(evaluate(folder, in_use.folder, version, version.folder / "evaluation_in_use"))
            reason = f"mean Dice {reached:.4f} on the validation scans, {before:.4f} of {name}, which was in use"
            learnt = set(in_use.record.get("training", ())) & set(version.record.get("validation", ()))
            if learnt:
                reason += f" and has learnt {len(learnt)} of these scans, so that its figure is too high"
            version = version.update(mean_dice_in_use=before)
            if version.state != "published" and not reached > before:
                return version.update(state="candidate", reason=f"not published: {reason}", end_ts=int(time.time()))
            worse.add(name)
        return version.update(reason="published by hand while it was evaluated", end_ts=int(time.time()))

    def _number(self, key: str, value: Any, kind: type) -> Any:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or (kind is int and not number.is_integer()):
            raise self._wrong(key, value, "a whole number" if kind is int else "a number")
        if key == "val_split" and not 0 < number < 1:
            raise self._wrong(key, value, "a share between 0 and 1")
        if number < 1 if kind is int else number <= 0:
            raise self._wrong(key, value, "a larger number")
        return kind(number)

    def _wrong(self, key: str, value: Any, expected: str) -> InputError:
        return InputError(
            f"model {self.bundle.name}, option {key}: found {as_text(value)!r}, expected {expected}: fix it."
        )


def _mean(dice: Mapping[str, float]) -> float:
    if not dice:
        raise InputError("validation: found no class of the bundle in its labels, expected some: label them again.")
    return sum(dice.values()) / len(dice)
