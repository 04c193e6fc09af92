"""Compute class weights from the voxel counts of a training set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from liverseg.data.voxel_counts import count_voxels
from liverseg.errors import InputError


def inverse_frequency_weights(
    data: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Sequence[int] | None],
    datalist: str | os.PathLike[str] | None = None,
) -> torch.Tensor:
    """Return weights w_c = N / n_c, the inverse frequencies of the classes; (num_classes,).

    n_c is the voxels of class c in all labels of `data`, N their sum.

    The class-frequency-inverse weights of `crossE` (Furtado 2021, section 2.4; Furtado n.d.,
    section 2.2). A class that never occurs gets weight 0: no voxel could use it.

    Args:
        data: items with `label`.
        classes: as for `MapLabelsd`.
        datalist: the file that `data` was read from, beside which the counts are remembered;
            None counts each time.

    Raises:
        InputError: as `count_voxels`.
    """
    counts = count_voxels(data, classes, datalist)
    return torch.where(counts > 0, counts.sum() / counts.clamp(min=1), 0.0).float()


def dice_weights(
    data: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Sequence[int] | None],
    power: int,
    normalize: bool = False,
    datalist: str | os.PathLike[str] | None = None,
    spacing: Sequence[float] = (-1, -1, -1),
) -> torch.Tensor:
    """Return Dice weights w_c = N / (L·n_c^power + 1) for `DiceLoss(weight=…)`; (num_classes,).

    n_c is the voxels of class c in all labels of `data`, N their sum, L the number of classes, the
    background included: the simple (power 1) and square (power 2) weights of Shen et al. 2018, eqs.
    4 and 5. MONAI's `GeneralizedDiceLoss` is another loss: weights from each batch, and a ratio of
    sums over the classes.

    The square weights are tiny, 1e-10 for a background of 1e9 voxels. Adam divides a gradient by
    its own size plus 1e-8, so that loss as small as that hardly trains. `normalize` takes this out
    and leaves the ratios.

    Args:
        data: items with `label`.
        classes: as for `MapLabelsd`.
        power: 1 or 2.
        normalize: scale the weights to mean 1.
        datalist: the file that `data` was read from, beside which the counts are remembered;
            None counts each time.
        spacing: mm of the voxels to count, those that the network sees.

    Returns:
        float64, for the square of a count is beyond float32's digits; a class that
        never occurs gets 0.

    Raises:
        InputError: for another `power`, and as `count_voxels`.
    """
    if power not in (1, 2):
        raise InputError(
            f"power: found {power}, expected 1 (simple) or 2 (square): set it to one of these."
        )
    counts = count_voxels(data, classes, datalist, spacing)
    weights = torch.where(counts > 0, counts.sum() / (len(counts) * counts**power + 1), 0.0)
    return weights / weights.mean() if normalize else weights
