"""Count the voxels of a validation that have the right class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce


class VoxelAccuracy(Metric):
    """Share of all voxels of the validation whose class is right, the background included.

    It is the global accuracy of `pooled_metrics`, during a training. Ignite's `Accuracy` wants
    several copies of each volume as int64.
    """

    def __init__(self) -> None:
        # Decollated items, not y_pred and y.
        super().__init__(output_transform=lambda output: (output, None))

    @reinit__is_reduced
    def reset(self) -> None:
        """Start a validation."""
        self._right = torch.zeros(1, dtype=torch.float64)
        self._voxels = torch.zeros(1, dtype=torch.float64)

    @reinit__is_reduced
    def update(self, output: tuple[Sequence[dict[str, Any]], None]) -> None:
        """Count a batch of items with the label maps `pred` and `label`, of equal shape."""
        for item in output[0]:
            right = item["pred"] == item["label"]
            self._right += int(right.sum())
            self._voxels += right.numel()

    @sync_all_reduce("_right", "_voxels")
    def compute(self) -> float:
        """Return the share, 0 to 1."""
        return float(self._right / self._voxels)
