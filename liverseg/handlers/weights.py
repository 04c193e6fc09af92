"""Load a network's weights when a run starts, not when its config is read."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from liverseg.errors import InputError
from liverseg.networks import load_weights
from liverseg.networks.container import NetworkContainer


class WeightsCheckpointLoader:
    """Load `path` into `network` when the engine starts.

    Args:
        network: the network, or its DistributedDataParallel wrapper.
        path: a state dict, as `Checkpoints` writes `model.pt`, or one for each network of a
            `NetworkContainer`, by name; `None` loads nothing.
        freeze_norms: normalise by the running statistics that the batch norms have, and keep these,
            while the network trains on: few scans have others. Instance and group norms have none,
            so there it changes nothing.

    Raises:
        InputError: as `load_weights` raises it, for weights by name where there is only one
            network, and for norms to freeze without weights.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None,
        freeze_norms: bool = False,
    ) -> None:
        self.network = network.module if isinstance(network, DistributedDataParallel) else network
        self.path = path
        if freeze_norms and path is None:
            raise InputError(
                "freeze_norms: found no weights to start from, expected some whose statistics stay "
                "as they are: name them with --load_pretrain (--pretrain_dir where a bundle has "
                "several networks), or leave configs/fine_tune.json out."
            )
        for module in self.network.modules() if freeze_norms else ():
            if isinstance(module, _BatchNorm):
                # Trainers set the whole network to training in each iteration.
                module.register_forward_pre_hook(_evaluate)

    def attach(self, engine: Engine) -> None:
        """Load at the start of `engine`."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the weights, if there are any to load."""
        if self.path is None:
            return
        if isinstance(self.network, NetworkContainer):
            self.network.load_weights(self.path)
        elif isinstance(self.path, Mapping):
            raise InputError(
                f"found weights for {', '.join(self.path)}, expected one path "
                f"for {type(self.network).__name__}: give one path, or use the "
                "config of several networks."
            )
        else:
            load_weights(self.network, self.path)


def _evaluate(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    module.eval()
