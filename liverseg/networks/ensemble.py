"""Several networks for the same classes that vote."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks.container import NetworkContainer


class NetworkEnsemble(NetworkContainer):
    """Networks of the same classes, whose mean probability decides (soft voting).

    The ensembles on DeepLabV3 that Furtado 2021 leaves to do. The mean is over probabilities, not
    over logits, so that no network outvotes the others by being surer.

    Args:
        networks: by name; each maps (B, C, …) to logits (B, num_classes, …). They are copied, so
            that one network may stand for several members with weights of their own.

    Raises:
        InputError: when there is no network.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise InputError(
                "networks: found none, expected the members of the ensemble: name at least one."
            )
        self.networks = nn.ModuleDict(
            {name: copy.deepcopy(network) for name, network in networks.items()}
        )

    def parts(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        return dict(self.networks.items())

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, …) to logits (B, num_classes, …), log of the mean probability."""
        votes = torch.stack([network(x).log_softmax(1) for network in self.networks.values()])
        return votes.logsumexp(0) - math.log(len(self.networks))
