"""Scans and labels on the disk, of which no more is read than is needed: a request is answered while someone waits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from lib.masks import NIFTI_SUFFIXES
from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed
from liverseg.transforms.morphology import Box


def grid_of(scan: str) -> MetaTensor:
    """A scan (1, H, W, D) without its voxels, as far as its file can be read without them.

    Args:
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: for a file that cannot be read or is not 3-D.
    """
    if not scan.endswith(NIFTI_SUFFIXES):
        return LoadVolumed("image")({"image": scan})["image"]
    image = _open(scan)
    voxels = torch.empty(1).expand(1, *image.shape[:3])
    return MetaTensor(voxels, affine=image.affine, meta={"filename_or_obj": f"scan {Path(scan).name!r}"})


def read_box(scan: str, box: Box) -> np.ndarray:
    """The voxels of a scan in a box, (h, w, d).

    Raises:
        InputError: for a file that cannot be read.
    """
    if not scan.endswith(NIFTI_SUFFIXES):
        return LoadVolumed("image")({"image": scan})["image"][0].numpy()[box]
    try:
        return np.asanyarray(_open(scan).dataobj[..., box[2]])[box[:2]]
    except (OSError, EOFError, ValueError) as error:
        raise _unreadable(scan, error) from error


def read_label(label: str) -> MetaTensor:
    """A labelmap (1, H, W, D), uint8.

    Raises:
        InputError: for a file that cannot be read or is not 3-D, and values that are none of a labelmap.
    """
    image = _open(label)
    try:
        voxels = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise _unreadable(label, error) from error
    voxels = voxels.reshape(image.shape[:3])
    values = voxels.astype(np.uint8, copy=False)
    if values is not voxels and not np.array_equal(values, voxels):
        raise InputError(f"{label}: found values that are not 0, 1, … 255, expected a labelmap: mend it.")
    return MetaTensor(torch.from_numpy(values)[None], affine=image.affine, meta={"filename_or_obj": label})


def _open(path: str) -> Any:
    try:
        image: Any = nib.load(path)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise _unreadable(path, error) from error
    if len(image.shape) < 3 or math.prod(image.shape[3:]) != 1:
        shape = "×".join(map(str, image.shape))
        raise InputError(
            f"{path}: found shape {shape}, expected one 3-D volume: save each of them as a file of its own."
        )
    return image


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: not readable as a volume ({error}), expected a whole NIfTI file: replace it.")
