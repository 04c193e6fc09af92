"""Keep the best and the last state of a training, whole, whatever happens while they are written."""

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

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch.nn.parallel import DistributedDataParallel

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.networks.weights import check_finite, read_checkpoint

logger = logging.getLogger(__name__)

STATE = ("epoch", "iteration", "best_metric", "best_metric_epoch")


class Checkpoints:
    """Write `checkpoint.pt` after every epoch and `model.pt` after every epoch that beats the best validation metric.

    `checkpoint.pt` holds model, optimiser, scheduler, epoch and the best metric so far; a run with `resume` goes on
    from it. `model.pt` is the network's plain state dict, and `model.json` beside it says which metric it reached on
    which validation scans. A model of an earlier run is only replaced by a better one on the same validation scans; on
    other scans the two cannot be compared, and the earlier one is kept under the time it was made.

    With `ema_momentum` the weights that `evaluator` validates and `model.pt` holds are the exponential moving average
    w ← (1 − m)·w + m·θ of the weights θ after every iteration (Tarvainen and Valpola, "Mean teachers are better role
    models", NeurIPS 2017, with α = 1 − m), from the weights that the training starts with; the buffers are those of the
    network. `checkpoint.pt` holds both.

    A loss, a weight or a validation metric that is NaN or infinite ends the training before anything is saved of it.

    Put it after the `ValidationHandler` in the trainer's handlers: it acts on the validation of the same epoch.

    Args:
        ckpt_dir: the folder for the three files.
        network: the network that trains, or its DistributedDataParallel wrapper.
        optimizer: its optimiser.
        lr_scheduler: its learning-rate scheduler.
        evaluator: the validation engine.
        validation_data: the items of the validation set, `{"image": …}`, known by file name and size.
        key_metric: the metric of `evaluator` to compare, larger is better.
        resume: go on from `checkpoint.pt` where there is one.
        validate_start: validate before the first epoch too, for a training that starts from weights: they are epoch 0,
            and stay `model.pt` where no epoch beats them.
        patience: stop at a validation when the best model is at least this many epochs old; 0 never stops.
        ema_momentum: m above, at least 0 and below 1. The average spans about 1 / m iterations, so a training needs
            several times as many; 0 averages nothing.

    Raises:
        InputError: for another `ema_momentum`, a folder that cannot be written, a checkpoint of another network, made
            without the average or not found by every process, a disk that is full, or numbers that are not finite.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Engine,
        validation_data: Sequence[dict[str, Any]],
        key_metric: str = "val_mean_dice",
        resume: bool = False,
        validate_start: bool = False,
        patience: int = 0,
        ema_momentum: float = 0,
    ) -> None:
        self.last_path = Path(ckpt_dir) / "checkpoint.pt"
        self.best_path = Path(ckpt_dir) / "model.pt"
        self.record_path = Path(ckpt_dir) / "model.json"
        self.network = network.module if isinstance(network, DistributedDataParallel) else network
        self.parts = {"model": self.network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.evaluator = evaluator
        # A digest and not the names, which may tell of patients: this record goes out with the model.
        images = [Path(str(item["image"])) for item in validation_data]
        known_by = sorted(f"{image.name} {image.stat().st_size}" for image in images)
        self.validation_sha256 = hashlib.sha256("\n".join(known_by).encode()).hexdigest()
        self.key_metric = key_metric
        self.resume = resume
        self.validate_start = validate_start
        self.patience = patience
        self.bar = float("-inf")
        if not 0 <= ema_momentum < 1:
            raise InputError(
                f"ema_momentum is {ema_momentum}, expected at least 0 and below 1: set it to 0.001, or to 0 for no "
                "average."
            )
        self.ema = EMAHandler(self.network, ema_momentum) if ema_momentum else None
        self.kept_network = self.ema.ema_model if self.ema else self.network
        if self.ema:
            self.parts["ema_model"] = self.kept_network

    def attach(self, engine: Engine) -> None:
        """Act at the start, after every iteration and after every epoch of `engine`, the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        if self.ema:
            self.ema.attach(engine)
            self.evaluator.network = self.kept_network  # type: ignore[attr-defined]
            self.evaluator.add_event_handler(Events.STARTED, self._share_buffers)

    def start(self, engine: Engine) -> None:
        """Load the last checkpoint if asked to, and find the metric that a new `model.pt` has to beat.

        Where it is to be beaten by weights that the training starts from, these are validated; a resumed training has
        that behind it.
        """
        state: Any = engine.state
        check_writable(self.last_path.parent)
        state.best_metric, state.best_metric_epoch = float("-inf"), 0
        if self.ema:
            # Weights may have been loaded since the copy was made.
            self.kept_network.load_state_dict(self.network.state_dict())
        if self.resume and self.last_path.is_file():
            self._load(state)
        elif self.resume:
            logger.warning(
                "%s: nothing to resume from, so the training starts at epoch 1.", self.last_path
            )
        first = int(idist.broadcast(state.epoch))  # type: ignore[arg-type]
        if state.epoch != first:
            raise InputError(
                f"{self.last_path}: found the checkpoint of epoch {state.epoch} in process {state.rank} and of {first} "
                "in the first one (0 is none), expected the same: put ckpt_dir on storage that all machines share."
            )
        self.bar = max(state.best_metric, self._recorded_metric())
        if self.validate_start and state.epoch == 0:
            self.evaluator.run(0)  # type: ignore[arg-type]
            self._keep_if_best(state)

    def iteration_completed(self, engine: Engine) -> None:
        """Stop at a loss or a weight that is not finite, on every rank: gradients carry it to all in one iteration."""
        loss = engine.state.output["loss"].detach()  # type: ignore[index,call-overload]
        weights = {name: value.detach() for name, value in self.network.named_parameters()}
        # Asked for at once, as each answer waits for the GPU.
        bounds = torch.stack(
            [loss.mean(), *(bound for value in weights.values() for bound in value.aminmax())]
        )
        if not bounds.isfinite().all():
            raise self._diverged(engine, {"loss": loss, **weights})

    def epoch_completed(self, engine: Engine) -> None:
        """Save what this epoch reached, on rank 0 only; stop when patience has run out, on every rank."""
        state: Any = engine.state
        model = self.kept_network.state_dict()
        if not all(value.isfinite().all() for value in model.values()):
            raise self._diverged(engine, model)
        validated = self._keep_if_best(state)
        if state.rank == 0:
            checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
            checkpoint |= {name: getattr(state, name) for name in STATE}
            with atomic_write(self.last_path) as file:
                torch.save(checkpoint, file)
        if validated and self.patience and state.epoch - state.best_metric_epoch >= self.patience:
            logger.info(
                "Stopping early: the best %s was at epoch %d.",
                self.key_metric,
                state.best_metric_epoch,
            )
            engine.terminate()

    def _keep_if_best(self, state: Any) -> bool:
        """Write `model.pt` if the epoch was validated and beats all before; returns whether it was validated."""
        if self.evaluator.state.epoch != state.epoch or not self.evaluator.state.metrics:
            return False
        metric = float(self.evaluator.state.metrics[self.key_metric])
        if math.isnan(metric):
            raise InputError(
                f"{self.key_metric}: found NaN at epoch {state.epoch}, expected a number: hold out scans in whose "
                "labels the classes occur."
            )
        if metric > state.best_metric:
            state.best_metric, state.best_metric_epoch = metric, state.epoch
        if metric > self.bar:
            self.bar = metric
            if state.rank == 0:
                self._save_best(state.epoch)
        return True

    def _diverged(self, engine: Engine, numbers: Mapping[str, torch.Tensor]) -> InputError:
        name = next(name for name, value in numbers.items() if not value.isfinite().all())
        return InputError(
            f"{name}: found NaN or infinity after iteration {engine.state.iteration} of the training (epoch "
            f"{engine.state.epoch}), expected finite numbers: try --amp false, a larger spatial_size or a smaller "
            "learning_rate."
        )

    def _share_buffers(self) -> None:
        # As DistributedDataParallel does: every rank validates the model that rank 0 saves.
        if dist.is_available() and dist.is_initialized():
            for buffer in self.kept_network.buffers():
                dist.broadcast(buffer, 0)

    def _save_best(self, epoch: int) -> None:
        record = self._record()
        if self.best_path.is_file() and record.get("validation_sha256") != self.validation_sha256:
            made = datetime.fromtimestamp(self.best_path.stat().st_mtime).strftime(
                "%Y-%m-%dT%H-%M-%S"
            )
            kept = self.best_path.with_name(f"model_{made}.pt")
            logger.info(
                "%s was validated on other scans, so it is kept as %s.", self.best_path, kept
            )
            os.replace(self.best_path, kept)
        model = self.kept_network.state_dict()
        with atomic_write(self.best_path) as file:
            torch.save(model, file)
        record = {
            self.key_metric: self.bar,
            "epoch": epoch,
            "validation_sha256": self.validation_sha256,
        }
        with atomic_write(self.record_path) as file:
            file.write(json.dumps(record, indent=1).encode())
        logger.info(
            "New best %s %.4f at epoch %d: %s", self.key_metric, self.bar, epoch, self.best_path
        )

    def _record(self) -> dict[str, Any]:
        return json.loads(self.record_path.read_text()) if self.record_path.is_file() else {}

    def _recorded_metric(self) -> float:
        record = self._record()
        if self.best_path.is_file() and record.get("validation_sha256") == self.validation_sha256:
            bar = float(record.get(self.key_metric, "-inf"))
            logger.info(
                "%s: its %s of %.4f on these scans is the one to beat.",
                self.best_path,
                self.key_metric,
                bar,
            )
            return bar
        return float("-inf")

    def _load(self, state: Any) -> None:
        checkpoint = read_checkpoint(self.last_path)
        try:
            if "ema_model" in checkpoint and not self.ema:
                raise KeyError("it holds an average, so set ema_momentum")
            for name in {"model", "ema_model"} & set(self.parts):
                check_finite(checkpoint[name], self.last_path)
            for name, part in self.parts.items():
                part.load_state_dict(checkpoint[name])
        except InputError:
            raise
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.last_path}: not a checkpoint of this network and optimiser ({str(error).splitlines()[0]}): "
                "resume with the settings it was made with, or without --resume."
            ) from error
        for name in STATE:
            setattr(state, name, checkpoint[name])
        # Ignite ends by iterations, and an epoch has others with another batch size or number of processes.
        state.iteration = state.epoch * state.epoch_length
        logger.info("Resuming after epoch %d from %s.", state.epoch, self.last_path)
