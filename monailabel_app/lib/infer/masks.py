"""Masks as clients read them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from liverseg.io.nifti import read_nifti, write_nifti
from liverseg.outputs.segments_nrrd import write_nrrd

NRRD_SUFFIXES = (".nrrd", ".seg.nrrd")


def convert_mask(
    source: Path, suffix: str, labels: Mapping[str, int], compress: bool = True
) -> tuple[str, dict[str, int]]:
    """Write a mask as uint8 on the same grid into a temporary file.

    Args:
        source: NIfTI file of shape (H, W, D), which may be moved.
        suffix: of the file to write, one of `NIFTI_SUFFIXES` and `NRRD_SUFFIXES`.
        labels: value by segment name.
        compress: of an NRRD file.

    Returns:
        The file, and those of `labels` that occur in it: 3D Slicer names the values that it finds
            by their order.
    """
    volume = read_nifti(source)
    mask = volume.array.astype(np.uint8, copy=False)
    present = {name: value for name, value in labels.items() if (mask == value).any()}
    descriptor, path = tempfile.mkstemp(suffix=suffix)
    os.close(descriptor)
    if suffix in NRRD_SUFFIXES:
        segments = present if suffix == ".seg.nrrd" else {}
        names = {value: name for name, value in segments.items()}
        write_nrrd(path, mask, volume.affine, names, compress)
    elif source.name.endswith(suffix) and mask is volume.array:
        shutil.move(source, path)
    else:
        write_nifti(path, mask, volume.affine)
    return path, present
