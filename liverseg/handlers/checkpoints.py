"""Keep the best and the last state of a training, and go on from the last."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from torch.nn.parallel import DistributedDataParallel

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.handlers.best_model import BestModel
from liverseg.handlers.ema import EMA
from liverseg.handlers.finite import check_iteration, check_saved
from liverseg.networks.weights import check_finite, read_checkpoint

logger = logging.getLogger(__name__)

STATE = ("epoch", "iteration", "best_metric", "best_metric_epoch")


class Checkpoints:
    """Write `checkpoint.pt` after every epoch, and `model.pt` after every one that is the best.

    `checkpoint.pt` holds model, optimiser, scheduler, epoch and the best metric so far; a run with
    `resume` goes on from it. `model.pt` and the `model.json` beside it are those of `BestModel`.
    With `ema_momentum` the weights that `evaluator` validates and `model.pt` holds are the average
    of `EMA`; `checkpoint.pt` holds both.

    A loss, a weight or a validation metric that is NaN or infinite ends the training before
    anything is saved of it.

    Put it after the `ValidationHandler` in the trainer's handlers: it acts on the validation of the
    same epoch, and validates the last one where the handler does not.

    Args:
        ckpt_dir: the folder for the three files.
        network: the network that trains, or its DistributedDataParallel wrapper.
        optimizer: its optimiser.
        lr_scheduler: its learning-rate scheduler.
        evaluator: the validation engine.
        validation_data: the items of the validation set, `{"image": …}`, known by file name and
            size.
        key_metric: the metric of `evaluator` to compare, larger is better.
        resume: go on from `checkpoint.pt` where there is one.
        validate_start: validate before the first epoch too, for a training that starts from
            weights: they are epoch 0, and stay `model.pt` where no epoch beats them.
        patience: stop at a validation when the best model is at least this many epochs old; 0 never
            stops.
        ema_momentum: m of `EMA`, at least 0 and below 1. The average spans about 1 / m iterations,
            so a training needs several times as many; 0 averages nothing.

        keep_best: `model.pt` is the best validation's; False makes it the last one's.

    Raises:
        InputError: for another `ema_momentum`, a folder that cannot be written, a checkpoint of
            another network, made without the average or not found by every process, a disk that is
            full, or numbers that are not finite.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Engine,
        validation_data: Sequence[Mapping[str, Any]],
        key_metric: str = "val_mean_dice",
        resume: bool = False,
        validate_start: bool = False,
        patience: int = 0,
        ema_momentum: float = 0,
        keep_best: bool = True,
    ) -> None:
        self.path = Path(ckpt_dir) / "checkpoint.pt"
        self.evaluator = evaluator
        self.resume = resume
        self.validate_start = validate_start
        self.network = network.module if isinstance(network, DistributedDataParallel) else network
        self.ema = EMA(self.network, ema_momentum, evaluator) if ema_momentum else None
        self.saved_network = self.ema.ema_model if self.ema else self.network
        self.best_model = BestModel(
            ckpt_dir, self.saved_network, evaluator, validation_data, key_metric, keep_best
        )
        self.patience = patience
        self.parts = {"model": self.network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        if self.ema:
            self.parts["ema_model"] = self.saved_network

    def attach(self, engine: Engine) -> None:
        """Act at the start, every iteration and every epoch of `engine`, the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, check_iteration, self.network)
        engine.add_event_handler(Events.EPOCH_COMPLETED, check_saved, self.saved_network)
        if self.ema:
            self.ema.attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Engine) -> None:
        """Load the last checkpoint if asked to, and find the metric that a new model has to beat.

        Where it is to be beaten by weights that the training starts from, these are validated; a
        resumed training has that behind it.
        """
        state: Any = engine.state
        check_writable(self.path.parent)
        state.best_metric, state.best_metric_epoch = float("-inf"), 0
        if self.resume and self.path.is_file():
            self._load(state)
        elif self.resume:
            logger.warning(
                "%s: nothing to resume from, so the training starts at epoch 1.", self.path
            )
        first = int(idist.broadcast(state.epoch))  # type: ignore[arg-type]
        if state.epoch != first:
            raise InputError(
                f"{self.path}: found the checkpoint of epoch {state.epoch} in process {state.rank} "
                f"and of {first} in the first one (0 is none), expected the same: put ckpt_dir on "
                "storage that all machines share."
            )
        self.best_model.start(state.best_metric)
        if self.validate_start and state.epoch == 0:
            self.evaluator.run(0)  # type: ignore[arg-type]
            self.best_model.update(state)

    def epoch_completed(self, engine: Engine) -> None:
        """Validate the last epoch, save this one on rank 0 only, stop where nothing gets better."""
        state: Any = engine.state
        if state.epoch == state.max_epochs and self.evaluator.state.epoch != state.epoch:
            self.evaluator.run(state.epoch)
        self.best_model.update(state)
        if state.rank == 0:
            checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
            checkpoint |= {name: getattr(state, name) for name in STATE}
            # MONAI's CheckpointSaver writes in place, and a full disk would leave half of a file;
            # Ignite's DiskSaver lets all users read it, whatever the umask.
            with atomic_write(self.path) as file:
                torch.save(checkpoint, file)
        # Ignite's `EarlyStopping` counts validations, and in a resumed training from 0 again.
        validated = self.patience and self.evaluator.state.epoch == state.epoch
        if validated and state.epoch - state.best_metric_epoch >= self.patience:
            logger.info("Stopping early: the best model is of epoch %d.", state.best_metric_epoch)
            engine.terminate()

    def _load(self, state: Any) -> None:
        checkpoint = read_checkpoint(self.path)
        try:
            if "ema_model" in checkpoint and not self.ema:
                raise KeyError("it holds an average, so set ema_momentum")
            for name in {"model", "ema_model"} & set(self.parts):
                check_finite(checkpoint[name], self.path)
            Checkpoint.load_objects(self.parts, checkpoint)
        except InputError:
            raise
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.path}: not a checkpoint of this network and optimiser "
                f"({str(error).splitlines()[0]}): resume with the settings it was made with, or "
                "without --resume."
            ) from error
        for name in STATE:
            setattr(state, name, checkpoint[name])
        # Ignite ends by iterations, and an epoch has others with another batch size or number of
        # processes.
        state.iteration = state.epoch * state.epoch_length
        logger.info("Resuming after epoch %d from %s.", state.epoch, self.path)
