"""Read a scan or a label from wherever it lies: the one way in for bundles, data sets, reports and the label server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom import grid_of, read_voxels, series_at
from liverseg.io.paths import nifti_suffix


@dataclass(frozen=True)
class Volume:
    """A volume as it lies in its file.

    Attributes:
        array: (H, W, D), HU or intensities or label values; more axes where the file has more.
        affine: (4, 4), voxel index to RAS mm.
        warnings: what the person who gave the file should know, one sentence each.
    """

    array: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()


def read_volume(path: str) -> Volume:
    """Read a NIfTI file, a folder with one DICOM series, or the series of a DICOM file (extra `dicom`).

    Raises:
        InputError: for a missing or unreadable file, and as `series_at` and `read_voxels`.
    """
    if not Path(path).exists():
        there = (
            "a link to a file that is not there: fetch that"
            if Path(path).is_symlink()
            else "no such file: fix the path"
        )
        raise InputError(f"{path}: there is {there} or remove the scan.")
    try:
        return read_nifti(path) if nifti_suffix(path) and not Path(path).is_dir() else read_series(path)
    except InputError:
        raise
    # Readers raise whatever they like for a file that is no image, or only the beginning of one.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{path}: not readable as a volume ({reason}), expected a whole NIfTI file or a DICOM series: replace it "
            "or remove the scan."
        ) from error


def read_nifti(path: str) -> Volume:
    """Read a NIfTI file."""
    image: Any = nib.load(path)
    return Volume(np.asanyarray(image.dataobj), image.affine)


def read_series(path: str) -> Volume:
    """Read the DICOM series that a folder or a file stands for, see `liverseg.io.dicom.series_at`."""
    series = series_at(Path(path))
    return Volume(read_voxels(series), grid_of(series)[1], series.warnings)
