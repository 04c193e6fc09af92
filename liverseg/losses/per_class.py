"""Give each class its own loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from liverseg.errors import InputError


class PerClassLoss(nn.Module):
    """Average a loss for each class: Σ w_c · loss_c(p_c, g_c) / Σ w_c.

    p_c is the softmax probability of class c, g_c its binary mask. Each organ with the loss, or the
    α and β, that suit it: the per-organ loss functions that Furtado n.d. names as future work.

    Each loss gets one channel of probabilities and one of zeros and ones, both (B, 1, H, W[,
    D]). Those that fit:

    - MONAI's `TverskyLoss`, `DiceLoss` (also with `jaccard`) and `GeneralizedDiceLoss`, and
      `FocalTverskyLoss` of liverseg, with neither `softmax`, `sigmoid` nor `to_onehot_y`, and with
      `batch=True` for sums over the batch;
    - for cross entropy `torch.nn.BCELoss`: −log p_c inside the class, −log(1 − p_c) outside,
      averaged over all voxels. PyTorch refuses it inside autocast, so give it logits as
      `AutocastInferer` returns them.

    Losses that take logits (MONAI's `FocalLoss`, `DiceCELoss` and `DiceFocalLoss`,
    `torch.nn.BCEWithLogitsLoss`) or compare the channels with one another
    (`torch.nn.CrossEntropyLoss`) would give wrong values, so they are refused.

    Args:
        losses: for each class, in the order of the network's channels, its name and its loss;
            None leaves the class out: `{"background": None, "liver": TverskyLoss(alpha=0.5,
            beta=1.5, batch=True)}`.
        weights: weight by class name, 0 or more; 1 for those not named.

    Raises:
        InputError: for a loss that does not fit, a weight that is negative or of a class
            without loss, or no class with a loss and a weight at all; in a call, for logits of
            another number of classes.
    """

    def __init__(
        self, losses: Mapping[str, nn.Module | None], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        used = {name: loss for name, loss in losses.items() if loss is not None}
        weights = dict(weights or {})
        unknown = [name for name in weights if name not in used]
        if unknown:
            known = ", ".join(used)
            raise InputError(
                f"weights: {unknown[0]!r} has no loss, expected one of "
                f"{known}: correct or remove it."
            )
        self.names = list(losses)
        self.weights = {name: float(weights.get(name, 1)) for name in used}
        if min(self.weights.values(), default=0) < 0 or sum(self.weights.values()) == 0:
            raise InputError(
                f"weights: found {self.weights}, expected 0 or more each and some above 0: give a "
                "class a loss and a weight."
            )
        for name, loss in used.items():
            _check_takes_probabilities(name, loss)
        self.losses = nn.ModuleDict(used)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C, H, W[, D]) and class indices.

        These are (B, 1, H, W[, D]), of any dtype.
        """
        if logits.shape[1] != len(self.names):
            raise InputError(
                f"losses: found {len(self.names)} classes ({', '.join(self.names)}), "
                f"expected {logits.shape[1]}, the network's channels: name each class once, "
                "with null for one that is left out."
            )
        probabilities = logits.softmax(1)
        total = logits.new_zeros(())
        for name, loss in self.losses.items():
            index = self.names.index(name)
            mask = (target == index).to(probabilities)
            total = total + self.weights[name] * loss(probabilities[:, index : index + 1], mask)
        return total / sum(self.weights.values())


def _check_takes_probabilities(name: str, loss: nn.Module) -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    perfect, wrong = loss(mask, mask), loss(1 - mask, mask)
    if perfect.numel() > 1 or not perfect < 1e-3 < wrong:
        raise InputError(
            f"losses: {type(loss).__name__} of {name} is not 0 for a perfect prediction and above "
            "for a wrong one, expected a scalar loss of one channel of probabilities: give "
            "TverskyLoss or DiceLoss without sigmoid, or torch.nn.BCELoss."
        )
