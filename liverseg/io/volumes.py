"""Read a scan or a label of any format, for bundles, data sets, reports and the label server."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom import series_at
from liverseg.io.dicom_voxels import grid_of, read_voxels
from liverseg.io.itk import read_itk, read_itk_grid
from liverseg.io.nifti import read_nifti, read_nifti_grid, write_nifti
from liverseg.io.paths import ITK_SUFFIXES, volume_suffix
from liverseg.io.volume import Volume

logger = logging.getLogger(__name__)


def read_volume(path: str) -> Volume:
    """Read a file with a volume, a folder with one DICOM series, or the series of a DICOM file.

    NIfTI, NRRD and MetaImage; NRRD and MetaImage need the package SimpleITK, DICOM the extra
    `dicom`.

    Raises:
        InputError: for a missing file, and as `read_nifti`, `read_itk`, `series_at` and
            `read_voxels`.
    """
    suffix = _suffix_of(path)
    if suffix:
        return read_itk(path) if suffix in ITK_SUFFIXES else read_nifti(path)
    series = series_at(Path(path))
    voxels, odd = read_voxels(series)
    return Volume(voxels, grid_of(series)[1], (*series.warnings, *odd))


def read_volume_grid(path: str) -> Volume:
    """Read only headers as `read_volume` does; the array holds zeros that take no memory.

    Raises:
        InputError: for a missing file, and as `read_nifti_grid`, `read_itk_grid` and `series_at`.
    """
    suffix = _suffix_of(path)
    if suffix:
        return read_itk_grid(path) if suffix in ITK_SUFFIXES else read_nifti_grid(path)
    series = series_at(Path(path))
    shape, affine = grid_of(series)
    return Volume(np.broadcast_to(np.float32(0), shape), affine, series.warnings)


def save_as_nifti(scan: str, target: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write a scan as NIfTI on the grid of `read_volume`, as int16 where that holds every voxel.

    Returns:
        What is odd about the scan, which the file does not say; each is logged.

    Raises:
        InputError: as `read_volume`, and as `write_nifti`.
    """
    volume = read_volume(scan)
    write_nifti(target, as_int16(volume.array), volume.affine)
    for warning in volume.warnings:
        logger.warning("%s: %s", scan, warning)
    return volume.warnings


def as_int16(array: np.ndarray) -> np.ndarray:
    """Return `array` as int16 where that holds every voxel, or else as it is."""
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    if array.min() < low or array.max() > high:
        return array
    whole = array.astype(np.int16)
    return whole if np.array_equal(whole, array) else array


def _suffix_of(path: str) -> str:
    """Return the suffix of a file with a volume, in lower case; "" of all else that is there."""
    file = Path(path)
    if not file.exists():
        there = (
            "a link to a file that is not there: fetch that"
            if file.is_symlink()
            else "no such file: fix the path"
        )
        raise InputError(f"{path}: there is {there} or remove the scan.")
    return "" if file.is_dir() else volume_suffix(path).lower()
