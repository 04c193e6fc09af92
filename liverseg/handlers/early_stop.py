"""End a training that gets no better."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class EarlyStop:
    """Stop at a validation when the best model is at least `patience` epochs old, on every rank.

    Ignite's `EarlyStopping` counts validations, and in a resumed training from 0 again.

    Args:
        patience: in epochs.
        evaluator: the validation engine.
    """

    def __init__(self, patience: int, evaluator: Engine) -> None:
        self.patience = patience
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Act after every epoch of `engine`, the trainer, whose state knows the best epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Stop if the time has come."""
        state: Any = engine.state
        validated = self.evaluator.state.epoch == state.epoch
        if validated and state.epoch - state.best_metric_epoch >= self.patience:
            logger.info("Stopping early: the best model is of epoch %d.", state.best_metric_epoch)
            engine.terminate()
