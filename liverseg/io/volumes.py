"""Read a scan or a label from wherever it lies: the one way in for bundles, data sets, reports and the label server."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom import grid_of, read_voxels, series_at
from liverseg.io.nifti import read_nifti, read_nifti_grid
from liverseg.io.paths import nifti_suffix
from liverseg.io.volume import Volume


def read_volume(path: str) -> Volume:
    """Read a NIfTI file, a folder with one DICOM series, or the series of a DICOM file (extra `dicom`).

    Raises:
        InputError: for a missing file, and as `read_nifti`, `series_at` and `read_voxels`.
    """
    return read_nifti(path) if _is_nifti(path) else read_series(path)


def read_series(path: str) -> Volume:
    """Read the DICOM series that a folder or a file stands for, see `series_at`.

    Raises:
        InputError: as `series_at` and `read_voxels`.
    """
    series = series_at(Path(path))
    return Volume(read_voxels(series), grid_of(series)[1], series.warnings)


def read_volume_grid(path: str) -> Volume:
    """As `read_volume`, but the array holds zeros that take no memory: only headers are read.

    Raises:
        InputError: for a missing file, and as `read_nifti_grid` and `series_at`.
    """
    if _is_nifti(path):
        return read_nifti_grid(path)
    series = series_at(Path(path))
    shape, affine = grid_of(series)
    return Volume(np.broadcast_to(np.float32(0), shape), affine, series.warnings)


def _is_nifti(path: str) -> bool:
    file = Path(path)
    if not file.exists():
        there = "a link to a file that is not there: fetch that" if file.is_symlink() else "no such file: fix the path"
        raise InputError(f"{path}: there is {there} or remove the scan.")
    return bool(nifti_suffix(path)) and not file.is_dir()
