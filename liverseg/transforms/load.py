"""Load 3-D volumes, and refuse what no later step could handle with a sentence that says why."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import SpaceKeys

from liverseg.errors import InputError
from liverseg.io.volumes import read_volume

logger = logging.getLogger(__name__)

AFFINE_TOLERANCE_MM = 1e-2


class LoadVolumed(MapTransform):
    """Load volumes as float32 `MetaTensor` of shape (1, H, W, D), checked.

    Their `meta` has `filename_or_obj`, `original_affine`, `spatial_shape`, `space` and `warnings`: text with a line for
    each thing that the person who gave the file should know, "" without any.

    Args:
        keys: the items to load, paths that `read_volume` reads; every one must lie on the grid of the first that is
            there.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        InputError: as `read_volume`, for a volume that is not 3-D or holds no voxels, NaN or infinite voxels, and keys
            of one item on different grids.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with paths replaced by volumes."""
        loaded = dict(data)
        volumes = []
        for key in self.key_iterator(loaded):
            volumes.append(_load(str(loaded[key])))
            loaded[key] = volumes[-1]
            _check_volume(volumes[-1])
            check_same_grid(volumes[0], volumes[-1])
        return loaded


def _load(path: str) -> MetaTensor:
    volume = read_volume(path)
    array = torch.from_numpy(np.ascontiguousarray(volume.array, np.float32))[None]
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    meta = {
        "filename_or_obj": path,
        "original_affine": affine.clone(),
        "spatial_shape": np.array(volume.array.shape[:3]),
        "space": SpaceKeys.RAS,
        "original_channel_dim": "no_channel",
        "warnings": "",
    }
    loaded = MetaTensor(array, affine=affine, meta=meta)
    for warning in volume.warnings:
        add_warning(loaded, warning)
    return loaded


def add_warning(volume: MetaTensor, warning: str) -> None:
    """Tell the person who gave a volume, in the log and in its `meta["warnings"]`.

    Args:
        volume: as `LoadVolumed` gives it.
        warning: a sentence on one line.
    """
    _log_once(volume.meta["filename_or_obj"], warning)
    volume.meta["warnings"] = "\n".join(filter(None, [volume.meta["warnings"], warning]))


@functools.cache
def _log_once(path: str, warning: str) -> None:
    # A training loads what its cache does not hold in every epoch.
    logger.warning("%s: %s", path, warning)


def _check_volume(volume: MetaTensor) -> None:
    file, shape = volume.meta["filename_or_obj"], tuple(volume.shape)
    if len(shape) != 4 or shape[0] != 1:
        found = f"{len(shape) - 1}-D" if shape[0] == 1 else f"4-D or {shape[0]} channels"
        raise InputError(
            f"{file}: the volume is {found} with shape {_shape_text(volume)}, expected one 3-D volume: "
            "save each channel or time point as a file of its own."
        )
    if volume.numel() == 0:
        raise InputError(f"{file}: the volume of shape {_shape_text(volume)} holds no voxel: replace the file.")
    # A sum is not finite exactly when a voxel is not (intensities are far from float32's range), and needs no copy.
    if not math.isfinite(float(volume.as_tensor().sum())):
        bad = int((~torch.isfinite(volume.as_tensor())).sum())
        raise InputError(f"{file}: {bad} voxels are NaN or infinite, expected finite intensities: replace them.")


def _shape_text(volume: MetaTensor) -> str:
    shape = tuple(volume.shape)
    return "×".join(str(n) for n in (shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])))


def check_same_grid(first: MetaTensor, other: MetaTensor) -> None:
    """Refuse two volumes (1, H, W, D) whose voxels are not those of each other, in whatever order of the axes.

    Raises:
        InputError: with both grids.
    """
    (shape, affine), (other_shape, other_affine) = _canonical_grid(first), _canonical_grid(other)
    if shape == other_shape and np.allclose(affine, other_affine, atol=AFFINE_TOLERANCE_MM, rtol=0):
        return
    grids = [f"shape {_shape_text(v)} and affine {np.round(v.affine.numpy()[:3], 3).tolist()}" for v in (other, first)]
    raise InputError(
        f"{other.meta['filename_or_obj']}: its grid ({grids[0]}) is not that of {first.meta['filename_or_obj']} "
        f"({grids[1]}), expected the same: resample one onto the other."
    )


def _canonical_grid(volume: MetaTensor) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine in RAS order: files that store the same voxels in another axis order are on the same grid."""
    shape, affine = tuple(volume.shape[1:]), volume.affine.numpy()
    orientation = nib.orientations.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    return tuple(shape[axis] for axis in order), affine @ nib.orientations.inv_ornt_aff(orientation, shape)
