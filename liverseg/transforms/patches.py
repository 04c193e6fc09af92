"""Draw patches out of the files of self-labelled ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandomizableTransform


class RandPatchesd(RandomizableTransform):
    """Draw `num_samples` patches of a file of `cut_patches`, each in the middle of an empty slice.

    Levels are drawn at equal odds among those that have patches, then a patch of the level; with
    replacement. They keep their scale: around a patch, image, prior and label are 0.

    Args:
        keys: of the arrays, such as image, prior and label.
        num_samples: patches to draw.
        spatial_size: pixels (H, W) of the slices.
    """

    def __init__(self, keys: Sequence[str], num_samples: int, spatial_size: Sequence[int]) -> None:
        super().__init__()
        self.keys, self.num_samples = list(keys), num_samples
        self.spatial_size = tuple(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return tensors (1, *spatial_size) for each patch, float32 and the label uint8."""
        with np.load(data["patches"], allow_pickle=False) as content:
            arrays = dict(content)
        levels = [name.rpartition("_")[2] for name in arrays if name.startswith(f"{self.keys[0]}_")]
        levels = [level for level in levels if len(arrays[f"{self.keys[0]}_{level}"])]
        samples: list[dict[Hashable, Any]] = []
        for _ in range(self.num_samples):
            level = levels[self.R.randint(len(levels))]
            number = self.R.randint(len(arrays[f"{self.keys[0]}_{level}"]))
            samples.append(
                {key: self._in_the_middle(arrays[f"{key}_{level}"][number]) for key in self.keys}
            )
        return samples

    def _in_the_middle(self, patch: np.ndarray) -> torch.Tensor:
        dtype = patch.dtype if patch.dtype == np.uint8 else np.float32
        canvas = np.zeros((1, *self.spatial_size), dtype)
        row, column = (
            (size - length) // 2
            for size, length in zip(self.spatial_size, patch.shape, strict=True)
        )
        canvas[0, row : row + patch.shape[0], column : column + patch.shape[1]] = patch
        return torch.from_numpy(canvas)
