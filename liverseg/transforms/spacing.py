"""Resample volumes to the spacing of a network, in training as at inference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor, affine_to_spacing
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

from liverseg.bundle import choose

SLAB = 16  # slices that are resampled in-plane at a time: the whole volume would be held twice


def spaced_size(
    shape: Sequence[int], affine: torch.Tensor, spacing: Sequence[float]
) -> tuple[int, int, int]:
    """Return the size (H, W, D) at about `spacing` mm over the same extent; −1 keeps an axis."""
    own = affine_to_spacing(affine, r=3).tolist()
    size = [
        max(1, round(length * mm / target)) if target > 0 else length
        for length, mm, target in zip(shape, own, spacing, strict=True)
    ]
    return size[0], size[1], size[2]


def resize_volume(volume: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resample a volume (H, W, D) to `size` over the same extent, float32.

    Linear, and where an axis shrinks averaged over as many voxels as fall on one (a triangle
    filter), so that noise and edges do not alias: at a quarter of the voxels along each axis a
    linear value would read 8 of 64.
    """
    height, width, depth = size
    slabs = [
        _average(slab.permute(2, 0, 1)[:, None].float(), (height, width))
        for slab in volume.split(SLAB, dim=-1)
    ]
    planes = torch.cat(slabs).reshape(1, 1, volume.shape[-1], height * width)
    columns = _average(planes, (depth, height * width))  # along D alone
    return columns.reshape(depth, height, width).permute(1, 2, 0)


def _average(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class ResampleVolumed(MapTransform):
    """Resample volumes (1, H, W, D) to about `spacing` over their extent, as `VolumeWindowInferer`.

    The size is rounded to whole voxels and the affine says their spacing. MONAI's
    `Spacingd(scale_extent=True)` puts the voxels at the same places, but reads two per axis however
    far they are apart.

    Args:
        keys: MetaTensors of shape (1, H, W, D).
        spacing: mm along the volume's axes; −1 keeps an axis.
        mode: "linear" for images, float32 after it; "nearest" for labels, of the dtype that they
            had. One or one for each key.

    Raises:
        InputError: for another mode.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        mode: str | Sequence[str] = "linear",
    ) -> None:
        super().__init__(keys)
        self.spacing = tuple(spacing)
        self.nearest = [
            choose("mode", name, {"linear": False, "nearest": True})
            for name in ensure_tuple_rep(mode, len(self.keys))
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the volumes resampled."""
        resampled = dict(data)
        for key, nearest in self.key_iterator(resampled, self.nearest):
            resampled[key] = self._resample(resampled[key], nearest)
        return resampled

    def _resample(self, volume: MetaTensor, nearest: bool) -> MetaTensor:
        shape = volume.shape[1:]
        size = spaced_size(shape, volume.affine, self.spacing)
        if size == tuple(shape):
            return volume
        voxels = volume.as_tensor()
        if nearest:
            found = F.interpolate(voxels[None], size, mode="nearest-exact")[0]
        else:
            found = resize_volume(voxels[0], size)[None]
        step = torch.eye(4, dtype=volume.affine.dtype)
        for axis, (length, voxels_along) in enumerate(zip(shape, size, strict=True)):
            step[axis, axis] = length / voxels_along
            step[axis, 3] = (length / voxels_along - 1) / 2
        resampled = MetaTensor(found, meta=dict(volume.meta))
        resampled.affine = volume.affine @ step
        return resampled
