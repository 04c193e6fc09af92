"""Count clicked voxels more than others in a loss, so that a network follows clicks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines.utils import default_prepare_batch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from liverseg.errors import InputError


class ClickLoss(nn.Module):
    """Add a cross entropy at clicks to a loss: loss(p, g) + weight · Σ w_v · CE(p_v, g_v) / Σ w_v.

    w_v is how much of a click there is in voxel v, from 0 to 1.

    A click covers some dozen voxels of millions, and where errors are thin it tells little else, so
    a network that learns from few scans can leave clicks alone at no cost to a Dice or a mean cross
    entropy. The second term is 0 where nothing was clicked.

    Args:
        loss: of logits (B, C, H, W, D) and class indices (B, 1, H, W, D).
        weight: of the cross entropy at clicks, 0 or more; 0 leaves `loss` alone.

    Raises:
        InputError: for a negative weight.
    """

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise InputError(
                f"click_weight is {weight}, expected 0 or more: set it to "
                "0.5, or to 0 to leave it out."
            )
        self.loss, self.weight = loss, float(weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, C, H, W, D) and what `label_and_clicks` returns."""
        label, clicks = target[:, :1], target[:, 1].float()
        loss: Tensor = self.loss(logits, label)
        if not self.weight or not clicks.any():
            return loss
        wrong = cross_entropy(logits.float(), label[:, 0].long(), reduction="none")
        return loss + self.weight * (clicks * wrong).sum() / clicks.sum()


def label_and_clicks(
    batchdata: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return a trainer's `prepare_batch` for `ClickLoss`.

    Args:
        batchdata: `image` (B, 1 + C, H, W, D), the scan and the clicks of each class, and `label`
            (B, 1, H, W, D).
        args: `device` and `non_blocking` of MONAI's `default_prepare_batch`.
        kwargs: more for `Tensor.to`.

    Returns:
        the image, and the label with the largest click of any class as its second channel (B, 2, H,
        W, D).
    """
    image, label = default_prepare_batch(dict(batchdata), *args, **kwargs)  # type: ignore[misc]
    return image, torch.cat([label, image[:, 1:].amax(1, keepdim=True)], 1)  # type: ignore[list-item]
