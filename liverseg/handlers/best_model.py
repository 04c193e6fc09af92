"""Keep the model of the best validation, over all trainings in one folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from liverseg.errors import InputError
from liverseg.files import atomic_write, write_json

logger = logging.getLogger(__name__)


class BestModel:
    """Write `model.pt` when a validation beats all before, and `model.json`, its metric and scans.

    A model of an earlier training is only replaced by a better one on the same validation scans; on
    other scans the two cannot be compared, and the earlier one stays under the time it was made.
    Ignite's `Checkpoint` and MONAI's `CheckpointSaver` know no training but their own.

    Args:
        folder: for both files.
        network: the network whose plain state dict is saved, without a wrapper.
        evaluator: the validation engine.
        validation_data: as for `Checkpoints`.
        key_metric: as for `Checkpoints`.
        keep_best: False writes `model.pt` at every validation, so it is the last one's. Nothing is
            then chosen on the validation scans, as a study that reports on them needs it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        network: torch.nn.Module,
        evaluator: Engine,
        validation_data: Sequence[Mapping[str, Any]],
        key_metric: str,
        keep_best: bool = True,
    ) -> None:
        self.path = Path(folder) / "model.pt"
        self.record_path = self.path.with_suffix(".json")
        self.network = network
        self.evaluator = evaluator
        self.key_metric = key_metric
        self.keep_best = keep_best
        # A digest and not the names, which may tell of patients: this record goes out with the
        # model.
        images = [Path(str(item["image"])) for item in validation_data]
        known_by = sorted(f"{image.name} {image.stat().st_size}" for image in images)
        self.validation_sha256 = hashlib.sha256("\n".join(known_by).encode()).hexdigest()
        self.threshold = float("-inf")

    def start(self, best_metric: float) -> None:
        """Find the metric to beat: `best_metric` of this training, or that of the model there."""
        self.threshold = best_metric
        record = self._comparable_record() if self.keep_best else {}
        if self.key_metric in record:
            recorded = float(record[self.key_metric])
            logger.info(
                "%s: its %s of %.4f on these scans is the one to beat.",
                *(self.path, self.key_metric, recorded),
            )
            self.threshold = max(best_metric, recorded)

    def update(self, state: Any) -> None:
        """Compare the validation of the trainer's epoch, if there was one, and save the best model.

        Args:
            state: the trainer's; `best_metric` and `best_metric_epoch` in it become those of this
                training.

        Raises:
            InputError: for a metric that is NaN, and when the model cannot be saved.
        """
        metrics = self.evaluator.state.metrics
        if self.evaluator.state.epoch != state.epoch or not metrics:
            return
        metric = float(metrics[self.key_metric])
        if math.isnan(metric):
            raise InputError(
                f"{self.key_metric}: found NaN at epoch {state.epoch}, expected a number: hold out "
                "scans in whose labels the classes occur."
            )
        if metric > state.best_metric:
            state.best_metric, state.best_metric_epoch = metric, state.epoch
        if metric > self.threshold or not self.keep_best:
            self.threshold = metric
            if state.rank == 0:
                self._save(metric, state.epoch)

    def _save(self, metric: float, epoch: int) -> None:
        if self.path.is_file() and not self._comparable_record():
            made = datetime.fromtimestamp(self.path.stat().st_mtime)
            earlier = self.path.with_name(f"model_{made:%Y-%m-%dT%H-%M-%S}.pt")
            logger.info("%s was validated on other scans, so it stays as %s.", self.path, earlier)
            os.replace(self.path, earlier)
        model = self.network.state_dict()
        with atomic_write(self.path) as file:
            torch.save(model, file)
        record = {
            self.key_metric: metric,
            "epoch": epoch,
            "validation_sha256": self.validation_sha256,
        }
        write_json(self.record_path, record)
        word = "New best" if self.keep_best else "Last"
        logger.info("%s %s %.4f at epoch %d: %s", word, self.key_metric, metric, epoch, self.path)

    def _comparable_record(self) -> dict[str, Any]:
        """Return `model.json`, or nothing without a model that was validated on the same scans."""
        if not (self.path.is_file() and self.record_path.is_file()):
            return {}
        record = json.loads(self.record_path.read_text())
        return record if record.get("validation_sha256") == self.validation_sha256 else {}
