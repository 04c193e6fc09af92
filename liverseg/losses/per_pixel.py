"""Weighted cross entropy as MATLAB averages it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class PerPixelCrossEntropyLoss(nn.Module):
    """Weighted cross entropy, divided by the number of pixels: Σ w_y · (−log p_y) / N.

    y is the class of a pixel, p_y its softmax probability, and N counts the pixels of the batch.
    MATLAB's ``pixelClassificationLayer`` averages like this, and with it the `crossE` of Furtado
    2021 (section 2.4) and Furtado n.d. (section 2.2). PyTorch's and so MONAI's weighted mean
    divides by Σ w_y of the batch. With the inverse frequencies of the classes as weights Σ w_y is
    about N times the number of classes: this loss, and the step that SGD makes with a learning
    rate, is that many times as large.

    Args:
        weight: of each class, (num_classes,), as `inverse_frequency_weights` gives it; None for 1.
    """

    weight: Tensor | None

    def __init__(self, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C, H, W[, D]) and class indices.

        These are (B, 1, H, W[, D]), of any dtype.
        """
        pixels = functional.cross_entropy(
            logits, target.squeeze(1).long(), self.weight, reduction="none"
        )
        return pixels.mean()
