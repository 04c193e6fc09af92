"""Scans and labels on the disk, of which no more is read than is needed: a request is answered while someone waits."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from liverseg.errors import InputError
from liverseg.io.paths import nifti_suffix
from liverseg.transforms import LoadVolumed
from liverseg.transforms.morphology import Box

# What nibabel raises for files that are none, or not whole.
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError)


def grid_of(scan: str) -> MetaTensor:
    """A scan (1, H, W, D) without its voxels, as far as its file can be read without them.

    Args:
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: for a file that cannot be read or is not 3-D.
    """
    if not nifti_suffix(scan):
        return LoadVolumed("image")({"image": scan})["image"]
    image = _open(scan)
    name = f"scan {Path(scan).name!r}"
    voxels = torch.empty(1).expand(1, *_shape(name, image))
    return MetaTensor(voxels, affine=image.affine, meta={"filename_or_obj": name})


def read_boxes(scan: str, boxes: Sequence[Box]) -> list[np.ndarray]:
    """The voxels of a scan in each of some boxes, (h, w, d).

    Raises:
        InputError: for a file that cannot be read.
    """
    if not nifti_suffix(scan):
        voxels = LoadVolumed("image")({"image": scan})["image"][0].numpy()
        return [voxels[box] for box in boxes]
    image = _open(scan)
    first, last = min(box[2].start for box in boxes), max(box[2].stop for box in boxes)
    try:
        slices = np.asanyarray(image.dataobj[:, :, first:last]).reshape(*_shape(scan, image)[:2], last - first)
    except UNREADABLE as error:
        raise _unreadable(scan, error) from error
    return [slices[x, y, z.start - first : z.stop - first] for x, y, z in boxes]


def read_label(label: str) -> MetaTensor:
    """A labelmap (1, H, W, D), uint8.

    Raises:
        InputError: for a file that cannot be read or is not 3-D, and values that are none of a labelmap.
    """
    image = _open(label)
    shape = _shape(label, image)
    try:
        voxels = np.asanyarray(image.dataobj).reshape(shape)
    except UNREADABLE as error:
        raise _unreadable(label, error) from error
    values = voxels.astype(np.uint8, copy=False)
    if values is not voxels and not np.array_equal(values, voxels):
        raise InputError(f"{label}: found values that are not 0, 1, … 255, expected a labelmap: fix it.")
    return MetaTensor(torch.from_numpy(values)[None], affine=image.affine, meta={"filename_or_obj": label})


def _shape(path: str, image: Any) -> tuple[int, ...]:
    shape = image.shape
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise InputError(
            f"{path}: found shape {'×'.join(map(str, shape))}, expected one 3-D volume: save each as a file of its own."
        )
    return shape[:3]


def _open(path: str) -> Any:
    try:
        return nib.load(path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: not readable as a volume ({error}), expected a whole NIfTI file: replace it.")
