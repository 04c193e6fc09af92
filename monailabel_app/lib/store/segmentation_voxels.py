"""What DICOM SEGs are on the grid of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from liverseg.io.dicom_segments import label_map
from liverseg.io.nifti import read_nifti_grid, write_nifti


def write_label(segmentations: Sequence[Dataset], scan: Path, target: Path) -> list[dict[str, Any]]:
    """Write DICOM SEGs as one NIfTI label map, uint8, on the grid of a scan.

    Args:
        segmentations: as `label_map` takes them.
        scan: NIfTI file.
        target: NIfTI file to write.

    Returns:
        `name` and value (`idx`) of each segment.

    Raises:
        InputError: as `label_map`.
    """
    grid = read_nifti_grid(scan)
    label, names = label_map(segmentations, grid.affine, grid.array.shape)
    write_nifti(target, label, grid.affine)
    return [{"name": name, "idx": value} for value, name in names.items()]
