"""Load 3-D volumes, and refuse with a message what no later step could handle."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import SpaceKeys

from liverseg.errors import InputError
from liverseg.io.volume import corners
from liverseg.io.volumes import read_volume

logger = logging.getLogger(__name__)

# Of a voxel, and of a mm. A spacing that a program rounds to 0.001 mm moves the last of 512 voxels
# by 0.26 mm; programs that take a voxel's corner for its centre are half a voxel apart.
GRID_TOLERANCE = 0.4
# No scanner's: the variance of a volume of such intensities would leave float32.
LARGEST = 1e12


class LoadVolumed(MapTransform):
    """Load volumes as float32 `MetaTensor` of shape (1, H, W, D), checked.

    Their `meta` has `filename_or_obj`, `original_affine`, `spatial_shape`, `space`, and `warnings`
    and `flags`: text with a line for each thing that the person who gave the file should know, ""
    without any; see `add_warning` and `add_flag`.

    Args:
        keys: the items to load, paths that `read_volume` reads; every one must lie on the grid of
            the first that is there.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        InputError: as `read_volume`, for voxels that are NaN, infinite or beyond ±1e12, and keys of
            one item on different grids.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with paths replaced by volumes."""
        loaded = dict(data)
        first: MetaTensor | None = None
        for key in self.key_iterator(loaded):
            volume = _load(str(loaded[key]))
            loaded[key] = volume if first is None else check_same_grid(first, volume)
            first = loaded[key] if first is None else first
        for key in self.key_iterator(loaded):
            # Of any number, which cannot be collated.
            del loaded[key].meta["other_affines"]
        return loaded


def _load(path: str) -> MetaTensor:
    volume = read_volume(path)
    array = torch.from_numpy(np.ascontiguousarray(volume.array, np.float32))[None]
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    meta = {
        "filename_or_obj": path,
        "original_affine": affine.clone(),
        "spatial_shape": np.array(volume.array.shape),
        "space": SpaceKeys.RAS,
        "original_channel_dim": "no_channel",
        "warnings": "",
        "flags": "",
        "other_affines": volume.other_affines,
    }
    loaded = MetaTensor(array, affine=affine, meta=meta)
    for warning in volume.warnings:
        add_warning(loaded, warning)
    # Of NaN anywhere, both are NaN; neither needs a copy.
    lowest, highest = torch.aminmax(array)
    if not -LARGEST <= float(lowest) <= float(highest) <= LARGEST:
        bad = int((~(array.abs() <= LARGEST)).sum())
        raise InputError(
            f"{path}: {bad} voxels are NaN or infinite, or beyond ±{LARGEST:.0e}, expected "
            "intensities: replace them."
        )
    return loaded


def add_warning(volume: MetaTensor, warning: str) -> None:
    """Add a warning to the log and to the volume's `meta["warnings"]`.

    Args:
        volume: as `LoadVolumed` gives it.
        warning: on one line.
    """
    _log_once(volume.meta["filename_or_obj"], warning)
    volume.meta["warnings"] = "\n".join(filter(None, [volume.meta["warnings"], warning]))


def add_flag(volume: MetaTensor, flag: str, message: str, index: int | None = None) -> None:
    """Add why a mask of a volume may be wrong to the log and `meta["flags"]`, once for each flag.

    Args:
        volume: as `LoadVolumed` gives it, or its mask.
        flag: a name that programs know it by, one word.
        message: on one line.
        index: of one volume of a batch (B, C, H, W, D).
    """
    if flag in flags_of(volume, index):
        return
    # As text, for scans of a batch have different ones, which MONAI could not collate as a
    # dictionary.
    path, flags = (
        volume.meta[key] if index is None else volume.meta[key][index]
        for key in ("filename_or_obj", "flags")
    )
    _log_once(path, message)
    flags = "\n".join(filter(None, [flags, f"{flag}: {message}"]))
    if index is None:
        volume.meta["flags"] = flags
    else:
        volume.meta["flags"][index] = flags


def flags_of(volume: MetaTensor, index: int | None = None) -> dict[str, str]:
    """Return the message of each flag of a volume, by the flag's name.

    With `index`, of one volume of a batch (B, C, H, W, D).
    """
    flags = volume.meta.get("flags", "")
    lines = (flags if index is None or not flags else flags[index]).splitlines()
    return dict(line.split(": ", 1) for line in lines)


@functools.cache
def _log_once(path: str, warning: str) -> None:
    # A training loads what its cache does not hold in every epoch.
    logger.warning("%s: %s", path, warning)


def check_same_grid(first: MetaTensor, other: MetaTensor) -> MetaTensor:
    """Check that two volumes (1, H, W, D) have one grid, in whatever order of the axes.

    Where programs differ in where they show the file of `first` (its `meta["other_affines"]`),
    `other` may lie at any of these places.

    Returns:
        `other` with the affine of `first`, in its own order of the axes.

    Raises:
        InputError: for another shape, and for a corner that lies farther off than `GRID_TOLERANCE`
            of a voxel, or as many mm, along an axis.
    """
    matches = [
        _Match(first, place, other)
        for place in (first.affine, *first.meta.get("other_affines", ()))
    ]
    # A volume that is mirrored about its own middle lies there in two ways: as it is stored comes
    # first.
    for match in sorted(matches, key=lambda match: match.reordered):
        if match.fits:
            affine = torch.as_tensor(first.affine.numpy() @ np.linalg.inv(match.back))
            return MetaTensor(
                other.as_tensor(),
                meta={**other.meta, "affine": affine, "original_affine": affine.clone()},
            )
    names = [str(volume.meta["filename_or_obj"]) for volume in (other, first)]
    raise InputError(
        f"{names[0]}: its grid is not that of {names[1]} ({matches[0].difference}): draw or export "
        "it on that scan, or resample it onto that scan with nearest neighbours."
    )


class _Match:
    """How the voxels of `other` lie on those of `first`, when `first` lies at `place`."""

    def __init__(
        self, first: MetaTensor, place: torch.Tensor | np.ndarray, other: MetaTensor
    ) -> None:
        affine = np.asarray(place)
        self.shape, shape = tuple(first.shape[1:]), tuple(other.shape[1:])
        index_of = np.linalg.inv(affine) @ other.affine.numpy()
        orientation = nib.orientations.io_orientation(index_of)
        self.reordered = not np.array_equal(orientation, [[0, 1], [1, 1], [2, 1]])
        # From indices in the order of `first` to those of `other`.
        self.back = nib.orientations.inv_ornt_aff(orientation, shape)
        self.other_shape = tuple(shape[axis] for axis in np.argsort(orientation[:, 0]))
        self.corners = corners(self.shape)
        step = index_of @ self.back - np.eye(4)
        self.sizes_mm = nib.affines.voxel_sizes(affine)
        self.offsets_mm = (self.corners @ step[:3, :3].T + step[:3, 3]) * self.sizes_mm

    @property
    def fits(self) -> bool:
        limits_mm = GRID_TOLERANCE * np.minimum(self.sizes_mm, 1)
        return self.other_shape == self.shape and bool((np.abs(self.offsets_mm) <= limits_mm).all())

    @property
    def difference(self) -> str:
        if self.other_shape != self.shape:
            found, expected = (
                "×".join(map(str, shape)) for shape in (self.other_shape, self.shape)
            )
            return f"found the shape {found}, expected {expected}"
        distances_mm = np.linalg.norm(self.offsets_mm, axis=1)
        worst = int(distances_mm.argmax())
        return (
            f"its corner at voxel {tuple(self.corners[worst].tolist())} lies "
            f"{distances_mm[worst]:.3g} mm off, expected "
            f"{GRID_TOLERANCE * min(1, self.sizes_mm.min()):.2g} mm at most"
        )
