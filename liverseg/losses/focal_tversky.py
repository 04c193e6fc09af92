"""Focal Tversky loss."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import TverskyLoss

from liverseg.errors import InputError


class FocalTverskyLoss(TverskyLoss):
    """Mean over classes of (1 − TI_c)^(1/γ), with TI_c = TP / (TP + α·FP + β·FN).

    Abraham and Khan, "A novel focal Tversky loss function with improved attention U-Net for lesion
    segmentation", ISBI 2019, eq. (3). MONAI's `AsymmetricFocalTverskyLoss` is another loss: two
    classes only, and the exponent on the foreground alone.

    Args:
        gamma: γ ≥ 1; above 1 it weights the classes that are still segmented badly.
        tversky: arguments of `monai.losses.TverskyLoss`, except `reduction`.

    Raises:
        InputError: when `gamma` is below 1.
    """

    def __init__(self, gamma: float = 4 / 3, **tversky: Any) -> None:
        super().__init__(**tversky, reduction="none")
        if gamma < 1:
            raise InputError(
                f"gamma is {gamma}, expected at least 1 for the focal "
                "Tversky loss: set gamma to 4/3."
            )
        self.gamma = gamma

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, of logits (B, C, H, W[, D]) and their target.

        The target has the same shape or (B, 1, …).
        """
        # At zero the power has no finite gradient, and rounding can leave a perfect class below it.
        return super().forward(input, target).clamp(min=1e-7).pow(1 / self.gamma).mean()
