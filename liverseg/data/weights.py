"""Class weights from the voxel counts of a training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from liverseg.transforms import LoadVolumed, MapLabelsd


def inverse_frequency_weights(
    data: Sequence[Mapping[str, Any]], classes: Mapping[str, Sequence[int] | None]
) -> torch.Tensor:
    """Weights w_c ∝ 1 / (voxels of class c in all labels of `data`), scaled to mean 1; shape (num_classes,).

    The class-frequency-inverse weights of the papers' `crossE` (paper A, section 2.4; paper B, section 3.3). A class
    that never occurs gets weight 0: no voxel could use it.

    Args:
        data: items with `label`.
        classes: as for `MapLabelsd`.

    Raises:
        InputError: as `LoadVolumed` and `MapLabelsd` raise it.
    """
    load, convert = LoadVolumed(keys="label"), MapLabelsd(keys="label", classes=classes)
    counts = torch.zeros(len(classes), dtype=torch.float64)
    for item in tqdm(data, desc="Counting voxels per class", unit="scan", delay=2):
        label = convert(load({"label": item["label"]}))["label"]
        counts += torch.bincount(label.flatten().long().as_tensor(), minlength=len(classes))
    weights = torch.where(counts > 0, counts.sum() / counts.clamp(min=1), 0.0)
    return (weights / weights.mean()).float()
