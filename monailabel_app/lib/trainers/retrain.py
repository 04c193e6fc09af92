"""Train a bundle on the labels of the studies, and publish what is better than the model in use."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list

from lib.bundles import Bundle, as_text
from lib.trainers.progress import progress
from lib.trainers.publishing import publish_if_better
from lib.trainers.scans import items, patient, read_validation, split
from liverseg.bundle import is_true
from liverseg.chain import die_with_parent
from liverseg.errors import InputError, sentence
from liverseg.versions import (
    RUNNING,
    Version,
    find_version,
    keep_model_in_use,
    list_versions,
    model_files,
    new_version,
    version_in_use,
    weights_in_use,
)

logger = logging.getLogger(__name__)

LOSS = "@losses#"
# Of a training from scratch: those of `train.json` are for large data sets.
EPOCHS = 50


class Retraining(TrainTask):
    """The training of one bundle: its own `train.json` in processes of its own, into a new version.

    One that starts from a model has the bundle's `fine_tune.json` laid over it, where there is one.

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
        self.train: dict[str, Any] = ConfigParser.load_config_file(
            bundle.folder / "configs" / "train.json"
        )
        overlay = bundle.folder / "configs" / "fine_tune.json"
        self.fine_tune: dict[str, Any] = (
            ConfigParser.load_config_file(overlay) if overlay.is_file() else {}
        )
        # From scratch, and from a model.
        self.defaults = [
            {
                "max_epochs": self._resolve("max_epochs", **overlay) if overlay else EPOCHS,
                "learning_rate": float(self._resolve("learning_rate", **overlay)),
            }
            for overlay in ({}, self.fine_tune)
        ]

    def info(self) -> dict[str, Any]:
        """What clients show: options, the bundle's version, and the scans that validate."""
        validation = read_validation(self.validation_file)
        return {
            **super().info(),
            "version": self.bundle.metadata.get("version"),
            "validation": validation,
        }

    def config(self) -> dict[str, Any]:
        """The options; of a list, the first is the default."""
        defaults = {
            key: value.removeprefix(LOSS)
            for key, value in self.train.items()
            if isinstance(value, str) and value.startswith(LOSS)
        }
        losses = self.train.get("losses", {})
        choices = {
            key: [first, *(name for name in losses if name != first)]
            for key, first in defaults.items()
        }
        return {
            "device": device_list(),
            "pretrained": True,
            **self.defaults[self._has_model()],
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
                if value not in default and not (
                    key == "device" and value and isinstance(value, str)
                ):
                    raise self._wrong(key, value, f"one of {', '.join(default)}")
            elif isinstance(default, bool):
                value = is_true(value)
            else:
                value = self._number(key, value, type(default))
            chosen[key] = value
        # Clients send back what they were shown, which is for a model to start from.
        shown, own = (
            self.defaults[self._has_model()],
            self.defaults[chosen["pretrained"] and self._has_model()],
        )
        chosen |= {key: own[key] for key, value in shown.items() if chosen[key] == value}
        return {**chosen, **self.bundle.device(chosen)}

    def check(
        self, request: Mapping[str, Any], datastore: Datastore
    ) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Options, and the scans of each kind by the names in `version.json`; who validates is drawn if need be.

        Raises:
            InputError: as `options`, for too few labels, and for weights in use that no network can start from.
        """
        options = self.options(request)
        labelled = {name: patient(datastore, name) for name in datastore.get_labeled_images()}
        training, validation, left_out = split(self.validation_file, labelled, options["val_split"])
        if options["pretrained"] and self._has_model():
            starts = self._starts(weights_in_use(self.bundle.folder))
            missing = [file for file in starts if not file.is_file()]
            if missing:
                raise InputError(
                    f"model {self.bundle.name}: found no {', '.join(map(str, missing))}, expected the weights of each "
                    "network to start from: copy them there, or train with pretrained false."
                )
        return options, {"training": training, "validation": validation, "left_out": left_out}

    def stats(self) -> dict[str, Any]:
        """How far the newest training is; nothing before the first."""
        return progress(self.bundle.folder)

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
        fine_tunes = options["pretrained"] and parent is not None and bool(self.fine_tune)
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
        with FileLock(version.folder / ".lock"):
            try:
                self._write_settings(version, options, datastore, fine_tunes)
                self._train(version, fine_tunes)
                version = publish_if_better(folder, version.update(state="evaluating"))
            except Exception as error:
                reason = sentence(error) or f"{type(error).__name__}: {error}".splitlines()[0]
                find_version(folder, version.name).update(
                    state="failed", reason=reason, end_ts=int(time.time())
                )
                raise
            finally:
                # Several times the size of the weights and of no use any more; a cancelled training leaves them too.
                for one in list_versions(folder):
                    for checkpoint in (
                        one.folder.rglob("checkpoint.pt") if one.state not in RUNNING else ()
                    ):
                        checkpoint.unlink()
        logger.info(
            "%s %s: %s: %s", self.bundle.name, version.name, version.state, version.record["reason"]
        )
        return self.stats()

    def _write_settings(
        self, version: Version, options: Mapping[str, Any], datastore: Datastore, fine_tunes: bool
    ) -> None:
        """What differs from the bundle's `train.json` and `fine_tune.json`, as one more config."""
        classes = {name: index for index, name in enumerate(self._resolve("classes"))}
        lists = {
            section: items(
                datastore, version.record[section], classes, version.folder / "labels", self.known
            )
            for section in ("training", "validation")
        }
        start = {}
        if options["pretrained"] and version.record["parent"]:
            weights = find_version(self.bundle.folder, version.record["parent"]).folder
            several = "pretrain_dir" in self.train
            start = (
                {"pretrain_dir": str(weights)}
                if several
                else {"load_pretrain": str(weights / "model.pt")}
            )
        settings = {
            **self._of_inference(),
            "datalist": str(version.folder / "datalist.json"),
            "classes": {name: [index] for name, index in classes.items()},
            "ckpt_dir": str(version.folder),
            "output_dir": str(version.folder / "training"),
            "max_epochs": options["max_epochs"],
            **(
                {}
                if fine_tunes
                else {"val_interval": min(self.train["val_interval"], options["max_epochs"])}
            ),
            "learning_rate": options["learning_rate"],
            "device": options["device"],
            **{
                key: LOSS + options[key]
                for key in options
                if str(self.train.get(key)).startswith(LOSS)
            },
            **start,
        }
        for name, content in {"datalist": lists, "settings": settings}.items():
            (version.folder / f"{name}.json").write_text(json.dumps(content, indent=1))

    def _has_model(self) -> bool:
        return bool(model_files(self.bundle.folder / "models"))

    def _starts(self, weights: Path) -> list[Path]:
        """The files in `weights` that the networks start from."""
        if "pretrain_dir" not in self.train:
            return [weights / "model.pt"]
        stages = self.train["all_stages"]
        return [
            Path(self._resolve("load_pretrain", pretrain_dir=str(weights), **stage))
            for stage in stages
        ]

    def _resolve(self, key: str, **settings: Any) -> Any:
        """What a setting of `train.json` is when it runs with these."""
        path = sys.path[:]
        try:
            # The parser resolves macros in place.
            parser = ConfigParser(copy.deepcopy(self.train))
            parser.update(
                {"bundle_root": str(self.bundle.folder), **self._of_inference(), **settings}
            )
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

    def _train(self, version: Version, fine_tunes: bool) -> None:
        names = ["train.json", "fine_tune.json"] if fine_tunes else ["train.json"]
        configs = [str(self.bundle.folder / "configs" / name) for name in names] + [
            str(version.folder / "settings.json")
        ]
        command = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "training",
            "--config_file",
            str(configs),
        ]
        command += ["--bundle_root", str(self.bundle.folder)]
        file = version.folder / "training.log"
        logger.info("%s trains %s; its output: %s", self.bundle.name, version.name, file)
        with file.open("w") as output:
            status = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                cwd=self.bundle.folder,
                check=False,
                preexec_fn=die_with_parent,
            ).returncode
        if status != 0:
            said = [
                line.removeprefix("error: ")
                for line in file.read_text().splitlines()
                if line.startswith("error: ")
            ]
            raise InputError(
                f"model {self.bundle.name}: the training ended early ({said[-1] if said else f'status {status}'}), the "
                f"model in use stays: see {file}."
            )

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
