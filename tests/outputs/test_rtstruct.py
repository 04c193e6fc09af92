from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_trees import write_series
from helpers.masked_series import (
    DIRECTIONS,
    LPS,
    NAMES,
    SHAPE,
    SPACING,
    UIDS,
    hard_mask,
    masked_series,
    places,
    real_masks,
    series_affine,
)
from matplotlib.path import Path as Polygon

from liverseg.errors import InputError
from liverseg.outputs.segmentation import Segmentation

pydicom = pytest.importorskip("pydicom", reason='needs pip install ".[segment]"')
pytest.importorskip("highdicom", reason='needs pip install ".[segment]"')

from liverseg.outputs.rtstruct import write_rtstruct  # noqa: E402

MASK = hard_mask()
FOUND = {value: name for value, name in NAMES.items() if (value == MASK).any()}


def written(segmentation: Segmentation, folder: Path) -> pydicom.Dataset:
    write_rtstruct(segmentation, folder / "structures.dcm")
    return pydicom.dcmread(folder / "structures.dcm")


def slices_in(folder: Path) -> dict[str, pydicom.Dataset]:
    datasets = (pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir())
    return {each.file_meta.MediaStorageSOPInstanceUID: each for each in datasets}


def drawn(roi: pydicom.Dataset, slices: dict[str, pydicom.Dataset]) -> np.ndarray:
    """The centres, mm in LPS, of the pixels in a ROI's contours, by the slices they refer to."""
    found = []
    for contour in roi.ContourSequence:
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
        assert len(points) == contour.NumberOfContourPoints
        one = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        row, column = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
        row_mm, column_mm = map(float, one.PixelSpacing)
        to_lps = np.eye(4)
        to_lps[:3, :3] = np.stack([row * column_mm, column * row_mm, np.cross(row, column)], 1)
        to_lps[:3, 3] = one.ImagePositionPatient
        index = (points - to_lps[:3, 3]) @ np.linalg.inv(to_lps[:3, :3]).T
        # In the plane of the slice that it refers to.
        assert np.abs(index[:, 2]).max() < 1e-3
        corner = np.floor(index.min(axis=0)).astype(int)[:2]
        size = np.ceil(index.max(axis=0)).astype(int)[:2] - corner + 1
        pixels = np.array(list(np.ndindex(*size))) + corner
        inside = pixels[Polygon(index[:, :2]).contains_points(pixels)]
        found.append(np.insert(inside, 2, 0, axis=1) @ to_lps[:3, :3].T + to_lps[:3, 3])
    points = np.concatenate(found)
    return points[np.lexsort(np.round(points, 2).T)]


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_contours_hold_the_voxels_of_the_mask(tmp_path, directions):
    affine = series_affine(directions)
    dataset = written(masked_series(tmp_path / "ct", affine), tmp_path)
    slices = slices_in(tmp_path / "ct")
    assert len(dataset.ROIContourSequence) == len(FOUND)
    for value, roi in zip(FOUND, dataset.ROIContourSequence, strict=True):
        # To 0.01 mm of a voxel of 0.7 mm, as to half a voxel nothing would be told apart.
        assert np.allclose(drawn(roi, slices), places(value == MASK, affine), atol=0.01)


def test_contours_of_a_tilted_gantry_lie_in_its_slices(tmp_path):
    # Each slice lies 1.13 mm behind the one before.
    step = np.array([0, 1.13, SPACING[2]])
    masked = masked_series(tmp_path / "ct", series_affine(step=step))
    dataset = written(masked, tmp_path)
    slices = slices_in(tmp_path / "ct")
    affine = LPS @ masked.affine
    to_index = np.linalg.inv(affine)
    centres = np.concatenate(
        [
            [*one.ImagePositionPatient] + np.array([*np.ndindex(*SHAPE[:2], 1)]) * SPACING
            for one in slices.values()
        ]
    ).astype(float)
    i, j, k = (centres @ to_index[:3, :3].T + to_index[:3, 3]).T
    i, k = np.rint(i).astype(int), np.rint(k).astype(int)
    for value, roi in zip(FOUND, dataset.ROIContourSequence, strict=True):
        inside = {tuple(point) for point in drawn(roi, slices).round(2)}
        found = np.array([tuple(point) in inside for point in centres.round(2)])
        # A pixel lies between two voxels of a column: where they are alike, it is as they are.
        before, after = (
            masked.mask[i, side(j).astype(int), k] == value for side in (np.floor, np.ceil)
        )
        assert np.array_equal(found[before == after], before[before == after])
        assert found.sum() > 500 or value != 1


def test_it_says_what_it_is_and_of_whom(tmp_path):
    masked = masked_series(tmp_path / "ct", series_affine())
    dataset = written(masked, tmp_path)
    assert dataset.SOPClassUID == pydicom.uid.RTStructureSetStorage
    assert dataset.Modality == "RTSTRUCT"
    assert (dataset.PatientID, str(dataset.PatientName)) == ("7", "Grün^Jörg")
    assert dataset.StudyInstanceUID == "1.2"
    assert dataset.ApprovalStatus == "UNAPPROVED"
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == "1.2.9"
    (study,) = frame.RTReferencedStudySequence
    assert study.ReferencedSOPInstanceUID == "1.2"
    (series,) = study.RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3"
    referenced = {each.ReferencedSOPInstanceUID for each in series.ContourImageSequence}
    assert referenced == set(slices_in(tmp_path / "ct"))
    rois = dataset.StructureSetROISequence
    assert [roi.ROIName for roi in rois] == list(FOUND.values())
    assert {roi.ROIGenerationAlgorithm for roi in rois} == {"AUTOMATIC"}
    assert {roi.ReferencedFrameOfReferenceUID for roi in rois} == {"1.2.9"}
    numbers = [roi.ROINumber for roi in rois]
    assert [each.ReferencedROINumber for each in dataset.ROIContourSequence] == numbers
    assert [each.ReferencedROINumber for each in dataset.RTROIObservationsSequence] == numbers
    assert dataset.ROIContourSequence[0].ROIDisplayColor == [221, 130, 101]
    codes = [
        each.RTROIIdentificationCodeSequence[0].CodeValue
        for each in dataset.RTROIObservationsSequence
    ]
    assert codes == ["10200004", "4147007", "78961009", "85756007"]


def test_a_contour_may_be_longer_than_64_kb(tmp_path):
    shape = (90, 80, 2)
    write_series(tmp_path / "ct", np.zeros(shape, np.int16), LPS, ["0", "1"], **UIDS)
    mask = (np.random.default_rng(0).random(shape) > 0.2).astype(np.uint8)
    masked = Segmentation(str(tmp_path / "ct"), mask, LPS, {1: "liver"})
    (roi,) = written(masked, tmp_path).ROIContourSequence
    assert max(len("\\".join(map(str, one.ContourData))) for one in roi.ContourSequence) > 2**16
    here = places(mask, np.eye(4))
    assert np.allclose(drawn(roi, slices_in(tmp_path / "ct")), here, atol=0.01)


def test_a_scan_that_is_no_series_is_refused(tmp_path, write_nifti):
    masked = masked_series(tmp_path / "ct", series_affine())
    nifti = write_nifti("scan.nii.gz", np.zeros(MASK.shape, np.int16))
    with pytest.raises(InputError, match="no DICOM series, expected one, as an RT Structure Set"):
        write_rtstruct(replace(masked, scan=nifti), tmp_path / "structures.dcm")
    assert not (tmp_path / "structures.dcm").exists()


@pytest.mark.real_data
@pytest.mark.parametrize("scan", ["ts_ct_dicom", "dcmqi_ct/ct"])
def test_real_series(samples, tmp_path, scan):
    masked = real_masks(samples)[scan]
    dataset = written(masked, tmp_path)
    slices = slices_in(samples / scan)
    values = list(masked.class_names)
    for value, roi in zip(values, dataset.ROIContourSequence, strict=True):
        here = places(masked.mask == value, LPS @ masked.affine)
        assert np.allclose(drawn(roi, slices), here, atol=0.01)
