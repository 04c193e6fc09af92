"""Validate and save an average of the weights instead of the weights."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

from liverseg.errors import InputError


class EMA(EMAHandler):
    """Average the loaded weights with Ignite's `EMAHandler`; `evaluator` validates the average.

    The average is w ← (1 − m)·w + m·θ of the weights θ after every iteration (Tarvainen and
    Valpola, "Mean teachers are better role models", NeurIPS 2017, with α = 1 − m); the buffers are
    those of the network.

    Args:
        network: the network that trains, or its DistributedDataParallel wrapper.
        momentum: m, above 0 and below 1.
        evaluator: the validation engine.

    Raises:
        InputError: for another momentum.
    """

    def __init__(self, network: torch.nn.Module, momentum: float, evaluator: Engine) -> None:
        if not 0 < momentum < 1:
            raise InputError(
                f"ema_momentum is {momentum}, expected at least 0 and below 1: set it to 0.001, or "
                "to 0 for no average."
            )
        super().__init__(network, momentum)
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Average after every iteration of `engine`, the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        super().attach(engine)
        self.evaluator.network = self.ema_model  # type: ignore[attr-defined]
        self.evaluator.add_event_handler(Events.STARTED, self.share_buffers)

    def start(self) -> None:
        """Begin with the weights of now: some may have been loaded since the copy was made."""
        self.ema_model.load_state_dict(self.model.state_dict())

    def share_buffers(self) -> None:
        """Send those of rank 0, so that every rank validates what rank 0 saves."""
        if dist.is_available() and dist.is_initialized():
            for buffer in self.ema_model.buffers():
                dist.broadcast(buffer, 0)
