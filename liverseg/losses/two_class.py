"""Losses of two classes for the one logit of a target."""

from __future__ import annotations

from torch import Tensor, nn

from liverseg.networks.blocks import two_class_logits


class TwoClassLoss(nn.Module):
    """Give a loss the logits of background and target, where the network gives the target's alone.

    For losses that weigh the classes against each other. MONAI's `GeneralizedDiceLoss` with
    `sigmoid` has one class, whose weight cancels, so all its weights give the Dice loss.

    Args:
        loss: of logits (B, 2, H, W[, D]) and class indices (B, 1, H, W[, D]).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, 1, H, W[, D]) and class indices 0 and 1."""
        loss: Tensor = self.loss(two_class_logits(logits), target)
        return loss
