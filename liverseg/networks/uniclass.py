"""One network per organ, merged into one segmentation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks.container import NetworkContainer


class UniclassNetworks(NetworkContainer):
    """Two-class networks, one per organ, as one network of background and all organs.

    The uniclass alternative of Furtado n.d. The logit of organ k is the margin of its own network,
    foreground minus background, and that of the background is 0. So the largest logit belongs to
    the organ of the largest margin above zero. With two classes the margin m is the probability 1 /
    (1 + exp(−m)), so this is the organ of highest probability, where any exceeds 0.5.

    Args:
        networks: for each organ, in the order of the mask's values 1, 2, …, its name and its
            network, which maps (B, C, H, W) to logits (B, 2, H, W) of background and organ.

    Raises:
        InputError: when there is no network.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise InputError(
                "networks: found none, expected one for each organ: name at least one."
            )
        self.networks = nn.ModuleDict(networks)

    def parts(self) -> dict[str, nn.Module]:
        """Return the networks by organ."""
        return dict(self.networks.items())

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, 1 + number of organs, H, W)."""
        margins = []
        for network in self.networks.values():
            background, organ = network(x).split(1, dim=1)
            margins.append(organ - background)
        return torch.cat([torch.zeros_like(margins[0]), torch.cat(margins, dim=1)], dim=1)
