"""Draw 2-D training slices from a volume, so that 2-D networks read the same files as others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from liverseg.errors import InputError


def stack_slices(volume: torch.Tensor, positions: torch.Tensor, num_slices: int) -> torch.Tensor:
    """Take slices of a volume with their neighbours as channels, beyond the ends the outermost.

    Args:
        volume: shape (H, W, D).
        positions: indices along D, shape (N,).
        num_slices: channels a slice, odd: the slice itself in the middle.

    Returns:
        Shape (N, num_slices, H, W).
    """
    offsets = torch.arange(num_slices, device=positions.device) - num_slices // 2
    index = (positions[:, None] + offsets).clamp(0, volume.shape[-1] - 1)
    return volume[..., index].permute(2, 3, 0, 1)


class RandSlicesd(RandomizableTransform, MapTransform):
    """Draw `num_samples` slices along the last axis of each volume, as a list of dictionaries.

    A share of the slices shows the foreground; a slice repeats only where a volume has fewer than
    `num_samples`, or fewer with foreground than its share.

    Args:
        keys: volumes of shape (1, H, W, D) to slice; `label_key` is one of them.
        label_key: the label, which gives one channel a slice: (1, H, W).
        num_samples: slices per volume.
        num_slices: channels of every other key: 1, or 3 or 5 neighbouring slices (2.5-D):
            (num_slices, H, W).
        foreground_ratio: the share drawn from slices with foreground; the rest is drawn from all
            other slices.

    Raises:
        InputError: when `num_slices` is even or `foreground_ratio` outside [0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        num_samples: int,
        num_slices: int = 1,
        foreground_ratio: float = 0.5,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)
        if num_slices % 2 == 0:
            raise InputError(
                f"num_slices is {num_slices}, expected an odd number: set in_channels to 1, 3 or 5."
            )
        if not 0 <= foreground_ratio <= 1:
            raise InputError(
                f"foreground_ratio is {foreground_ratio}, expected a share "
                "between 0 and 1: change it."
            )
        self.label_key = label_key
        self.num_samples = num_samples
        self.num_slices = num_slices
        self.foreground_ratio = foreground_ratio

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return a dictionary for each slice, with the volumes of `data` replaced by it."""
        label = torch.as_tensor(data[self.label_key])[0]
        foreground = np.flatnonzero((label > 0).any(0).any(0).numpy())
        num_foreground = round(self.num_samples * self.foreground_ratio) if len(foreground) else 0
        first = self._draw(foreground, num_foreground)
        others = np.setdiff1d(np.arange(label.shape[-1]), first)
        drawn = [
            *first,
            *self._draw(others if len(others) else foreground, self.num_samples - num_foreground),
        ]
        positions = torch.as_tensor(np.array(drawn, dtype=np.int64))
        slices = {
            key: stack_slices(
                torch.as_tensor(data[key])[0],
                positions,
                1 if key == self.label_key else self.num_slices,
            )
            for key in self.keys
        }
        rest = {key: value for key, value in data.items() if key not in slices}
        return [
            {**rest, **{key: s[n] for key, s in slices.items()}} for n in range(self.num_samples)
        ]

    def _draw(self, positions: np.ndarray, count: int) -> np.ndarray:
        return (
            self.R.choice(positions, count, replace=count > len(positions))
            if count
            else positions[:0]
        )
