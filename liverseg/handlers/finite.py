"""End a training whose numbers are NaN or infinite, before they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ignite.engine import Engine

from liverseg.errors import InputError


def check_iteration(engine: Engine, network: torch.nn.Module) -> None:
    """Check the loss and the weights of `network` after an iteration of `engine`, the trainer.

    Ignite's `TerminateOnNan` ends the run as if it were done, and looks at the loss alone.

    Raises:
        InputError: on every rank in the same iteration, as gradients carry the numbers to all.
    """
    loss = engine.state.output["loss"].detach()  # type: ignore[index,call-overload]
    weights = {name: value.detach() for name, value in network.named_parameters()}
    # Asked for at once, as each answer waits for the GPU.
    bounds = torch.stack(
        [loss.mean(), *(bound for value in weights.values() for bound in value.aminmax())]
    )
    if not bounds.isfinite().all():
        _check(engine, {"loss": loss, **weights})


def check_saved(engine: Engine, network: torch.nn.Module) -> None:
    """Check all of `network` that is saved after an epoch, the running statistics too."""
    _check(engine, network.state_dict())


def _check(engine: Engine, numbers: Mapping[str, torch.Tensor]) -> None:
    for name, value in numbers.items():
        if not value.isfinite().all():
            raise InputError(
                f"{name}: found NaN or infinity after iteration {engine.state.iteration} of the "
                f"training (epoch {engine.state.epoch}), expected finite numbers: try --amp false, "
                "a larger spatial_size or a smaller learning_rate."
            )
