"""Read segmentations of other programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from liverseg.errors import InputError
from liverseg.io.dicom_header import require_pydicom
from liverseg.io.paths import ITK_SUFFIXES, volume_suffix
from liverseg.io.volumes import read_volume, read_volume_grid
from liverseg.outputs.segmentation import Segmentation

# Further from a whole number than a file's scaling leaves it.
NOT_WHOLE = 0.01
SAME_MM = 0.01


def read_segmentation(path: str, scan: str, names: Mapping[int, str] | None = None) -> Segmentation:
    """Read a mask of any format, whoever wrote it, on the grid of a scan.

    Args:
        path: a NIfTI, NRRD or MetaImage file with a whole number for each class, or a DICOM SEG.
            What lies on another grid is resampled to the nearest voxel.
        scan: what it is of, as `read_volume` takes it.
        names: of the values; over those that a DICOM SEG or `.seg.nrrd` has itself.

    Raises:
        InputError: for voxels that are no classes, for a mask that does not lie in the scan, and as
            `read_dicom_seg` and `read_volume`.
    """
    found = _read_volume_mask(path, scan) if volume_suffix(path) else read_dicom_seg(path, scan)
    values = np.unique(found.mask[found.mask > 0]).tolist()
    named = {value: f"segment {value}" for value in values} | {**found.class_names, **(names or {})}
    return replace(found, class_names={value: name for value, name in named.items() if value})


def read_dicom_seg(path: str, scan: str) -> Segmentation:
    """Read a DICOM SEG, whoever wrote it, as a mask on the grid of a scan.

    Args:
        path: the DICOM SEG.
        scan: what it is of, as `read_volume` takes it.

    Raises:
        InputError: for a file that is no DICOM SEG, and as `label_map` and `read_volume`.
    """
    require_pydicom(Path(path))
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    from liverseg.io.dicom_segments import label_map

    try:
        dataset = dcmread(path)
    except (InvalidDicomError, OSError) as error:
        raise InputError(
            f"{path}: not readable as DICOM ({error}), expected a DICOM SEG: choose another file."
        ) from error
    if "SegmentSequence" not in dataset:
        raise InputError(
            f"{path}: found a DICOM file of {dataset.get('Modality')}, expected a DICOM SEG: "
            "choose another file."
        )
    grid = read_volume_grid(scan)
    try:
        mask, names = label_map([dataset], grid.affine, grid.array.shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Segmentation(scan, mask, grid.affine, names)


def _read_volume_mask(path: str, scan: str) -> Segmentation:
    volume, grid = read_volume(path), read_volume_grid(scan)
    whole = np.rint(volume.array)
    if not (np.abs(volume.array - whole) < NOT_WHOLE).all() or whole.min() < 0 or whole.max() > 255:
        raise InputError(
            f"{path}: found voxels from {volume.array.min():g} to {volume.array.max():g}, expected "
            "a mask, with whole numbers from 0 to 255: choose another file."
        )
    image = nib.Nifti1Image(whole.astype(np.uint8), volume.affine)
    moved = resample_from_to(image, (grid.array.shape, grid.affine), order=0)
    mask = np.asarray(moved.dataobj)
    lost = set(np.unique(whole).astype(int).tolist()) - set(np.unique(mask).tolist()) - {0}
    if lost:
        raise InputError(
            f"{path}: found voxels of {', '.join(map(str, sorted(lost)))} outside of {scan} alone, "
            "expected a mask that lies in the scan: give the scan that it is of."
        )
    # Reordered axes are the same grid.
    own, other = (nib.as_closest_canonical(each) for each in (image, moved))
    same = own.shape == other.shape and np.allclose(own.affine, other.affine, atol=SAME_MM)
    warnings = () if same else (
        "the mask lies on another grid than the scan: each voxel of the scan has the class of the "
        "nearest one of the mask",
    )  # fmt: skip
    return Segmentation(scan, mask, grid.affine, _names_in(path), warnings=warnings)


def _names_in(path: str) -> dict[int, str]:
    """Return the names of the segments in the header of a `.seg.nrrd`; none of other files."""
    if volume_suffix(path).lower() not in ITK_SUFFIXES:
        return {}
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    found = {}
    for key in reader.GetMetaDataKeys():
        number = re.fullmatch(r"(Segment\d+_)Name", key)
        if number:
            value = int(reader.GetMetaData(f"{number[1]}LabelValue"))
            found[value] = reader.GetMetaData(key)
    return found
