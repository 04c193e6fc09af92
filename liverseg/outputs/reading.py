"""Read segmentations of other programs."""

from __future__ import annotations

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from liverseg.errors import InputError
from liverseg.io.dicom_segments import label_map
from liverseg.io.volumes import read_volume_grid
from liverseg.outputs.segmentation import Segmentation


def read_dicom_seg(path: str, scan: str) -> Segmentation:
    """Read a DICOM SEG, whoever wrote it, as a mask on the grid of a scan.

    Args:
        path: the DICOM SEG.
        scan: what it is of, as `read_volume` takes it.

    Raises:
        InputError: for a file that is no DICOM SEG, and as `label_map` and `read_volume`.
    """
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
