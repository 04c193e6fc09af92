"""Read NRRD and MetaImage files where ITK and 3D Slicer show them."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from liverseg.errors import InputError
from liverseg.io.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: str | os.PathLike[str]) -> Volume:
    """Read an NRRD or MetaImage file; a further axis of length 1 is dropped.

    Raises:
        InputError: for a file that cannot be read or is not whole, that is not one 3-D volume of
            real numbers, and without the package SimpleITK.
    """
    reader = _open(path)
    try:
        array = _itk(path).GetArrayFromImage(reader.Execute())
    except (RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error
    # ITK's arrays have their axes the other way round.
    return _placed(reader, array.reshape(array.shape[-3:]).transpose())


def read_itk_grid(path: str | os.PathLike[str]) -> Volume:
    """Read only the header as `read_itk` does; the array holds zeros that take no memory."""
    reader = _open(path)
    return _placed(reader, np.broadcast_to(np.float32(0), reader.GetSize()[:3]))


def _itk(path: str | os.PathLike[str]) -> Any:
    try:
        return importlib.import_module("SimpleITK")
    except ImportError as error:
        raise InputError(
            f"{path}: found no package SimpleITK, expected it for NRRD and MetaImage files: "
            "pip install SimpleITK."
        ) from error


def _open(path: str | os.PathLike[str]) -> Any:
    itk = _itk(path)
    reader = itk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) < 3 or any(length != 1 for length in size[3:]) or channels != 1:
        found = "×".join(map(str, [*size, *[f"{channels} values a voxel"] * (channels > 1)]))
        raise InputError(
            f"{path}: the volume is {found}, expected one 3-D volume of one number a voxel: save "
            "each channel or time point as its own file."
        )
    if "complex" in itk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(
            f"{path}: its voxels are complex numbers, expected one real number each: convert it."
        )
    return reader


def _placed(reader: Any, array: np.ndarray) -> Volume:
    dimension = reader.GetDimension()
    directions = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = directions * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    keys = reader.GetMetaDataKeys()
    warnings: tuple[str, ...] = ()
    is_nrrd = reader.GetMetaData("ITK_InputFilterName") == "NrrdImageIO"
    if is_nrrd and "NRRD_space" not in keys:
        warnings = (
            "its header does not say which way is left: its first axis is read as pointing to the "
            "left, as ITK and 3D Slicer do",
        )
    return Volume(array, LPS_TO_RAS @ affine, warnings)


def _unreadable(path: str | os.PathLike[str], error: BaseException) -> InputError:
    # ITK names its own source files first.
    reason = " ".join(str(error).rpartition("ITK ERROR: ")[2].split()).rstrip(".")
    return InputError(
        f"{path}: not readable as a volume ({reason or type(error).__name__}), expected a whole "
        "NRRD or MetaImage file: replace it or remove it."
    )
