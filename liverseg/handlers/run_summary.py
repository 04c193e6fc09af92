"""Write what a training reached, for people as a curve and for scripts as one line of JSON."""

from __future__ import annotations

import csv
import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events

from liverseg.files import check_writable, write_text
from liverseg.handlers.provenance import package_versions


class RunSummary:
    """Write `history.csv` after every epoch, and at the end `metrics.json`, printed as a line too.

    Put it after `Checkpoints`, which keeps the best metric in the engine's state. `history.csv`
    holds epoch, iteration, loss (mean over the epoch), learning_rate, the validation metrics where
    the epoch was validated, and seconds since the start. Epoch 0, without a loss, are the weights
    that a training starts from, where `Checkpoints` validates them. A resumed run appends to it.

    Args:
        output_dir: the folder for both files.
        evaluator: the validation engine.
        key_metric: the metric of `evaluator` that `Checkpoints` compares.
        more_metrics: others of `evaluator`, for `history.csv` alone.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        evaluator: Engine,
        key_metric: str = "val_mean_dice",
        more_metrics: Sequence[str] = (),
    ) -> None:
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.key_metric = key_metric
        self.metrics = [key_metric, *more_metrics]
        self.losses: list[float] = []
        self.started = 0.0
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Act on the events of `engine`, the trainer, on rank 0 only."""
        if engine.state.rank == 0:  # type: ignore[attr-defined]
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
            engine.add_event_handler(Events.COMPLETED, self.completed)

    def start(self, engine: Engine) -> None:
        """Take up the history of the run that this one resumes."""
        check_writable(self.output_dir)
        self.started = time.monotonic()
        history = self.output_dir / "history.csv"
        if engine.state.epoch > 0 and history.is_file():
            with history.open(newline="") as file:
                # As text, which is written again as it was.
                rows = csv.DictReader(file)
                self.rows = [row for row in rows if int(row["epoch"]) <= engine.state.epoch]
            self.started -= float(self.rows[-1]["seconds"]) if self.rows else 0
        elif engine.state.epoch == 0 and self.evaluator.state.metrics:
            self._add_row(engine)

    def iteration_completed(self, engine: Engine) -> None:
        """Collect the loss."""
        self.losses.append(engine.state.output["loss"].item())  # type: ignore[index,call-overload]

    def epoch_completed(self, engine: Engine) -> None:
        """Add a line to the history."""
        self._add_row(engine)
        self.losses = []
        write_text(self.output_dir / "history.csv", pd.DataFrame(self.rows).to_csv(index=False))

    def _add_row(self, engine: Engine) -> None:
        validated = self.evaluator.state.epoch == engine.state.epoch
        metrics = self.evaluator.state.metrics if validated else {}
        self.rows.append(
            {
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "loss": float(np.mean(self.losses)) if self.losses else None,
                "learning_rate": engine.optimizer.param_groups[0]["lr"],  # type: ignore[attr-defined]
                **{name: metrics[name] if validated else None for name in self.metrics},
                "seconds": round(time.monotonic() - self.started, 2),
            }
        )

    def completed(self, engine: Engine) -> None:
        """Write and print `metrics.json`."""
        best = engine.state.best_metric  # type: ignore[attr-defined]
        memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        gpu_gb = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        summary = {
            f"best_{self.key_metric}": best if best > float("-inf") else None,
            "best_epoch": engine.state.best_metric_epoch,  # type: ignore[attr-defined]
            "epochs": engine.state.epoch,
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_gb": round(memory_gb, 2),
            "peak_gpu_memory_gb": gpu_gb and round(gpu_gb, 2),
            "versions": package_versions(),
        }
        line = json.dumps(summary)
        write_text(self.output_dir / "metrics.json", f"{line}\n")
        print(line, flush=True)
