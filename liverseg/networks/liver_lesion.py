"""A network for the liver and one for the lesions in it, merged into one segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liverseg.networks.container import NetworkContainer


class LiverLesionNetworks(NetworkContainer):
    """Join two two-class networks to one of 0 background, 1 liver and 2 lesion.

    Lesions are inside the liver only.

    `lesions_in_liver` merges their margins, foreground minus background logit.

    Both networks see the whole image here, as export and checks of a network need it.
    `TwoStageInferer` runs them on volumes, the second in the liver that the first has found.

    Args:
        liver: maps (B, C, H, W) to logits (B, 2, H, W) of background and liver.
        lesion: maps (B, C, H, W) to logits (B, 2, H, W) of no lesion and lesion.
    """

    def __init__(self, liver: nn.Module, lesion: nn.Module) -> None:
        super().__init__()
        self.liver = liver
        self.lesion = lesion

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, 3, H, W)."""
        outside, inside = self.liver(x).split(1, dim=1)
        healthy, diseased = self.lesion(x).split(1, dim=1)
        return lesions_in_liver(inside - outside, diseased - healthy)


def lesions_in_liver(liver: Tensor, lesion: Tensor) -> Tensor:
    """Return logits (B, 3, …) of background, liver and lesion from two margins (B, 1, …):

        background = −liver,  liver = min(liver, −lesion),  lesion = min(liver, lesion).

    That of a class is the least margin of all that must hold for it. So the class of largest logit
    is background where the liver's margin is negative, whatever that of the lesion is there, and
    elsewhere what the lesion's margin says.
    """
    return torch.cat([-liver, torch.minimum(liver, -lesion), torch.minimum(liver, lesion)], dim=1)
