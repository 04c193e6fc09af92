"""Binary cross entropy and Dice over the decoder's levels, one fading into the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liverseg.errors import InputError


class LevelRampLoss(nn.Module):
    """Sum ((N − i) · BCE_i + i · Dice_i) / N over the decoder levels i = 2 … N of a binary target.

    The multi-level loss of IJIES 2022 (section 3.6, eqs. 4 to 6). Level 1 is the bottleneck, which
    has no side output, level 2 the deepest decoder stage, level N full resolution, where Dice alone
    is left. The division by N is ours: it gives the last level, and with it the loss without
    levels, the weight 1.

    BCE is the mean over all pixels, from logits. Dice is 1 − (2 Σŷy + 1) / (Σŷ + Σy + 1), the sums
    over the batch.

    The label of level i is the maximum over the 2^(N−i) x 2^(N−i) pixels that each of its pixels
    covers, at the border those inside the image. Taking the majority instead would erase lesions
    narrower than about half such a square from the deep levels and teach them that nothing is
    there; too large a label there is corrected by the later levels.

    Args:
        levels: False takes the full-resolution output alone, its term at i = N.
    """

    def __init__(self, levels: bool = True) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss, a scalar in float32 or the type of float64 logits.

        Args:
            input: logits of the target: the side outputs from level N down to 2, (B, 1, h, w) with
                h and w those of the label divided by 2^(N−i) and rounded up, as `TuningNet` gives
                them in training; or the full-resolution output alone, (B, 1, H, W).
            target: class indices 0 and 1 of any dtype, (B, 1, H, W).

        Raises:
            InputError: for a side output of another shape, or a target with other values.
        """
        sides = [input] if isinstance(input, Tensor) else list(input)
        low, high = (float(value) for value in target.aminmax())
        if low < 0 or high > 1:
            raise InputError(
                f"label: found values from {low:g} to {high:g}, expected the class indices "
                "0 and 1: name two classes."
            )
        if not self.levels:
            sides = sides[:1]
        last = len(sides) + 1
        total = sides[0].new_zeros((), dtype=torch.promote_types(sides[0].dtype, torch.float32))
        for level, side in zip(range(last, 1, -1), sides, strict=True):
            logits = side.to(total.dtype)
            factor = 2 ** (last - level)
            label = F.max_pool2d(target.to(total.dtype), factor, ceil_mode=True)
            if logits.shape != label.shape:
                raise InputError(
                    f"side output {last - level + 1} of {len(sides)}: found shape "
                    f"{tuple(side.shape)}, expected {tuple(label.shape)} for a label of "
                    f"shape {tuple(target.shape)}: give those of one channel, from full "
                    "resolution to the deepest."
                )
            if level < last:
                total = total + (last - level) * F.binary_cross_entropy_with_logits(logits, label)
            total = total + level * _dice(logits.sigmoid(), label)
        return total / last


def _dice(probability: Tensor, label: Tensor) -> Tensor:
    return 1 - (2 * (probability * label).sum() + 1) / (probability.sum() + label.sum() + 1)
