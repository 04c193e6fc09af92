"""Scans and labels on the disk, of which no more is read than is needed: someone waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from liverseg.errors import InputError
from liverseg.io.nifti import UNREADABLE, open_nifti, read_nifti, unreadable
from liverseg.io.paths import nifti_suffix
from liverseg.io.volumes import read_volume_grid
from liverseg.transforms import LoadVolumed
from liverseg.transforms.labels import whole_values
from liverseg.transforms.morphology import Box


def grid_of(scan: str) -> MetaTensor:
    """A scan (1, H, W, D) without its voxels, as far as its file can be read without them.

    Args:
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: for a file that cannot be read or is not 3-D.
    """
    try:
        grid = read_volume_grid(scan)
    except InputError as error:
        raise InputError(str(error).replace(scan, _name_of(scan))) from error
    voxels = torch.empty(1).expand(1, *grid.array.shape)
    meta = {"filename_or_obj": _name_of(scan), "other_affines": grid.other_affines}
    return MetaTensor(voxels, affine=torch.as_tensor(grid.affine), meta=meta)


def read_boxes(scan: str, boxes: Sequence[Box]) -> list[np.ndarray]:
    """The voxels of a scan in each of some boxes, (h, w, d).

    Raises:
        InputError: for a file that cannot be read.
    """
    if not nifti_suffix(scan):
        voxels = LoadVolumed("image")({"image": scan})["image"][0].numpy()
        return [voxels[box] for box in boxes]
    image = open_nifti(scan)
    first, last = min(box[2].start for box in boxes), max(box[2].stop for box in boxes)
    try:
        slices = np.asanyarray(image.dataobj[:, :, first:last]).reshape(
            *image.shape[:2], last - first
        )
    except UNREADABLE as error:
        raise unreadable(scan, error) from error
    return [slices[x, y, z.start - first : z.stop - first] for x, y, z in boxes]


def read_label(label: str) -> MetaTensor:
    """A labelmap (1, H, W, D), uint8.

    Raises:
        InputError: for a file that cannot be read or is not 3-D, and values that are none of a
            labelmap.
    """
    volume = read_nifti(label)
    values = volume.array
    if values.dtype.kind == "f":
        values = whole_values(torch.from_numpy(np.asarray(values, np.float32)), label).numpy()
    as_bytes = values.astype(np.uint8, copy=False)
    if as_bytes is not values and not np.array_equal(as_bytes, values):
        outside = np.unique(values[as_bytes != values])[:5]
        raise InputError(
            f"{label}: found label values {', '.join(f'{value:g}' for value in outside)}, "
            "expected 0 to 255: it is no label, or number its segments anew."
        )
    affine = torch.as_tensor(volume.affine)
    return MetaTensor(
        torch.from_numpy(as_bytes)[None], affine=affine, meta={"filename_or_obj": label}
    )


def values_in(label: MetaTensor) -> list[int]:
    """The values of the segments in a labelmap of `read_label`, sorted; 0 is none."""
    return label.as_tensor().flatten().bincount()[1:].nonzero().add(1).flatten().tolist()


def _name_of(scan: str) -> str:
    return f"scan {Path(scan).name!r}"
