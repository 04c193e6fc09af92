"""Cross entropy of the voxels that are hardest."""

from __future__ import annotations

import math
from typing import Any

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from liverseg.errors import InputError
from liverseg.networks.blocks import two_class_logits


class TopKLoss(nn.Module):
    """Cross entropy averaged over the `k` percent of the batch's voxels where it is highest.

    Wu, Shen and van den Hengel, "Bridging category-level and instance-level semantic image
    segmentation", arXiv:1605.06885 (2016), sec. 3: a small lesion weighs more once the easy
    background is left out.

    Args:
        k: percent, above 0 and up to 100; 100 is plain cross entropy. At least one voxel counts.

    Raises:
        InputError: for another `k`.
    """

    def __init__(self, k: float = 10) -> None:
        super().__init__()
        if not 0 < k <= 100:
            raise InputError(
                f"k is {k}, expected a percentage above 0 and up to 100 for "
                "the top-k loss: set k to 10."
            )
        self.k = k

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C, H, W[, D]) and class indices.

        These are (B, 1, H, W[, D]), of any dtype. One channel is the logit of the foreground, whose
        sigmoid is its probability.
        """
        voxels = functional.cross_entropy(
            two_class_logits(logits), target.squeeze(1).long(), reduction="none"
        ).flatten()
        return voxels.topk(math.ceil(self.k / 100 * len(voxels)), sorted=False).values.mean()


class DiceTopKLoss(nn.Module):
    """`lambda_dice` · DiceLoss + `lambda_top_k` · TopKLoss, both of the softmax over the classes.

    Args:
        k: percent of the voxels, as in `TopKLoss`.
        lambda_dice: weight of the Dice loss.
        lambda_top_k: weight of the top-k loss.
        dice: arguments of `monai.losses.DiceLoss`, except `softmax` and `to_onehot_y`.

    Raises:
        InputError: for a `k` that `TopKLoss` refuses.
    """

    def __init__(
        self, k: float = 10, lambda_dice: float = 1, lambda_top_k: float = 1, **dice: Any
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(**dice, softmax=True, to_onehot_y=True)
        self.top_k = TopKLoss(k)
        self.lambda_dice = lambda_dice
        self.lambda_top_k = lambda_top_k

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits and class indices as `TopKLoss` takes them."""
        logits = two_class_logits(logits)
        return self.lambda_dice * self.dice(logits, target) + self.lambda_top_k * self.top_k(
            logits, target
        )
