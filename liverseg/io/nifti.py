"""Read and write NIfTI files, each where ITK and 3D Slicer show it.

A NIfTI file can say twice where it lies, as sform and as qform, and programs differ in which they
take. The rule here is ITK's, which 3D Slicer follows:

- the sform, where its axes are at right angles and it says "scanner" (code 1) or there is no qform;
  else the qform;
- voxel sizes from `pixdim`, lengths in metre or micron turned into mm;
- without any form, the first axis to the left, the second to the back, the third to the head, and
  the origin at 0.

ITK refuses a file whose only form is sheared, as by a tilted gantry: here it is read as it stands,
as nibabel does. What is written has both forms, alike, so that everybody reads it the same way.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from liverseg.errors import InputError
from liverseg.files import atomic_write
from liverseg.io.volume import Volume, largest_offset_mm

# What nibabel raises for files that are none, or not whole.
UNREADABLE = (
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)
# Forms that are closer than this everywhere differ by rounding.
SAME_MM = 0.1
# As ITK, of the products of the axes' directions.
RIGHT_ANGLE = 1e-4
SCANNER = 1
HEADER_SIZES = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
MM_PER_UNIT = {1: 1000.0, 3: 0.001}


def open_nifti(path: str | os.PathLike[str]) -> Any:
    """Return the nibabel image of a NIfTI file, 1 or 2; its voxels are not read yet.

    Raises:
        InputError: for a file that cannot be read, or is not one 3-D volume of real numbers.
            Further axes of length 1 are allowed.
    """
    try:
        image: Any = nib.load(path)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise InputError(
            f"{path}: the volume is {len(shape)}-D with shape {'×'.join(map(str, shape))}, "
            "expected one 3-D volume: save each channel or time point as its own file."
        )
    if min(shape) < 1:
        raise InputError(
            f"{path}: the volume of shape {'×'.join(map(str, shape))} holds "
            "no voxel: replace the file."
        )
    if dtype.kind not in "iuf":
        kind = (
            "complex numbers"
            if dtype.kind == "c"
            else "colours"
            if dtype.names
            else f"{dtype} values"
        )
        raise InputError(
            f"{path}: its voxels are {kind}, expected one real number each: convert it."
        )
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(
            f"{path}: found a {type(image).__name__}, expected a NIfTI volume: convert it."
        )
    # nibabel refuses the others below, and takes 0 at its word: the header would be voxels, and the
    # rest be shifted.
    voxels: Any = image.dataobj
    least = image.header.single_vox_offset
    if voxels.offset < least:
        raise InputError(
            f"{path}: its header says that voxels begin at byte {voxels.offset} "
            f"(vox_offset), in the header itself, expected {least} or more: correct "
            "vox_offset, or replace it or remove it."
        )
    return image


def read_nifti(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI file; further axes of length 1 are dropped.

    Raises:
        InputError: as `open_nifti`, and for a file that is not whole or does not say where it lies.
    """
    image = open_nifti(path)
    try:
        array = _read_packed(path, image) if _is_packed(path) else np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return _placed(path, image, array.reshape(array.shape[:3]))


def read_nifti_grid(path: str | os.PathLike[str]) -> Volume:
    """Read only the header as `read_nifti` does; the array holds zeros that take no memory."""
    image = open_nifti(path)
    return _placed(path, image, np.broadcast_to(np.float32(0), image.shape[:3]))


def write_nifti(
    path: str | os.PathLike[str],
    array: np.ndarray,
    affine: np.ndarray,
    description: str = "",
    slope: float | None = None,
) -> None:
    """Write a volume as NIfTI-1, atomically, with sform and qform alike.

    A qform cannot say a shear. A sheared volume has the sform alone, which ITK and 3D Slicer refuse
    to read rather than to show it elsewhere.

    Args:
        path: its suffix decides whether it is compressed.
        array: (H, W, D), of a type that NIfTI has.
        affine: (4, 4), voxel index to RAS mm.
        description: for the header's `descrip`, at most 79 characters.
        slope: what readers multiply the stored numbers by, the header's `scl_slope`.

    Raises:
        InputError: when it cannot be written; the old file is as it was.
    """
    # In the order of the file, or it is written voxel by voxel.
    image = nib.Nifti1Image(np.asfortranarray(array), affine)
    image.set_sform(affine, code=SCANNER)
    image.set_qform(affine, code=SCANNER)
    if largest_offset_mm(array.shape, affine, image.get_qform()) > SAME_MM:
        image.header["qform_code"] = 0
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    if slope is not None:
        image.header.set_slope_inter(slope, 0)

    with atomic_write(path) as file:
        if _is_packed(path):
            with gzip.GzipFile(
                fileobj=file, mode="wb", compresslevel=1, mtime=0, filename=""
            ) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _is_packed(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith(".gz")


def _read_packed(path: str | os.PathLike[str], image: Any) -> np.ndarray:
    with gzip.open(path) as stream:
        array = np.asanyarray(type(image).from_stream(stream).dataobj)
        # Only at its end does a damaged file say so, and nibabel stops where it has all voxels.
        while stream.read(2**20):
            pass
    return array


def unreadable(path: str | os.PathLike[str], error: BaseException) -> InputError:
    """Return the message for one of `UNREADABLE`, which nibabel raised for a file."""
    packed, advice, start = _is_packed(path), "replace it or remove it", b""
    if Path(path).is_file() and os.access(path, os.R_OK):
        with open(path, "rb") as file:
            start = file.read(4)
    if start[:2] == b"\x1f\x8b" and not packed:
        advice = "it is compressed, so end its name in .nii.gz"
    # The size of the header, in either byte order, of NIfTI-1 and NIfTI-2.
    elif start in HEADER_SIZES and packed:
        advice = "it is not compressed, so end its name in .nii"
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return InputError(
        f"{path}: not readable as a volume ({reason}), expected a whole NIfTI file: {advice}."
    )


def _placed(path: str | os.PathLike[str], image: Any, array: np.ndarray) -> Volume:
    header, shape = image.header, array.shape
    pixdim = _raw_header(image)["pixdim"][1:4].astype(np.float64)
    mm_per_unit = MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise _no_place(path, f"the voxel sizes {_sizes(pixdim)}")
    sform, qform = (_form(path, header, name, mm_per_unit) for name in ("sform", "qform"))
    affine, warnings = _choose(sform, qform, int(header["sform_code"]), mm_per_unit * pixdim, shape)
    if mm_per_unit != 1:
        warnings.append(
            f"its header gives lengths in {'metres' if mm_per_unit > 1 else 'microns'}: "
            "they are read as mm, as ITK and 3D Slicer do, and programs that do not, as "
            "nibabel, show its mask elsewhere"
        )
    # nibabel's own reading is one of the others, where it is another.
    others = [other for other in (sform, qform, image.affine) if other is not None]
    return Volume(
        array,
        affine,
        tuple(warnings),
        tuple(other for other in others if largest_offset_mm(shape, affine, other) > SAME_MM),
    )


def _choose(
    sform: np.ndarray | None,
    qform: np.ndarray | None,
    sform_code: int,
    sizes_mm: np.ndarray,
    shape: Sequence[int],
) -> tuple[np.ndarray, list[str]]:
    """Return the affine by ITK's rule, and what to warn of."""
    if sform is None:
        if qform is not None:
            return qform, []
        warning = (
            "it has neither sform nor qform, so that its orientation is a guess: it is read as ITK "
            "and 3D Slicer do, its first axis to the left and its second to the back"
        )
        return np.diag([-sizes_mm[0], -sizes_mm[1], sizes_mm[2], 1.0]), [warning]
    shear_degrees = _shear_degrees(sform)
    apart_mm = largest_offset_mm(shape, sform, sform if qform is None else qform)
    # To ITK, axes that are mirrored about the first voxel are the same.
    mirrored = qform is not None and np.allclose(
        np.abs(np.linalg.inv(qform) @ sform), np.eye(4), atol=RIGHT_ANGLE
    )
    if (
        qform is not None
        and apart_mm > SAME_MM
        and (shear_degrees or not (sform_code == SCANNER or mirrored))
    ):
        affine = qform
    elif shear_degrees:
        affine = sform
    else:
        # ITK takes no more than the directions from it.
        scaled = sform @ np.diag([*(sizes_mm / nib.affines.voxel_sizes(sform)), 1.0])
        affine = scaled if largest_offset_mm(shape, sform, scaled) > SAME_MM else sform
    if qform is not None and apart_mm > SAME_MM:
        by_qform = largest_offset_mm(shape, affine, qform) <= SAME_MM
        taken, other = ("qform", "sform") if by_qform else ("sform", "qform")
        return affine, [
            f"its sform and qform are up to {apart_mm:.1f} mm apart: it is read by its {taken}, as "
            f"ITK and 3D Slicer do, and programs that go by its {other} show its mask elsewhere, "
            "until it is saved again from 3D Slicer"
        ]
    if affine is not sform:
        return affine, [
            f"its sform has voxels of {_sizes(nib.affines.voxel_sizes(sform))} mm and its "
            f"pixdim of {_sizes(sizes_mm)} mm: it is read by its pixdim, as ITK and 3D "
            "Slicer do, and programs that go by its sform show its mask elsewhere, until it "
            "is saved again from 3D Slicer"
        ]
    if shear_degrees and qform is None:
        return affine, [
            f"its axes are sheared by {shear_degrees:.2f}°, as by a tilted gantry: ITK and 3D "
            "Slicer do not open it, until it is resampled to axes at right angles"
        ]
    return affine, []


def _form(
    path: str | os.PathLike[str], header: Any, name: str, mm_per_unit: float
) -> np.ndarray | None:
    """Return the affine that a form gives; None where its code says that it is not set."""
    if header[f"{name}_code"] <= 0:
        return None
    try:
        form = getattr(header, f"get_{name}")()
    except ValueError as error:
        raise _no_place(path, f"a qform that is no rotation ({error})") from error
    form[:3] *= mm_per_unit
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    # Of axes at right angles it is 1.
    if not (
        np.isfinite(form).all()
        and lengths.all()
        and abs(np.linalg.det(form[:3, :3] / lengths)) > 1e-3
    ):
        raise _no_place(path, f"the {name} {np.round(form[:3], 3).tolist()}")
    return form


def _no_place(path: str | os.PathLike[str], found: str) -> InputError:
    return InputError(
        f"{path}: its header has {found}, expected three axes in space of finite length: save it "
        "again from 3D Slicer if it lies in the right place there, or convert it again from DICOM."
    )


def _raw_header(image: Any) -> Any:
    # nibabel turns voxel sizes of 0 into 1 and takes the sign from others.
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as file:
        return type(image.header).from_fileobj(file, check=False)


def _shear_degrees(affine: np.ndarray) -> float:
    """Return how far the axes are from right angles; 0 for what ITK takes for right angles."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    product = directions @ directions.T
    if np.abs(product - np.eye(3)).max() <= RIGHT_ANGLE:
        return 0.0
    cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(np.abs(cosines).max())))


def _sizes(lengths: np.ndarray) -> str:
    return "×".join(f"{length:.4g}" for length in lengths)
