"""A DICOM series written by hand, with a mask that has what is hard about masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.dataset_trees import write_series
from liverseg.io.volumes import read_volume
from liverseg.outputs.segmentation import Segmentation

SHAPE = (24, 20, 9)
SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-31.25, 12.5, 40.0)
LPS = np.diag([-1.0, -1, 1, 1])
DIRECTIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "prone": ((-1, 0, 0), (0, -1, 0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.9, 0.3, -0.1), np.cross((0.2, -0.3, 1), (0.9, 0.3, -0.1))),
}
UIDS = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.9"}
PATIENT = {
    "PatientID": "7",
    "PatientName": "Grün^Jörg",
    "PatientBirthDate": "19600229",
    "PatientSex": "M",
    "SpecificCharacterSet": "ISO_IR 100",
}
NAMES = {1: "liver", 2: "lesion", 4: "right kidney", 5: "spleen", 9: "größtes Segment"}

ORGANS = {1: "spleen", 5: "liver", 6: "stomach", 7: "pancreas", 52: "aorta", 64: "portal vein"}


def series_affine(directions: str = "axial", step=None) -> np.ndarray:
    """Map (column, row, slice) to LPS mm."""
    row, column = (np.array(axis) / np.linalg.norm(axis) for axis in DIRECTIONS[directions])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * SPACING[0], column * SPACING[1]
    affine[:3, 2] = np.cross(row, column) * SPACING[2] if step is None else step
    affine[:3, 3] = ORIGIN
    return affine


def hard_mask(shape=SHAPE) -> np.ndarray:
    """A liver with holes, an island in one, voxels that meet at corners, at the scan's edge."""
    mask = np.zeros(shape, np.uint8)
    mask[:15, 3:18, 1:7] = 1
    mask[2:6, 5:9, 2:5] = 0
    mask[3, 7, 2:5] = 1
    mask[8:13, 5:16, 3:6] = 0
    mask[9:12, 7:14, 3:6] = 1
    mask[10, 9:11, 3:5] = 0
    mask[6, 9, 3] = mask[7, 4, 3] = 0
    mask[10, 10:12, 2] = 2
    mask[20, 18, 4] = 2
    mask[[18, 19, 18], [2, 3, 4], 5] = 5
    mask[-3:, -4:, -1] = 9
    return mask


def masked_series(folder: Path, affine: np.ndarray, **options: Any) -> Segmentation:
    """Write a series, slices at `affine` (to LPS), and return a mask of it."""
    scan = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)
    names = [f"{k}.dcm" for k in range(SHAPE[2])]
    write_series(folder, scan, LPS @ affine, names, **{**UIDS, **PATIENT, **options})
    return mask_of(folder, NAMES)


def mask_of(folder: Path, names: dict[int, str]) -> Segmentation:
    volume = read_volume(str(folder))
    mask = hard_mask(volume.array.shape)
    return Segmentation(str(folder), mask, volume.affine, names, "unet3d_liver", "0.2.0")


def real_masks(samples: Path) -> dict[str, Segmentation]:
    """Real series with organs that others drew, on the grid of the series."""
    import SimpleITK as sitk

    found = {}
    for scan, label, names in (
        ("ts_ct_dicom", "ts_ct_dicom_organs.nii.gz", ORGANS),
        ("dcmqi_ct/ct", "dcmqi_ct/liver_spine_seg.nrrd", {1: "liver", 2: "spine"}),
    ):
        volume = read_volume(str(samples / scan))
        image = sitk.ReadImage(str(samples / label))
        drawn = sitk.GetArrayFromImage(image).T
        to_lps = np.eye(4)
        to_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        to_lps[:3, 3] = image.GetOrigin()
        to_index = np.linalg.inv(LPS @ volume.affine) @ to_lps
        mask = np.zeros(volume.array.shape, np.uint8)
        for value in names:
            index = np.argwhere(drawn == value) @ to_index[:3, :3].T + to_index[:3, 3]
            mask[tuple(np.rint(index).astype(int).T)] = value
            assert (mask == value).any()
        found[scan] = Segmentation(str(samples / scan), mask, volume.affine, names, "x", "1")
    return found


def places(mask: np.ndarray, to_lps: np.ndarray) -> np.ndarray:
    """The centres of the voxels of a mask (H, W, D), (N, 3) mm in LPS, in one order."""
    points = np.argwhere(mask) @ to_lps[:3, :3].T + to_lps[:3, 3]
    return points[np.lexsort(np.round(points, 2).T)]
