"""Write masks and probabilities as one file per class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.files import check_writable
from liverseg.io.nifti import write_nifti
from liverseg.io.paths import NIFTI_SUFFIXES
from liverseg.outputs.segmentation import Segmentation, boxes_of


def write_class_files(
    segmentation: Segmentation,
    folder: str | os.PathLike[str],
    suffix: str = NIFTI_SUFFIXES[0],
) -> dict[str, Path]:
    """Write a NIfTI file of 0 and 1 for each class: `right_kidney.nii.gz` for "right kidney".

    A class that the mask does not hold has a file too, so that all scans of a bundle have the same.

    Args:
        segmentation: what to write.
        folder: made where it is missing.
        suffix: `.nii.gz` or `.nii`.

    Returns:
        The file of each class by its name.

    Raises:
        InputError: for classes whose files would be called the same, and when one cannot be
            written.
    """
    stems = _stems(segmentation, {*segmentation.class_names, *boxes_of(segmentation.mask)} - {0})
    place = check_writable(folder)
    for value, stem in stems.items():
        one = (segmentation.mask == value).view(np.uint8)
        write_nifti(place / f"{stem}{suffix}", one, segmentation.affine)
    return {segmentation.name(value): place / f"{stem}{suffix}" for value, stem in stems.items()}


def write_probabilities(segmentation: Segmentation, start: str | os.PathLike[str]) -> list[Path]:
    """Write a NIfTI file of the probabilities of each class, 0 to 1 in steps of 1/255.

    A voxel takes one byte: readers multiply it by the header's `scl_slope`.

    Args:
        segmentation: with `probabilities`.
        start: of the files' paths: `<start>_probability_right_kidney.nii.gz`.

    Returns:
        The files.

    Raises:
        InputError: for classes whose files would be called the same, and when one cannot be
            written.
    """
    assert segmentation.probabilities is not None
    files = []
    for value, stem in _stems(segmentation, segmentation.class_names).items():
        files.append(Path(f"{os.fspath(start)}_probability_{stem}{NIFTI_SUFFIXES[0]}"))
        found = segmentation.probabilities[value - 1]
        write_nifti(files[-1], found, segmentation.affine, slope=1 / 255)
    return files


def _stems(segmentation: Segmentation, values: Iterable[int]) -> dict[int, str]:
    names = {value: segmentation.name(value) for value in sorted(values)}
    stems = {value: re.sub(r"[^\w.-]+", "_", name) for value, name in names.items()}
    # Some file systems take upper and lower case for the same.
    if len({stem.lower() for stem in stems.values()}) < len(stems):
        raise InputError(
            f"channel_def of {segmentation.bundle}: found the classes {', '.join(names.values())}, "
            "expected names that differ by letters or digits, as each becomes a file's: rename one."
        )
    return stems
