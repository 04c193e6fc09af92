"""Train a bundle on the labels of the studies, and publish what is better than the model in use."""

from __future__ import annotations

import copy
import json
import logging
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

from lib.bundle import Bundle
from lib.train.options import read_options
from lib.train.progress import progress
from lib.train.publishing import publish_if_better
from lib.train.scans import check_classes, items, patient, read_validation, split
from liverseg.chain import die_with_parent
from liverseg.errors import InputError, message
from liverseg.settings import reference
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

# Of a training from scratch: those of `train.json` are for large data sets.
EPOCHS = 50


class Retraining(TrainTask):
    """The training of one bundle: runs its `train.json` in other processes, into a new version.

    A training that starts from a model also has the bundle's `fine_tune.json`, if there is one.

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
        # The default of each setting that is one of the losses.
        self.losses = {
            key: refers[1]
            for key, value in self.train.items()
            if (refers := reference(value)) and refers[0] == "losses"
        }
        # What clients get their masks with, such as `spacing`, is trained with.
        self.retrain_configs = {
            key: bundle.config[key] for key in bundle.config.get("retrain_configs", ())
        }
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
        version, validation = self.bundle.metadata.get("version"), self.validation_file
        return {**super().info(), "version": version, "validation": read_validation(validation)}

    def config(self) -> dict[str, Any]:
        """The options; of a list, the first is the default."""
        losses = self.train.get("losses", {})
        choices = {
            key: [first, *(name for name in losses if name != first)]
            for key, first in self.losses.items()
        }
        return {
            "device": device_list(),
            "pretrained": True,
            **self.defaults[self._has_model()],
            "val_split": 0.2,
            **choices,
        }

    def options(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each option for what a client chose.

        Raises:
            InputError: for a value that is none.
        """
        chosen = read_options(self.bundle.name, self.config(), request)
        # Clients send back what they were shown, which is for a model to start from.
        has_model = self._has_model()
        shown, own = self.defaults[has_model], self.defaults[has_model and chosen["pretrained"]]
        chosen |= {key: own[key] for key, value in shown.items() if chosen[key] == value}
        return {**chosen, **self.bundle.device(chosen)}

    def check(
        self, request: Mapping[str, Any], datastore: Datastore
    ) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Return options, and the scans of each kind by the names in `version.json`.

        The patients that validate are drawn if there are none yet.

        Raises:
            InputError: as `options`, for too few labels, and for weights in use that no network can
                start from.
        """
        options = self.options(request)
        labelled = {name: patient(datastore, name) for name in datastore.get_labeled_images()}
        training, validation, left_out = split(self.validation_file, labelled, options["val_split"])
        if options["pretrained"] and self._has_model():
            starts = self._starts(weights_in_use(self.bundle.folder))
            missing = [file for file in starts if not file.is_file()]
            if missing:
                raise InputError(
                    f"model {self.bundle.name}: found no {', '.join(map(str, missing))}, expected "
                    "the weights of each network to start from: copy them there, or train with "
                    "pretrained false."
                )
        return options, {"training": training, "validation": validation, "left_out": left_out}

    def check_labels(self, scans: Mapping[str, Collection[str]], datastore: Datastore) -> None:
        """Refuse scans as `check` returns them, if their labels lack a class.

        Raises:
            InputError: for it, and as `items`.
        """
        for what in ("training", "validation"):
            check_classes(what, datastore, scans[what], self._classes(), self.known)

    def stats(self) -> dict[str, Any]:
        """Return how far the newest training is; nothing before the first."""
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
                self.check_labels(scans, datastore)
                self._write_settings(version, options, datastore, fine_tunes)
                self._train(version, fine_tunes)
                version = publish_if_better(folder, version.update(state="evaluating"))
            except Exception as error:
                reason = message(error) or f"{type(error).__name__}: {error}".splitlines()[0]
                find_version(folder, version.name).update(
                    state="failed", reason=reason, end_ts=int(time.time())
                )
                raise
            finally:
                # Several times the size of the weights and of no use any more; a cancelled training
                # leaves them too.
                ended = [one.folder for one in list_versions(folder) if one.state not in RUNNING]
                for checkpoint in (file for one in ended for file in one.rglob("checkpoint.pt")):
                    checkpoint.unlink()
        logger.info(
            "%s %s: %s: %s", self.bundle.name, version.name, version.state, version.record["reason"]
        )
        return self.stats()

    def _write_settings(
        self, version: Version, options: Mapping[str, Any], datastore: Datastore, fine_tunes: bool
    ) -> None:
        """Write what differs from `train.json` and `fine_tune.json` as one more config."""
        classes = self._classes()
        lists = {
            section: items(
                datastore, version.record[section], classes, version.folder / "labels", self.known
            )
            for section in ("training", "validation")
        }
        start: dict[str, Any] = {}
        if options["pretrained"] and version.record["parent"]:
            weights = find_version(self.bundle.folder, version.record["parent"]).folder
            if "pretrain_dir" in self.train:
                start["pretrain_dir"] = str(weights)
            else:
                start["load_pretrain"] = str(weights / "model.pt")
        if not fine_tunes:
            start["val_interval"] = min(self.train["val_interval"], options["max_epochs"])
        settings = {
            **self.retrain_configs,
            "datalist": str(version.folder / "datalist.json"),
            "classes": {name: [index] for name, index in classes.items()},
            "ckpt_dir": str(version.folder),
            "output_dir": str(version.folder / "training"),
            "max_epochs": options["max_epochs"],
            "learning_rate": options["learning_rate"],
            "device": options["device"],
            **{key: f"@losses#{options[key]}" for key in self.losses},
            **start,
        }
        for name, content in {"datalist": lists, "settings": settings}.items():
            (version.folder / f"{name}.json").write_text(json.dumps(content, indent=1))

    def _classes(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._resolve("classes"))}

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
        """Resolve a setting of `train.json` with these settings."""
        path = sys.path[:]
        try:
            # The parser resolves macros in place.
            parser = ConfigParser(copy.deepcopy(self.train))
            parser.update(
                {"bundle_root": str(self.bundle.folder), **self.retrain_configs, **settings}
            )
            return parser.get_parsed_content(key)
        finally:
            sys.path[:] = path

    def _train(self, version: Version, fine_tunes: bool) -> None:
        names = ["train.json", "fine_tune.json"] if fine_tunes else ["train.json"]
        configs = [str(self.bundle.folder / "configs" / name) for name in names]
        configs.append(str(version.folder / "settings.json"))
        command = [sys.executable, "-m", "monai.bundle", "run", "training"]
        command += ["--config_file", str(configs), "--bundle_root", str(self.bundle.folder)]
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
            errors = [
                line.removeprefix("error: ")
                for line in file.read_text().splitlines()
                if line.startswith("error: ")
            ]
            raise InputError(
                f"model {self.bundle.name}: the training ended early "
                f"({errors[-1] if errors else f'status {status}'}), the model in use stays: see "
                f"{file}."
            )
