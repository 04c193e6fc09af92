"""End a training whose numbers are NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events

from liverseg.errors import InputError


class FiniteCheck:
    """Raise an error at a loss, weight or statistic that is NaN or infinite, before it is saved.

    Ignite's `TerminateOnNan` ends the run as if it were done, and looks at the loss alone.

    Args:
        network: the network that trains, without a wrapper.
        saved_network: the network that is saved: the same, or its average.

    Raises:
        InputError: on every rank in the same iteration, as gradients carry the numbers to all.
    """

    def __init__(self, network: torch.nn.Module, saved_network: torch.nn.Module) -> None:
        self.network = network
        self.saved_network = saved_network

    def attach(self, engine: Engine) -> None:
        """Check after every iteration and every epoch of `engine`, the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def iteration_completed(self, engine: Engine) -> None:
        """Check the loss and the weights."""
        loss = engine.state.output["loss"].detach()  # type: ignore[index,call-overload]
        weights = {name: value.detach() for name, value in self.network.named_parameters()}
        # Asked for at once, as each answer waits for the GPU.
        bounds = torch.stack(
            [loss.mean(), *(bound for value in weights.values() for bound in value.aminmax())]
        )
        if not bounds.isfinite().all():
            _check(engine, {"loss": loss, **weights})

    def epoch_completed(self, engine: Engine) -> None:
        """Check all that is saved, the running statistics too."""
        _check(engine, self.saved_network.state_dict())


def _check(engine: Engine, numbers: Mapping[str, torch.Tensor]) -> None:
    for name, value in numbers.items():
        if not value.isfinite().all():
            raise InputError(
                f"{name}: found NaN or infinity after iteration {engine.state.iteration} of the "
                f"training (epoch {engine.state.epoch}), expected finite numbers: try --amp false, "
                "a larger spatial_size or a smaller learning_rate."
            )
