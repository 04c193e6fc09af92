from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.masked_series import (
    DIRECTIONS,
    LPS,
    NAMES,
    SHAPE,
    SPACING,
    hard_mask,
    mask_of,
    masked_series,
    places,
    real_masks,
    series_affine,
)
from helpers.waiting import SECONDS

from liverseg.errors import InputError
from liverseg.outputs.codes import CODES
from liverseg.outputs.segmentation import Segmentation

pydicom = pytest.importorskip("pydicom", reason='needs pip install ".[segment]"')
pytest.importorskip("highdicom", reason='needs pip install ".[segment]"')
sitk = pytest.importorskip("SimpleITK")
dcmqi = pytest.importorskip("dcmqi")

from liverseg.outputs.dicom_seg import write_dicom_seg  # noqa: E402

MASK = hard_mask()
FOUND = [value for value in NAMES if (value == MASK).any()]


def written(segmentation: Segmentation, folder: Path) -> pydicom.Dataset:
    write_dicom_seg(segmentation, folder / "mask.dcm")
    return pydicom.dcmread(folder / "mask.dcm")


def frame_places(dataset: pydicom.Dataset, segment: int) -> np.ndarray:
    """The centres of a segment's pixels, mm in LPS, by what DICOM says of each frame."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    found = []
    for group, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            to_lps = np.eye(4)
            to_lps[:3, 0], to_lps[:3, 1] = column.astype(float), row.astype(float)
            to_lps[:3, :2] *= row_mm, column_mm
            to_lps[:3, 3] = group.PlanePositionSequence[0].ImagePositionPatient
            found.append(places(pixels[:, :, None], to_lps))
    points = np.concatenate(found)
    return points[np.lexsort(np.round(points, 2).T)]


def dcmqi_places(file: Path, folder: Path) -> dict[str, np.ndarray]:
    """The centres of each segment's voxels as dcmqi reads them, by label."""
    tool = Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage"
    command = [tool, "--inputDICOM", file, "--outputDirectory", folder, "--outputType", "nrrd"]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    found = {}
    labels = [each.SegmentLabel for each in pydicom.dcmread(file).SegmentSequence]
    for number, label in enumerate(labels, 1):
        image = sitk.ReadImage(str(folder / f"{number}.nrrd"))
        to_lps = np.eye(4)
        directions = np.array(image.GetDirection()).reshape(3, 3)
        to_lps[:3, :3], to_lps[:3, 3] = directions * image.GetSpacing(), image.GetOrigin()
        found[label] = places(sitk.GetArrayFromImage(image).T > 0, to_lps)
    return found


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_dcmqi_reads_the_voxels_where_they_are(tmp_path, directions):
    affine = series_affine(directions)
    dataset = written(masked_series(tmp_path / "ct", affine), tmp_path)
    (tmp_path / "out").mkdir()
    read = dcmqi_places(tmp_path / "mask.dcm", tmp_path / "out")
    assert list(read) == [NAMES[value] for value in FOUND]
    for number, value in enumerate(FOUND, 1):
        here = places(value == MASK, affine)
        assert np.allclose(read[NAMES[value]], here, atol=1e-3)
        assert np.allclose(frame_places(dataset, number), here, atol=1e-3)


def test_it_says_what_it_is_and_of_whom(tmp_path):
    segmentation = masked_series(tmp_path / "ct", series_affine())
    dataset = written(segmentation, tmp_path)
    assert dataset.SOPClassUID == pydicom.uid.SegmentationStorage
    assert (dataset.Modality, dataset.SegmentationType) == ("SEG", "BINARY")
    assert (dataset.PatientID, str(dataset.PatientName)) == ("7", "Grün^Jörg")
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == ("1.2", "1.2.9")
    assert dataset.SeriesInstanceUID != "1.2.3"
    assert dataset.SeriesDescription == "Segmentation by unet3d_liver 0.2.0"
    labels = [each.SegmentLabel for each in dataset.SegmentSequence]
    assert labels == ["liver", "lesion", "spleen", "größtes Segment"]
    for segment in dataset.SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("unet3d_liver", "0.2.0")
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        code = CODES.get(segment.SegmentLabel)
        if code:
            (kind,) = segment.SegmentedPropertyTypeCodeSequence
            assert (kind.CodeValue, kind.CodeMeaning) == code.kind
            (category,) = segment.SegmentedPropertyCategoryCodeSequence
            assert (category.CodeValue, category.CodingSchemeDesignator) == (
                code.category[0],
                "SCT",
            )
    lesion = dataset.SegmentSequence[1]
    assert lesion.AnatomicRegionSequence[0].CodeValue == "10200004"
    # By the definition in PS3.3, C.10.7.1.1, of the colour of the liver, (54.9, 30.6, 29.6) by
    # scikit-image's sibling OpenCV.
    import cv2

    rgb = np.float32([[[221, 130, 101]]]) / 255
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)[0, 0]
    stored = np.array(dataset.SegmentSequence[0].RecommendedDisplayCIELabValue) / 65535
    assert np.allclose(stored * [100, 255, 255] - [0, 128, 128], lab, atol=0.2)


def test_a_side_modifies_the_code(tmp_path):
    segmentation = masked_series(tmp_path / "ct", series_affine())
    right = replace(segmentation, class_names={**NAMES, 1: "right kidney"})
    (kind,) = written(right, tmp_path).SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert kind.CodeValue == "64033007"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "24028007"


def test_frames_refer_to_their_slices(tmp_path):
    masked = masked_series(tmp_path / "ct", series_affine("oblique"))
    dataset = written(masked, tmp_path)
    sources = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    by_uid = {each.SOPInstanceUID: each for each in sources}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        position = by_uid[source.ReferencedSOPInstanceUID].ImagePositionPatient
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, position)
        assert "ReferencedFrameNumber" not in source
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3"
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence} == set(
        by_uid
    )


def test_frames_of_a_tilted_gantry_lie_on_its_slices(tmp_path):
    # Each slice lies 1.13 mm behind the one before.
    step = np.array([0, 1.13, SPACING[2]])
    masked = masked_series(tmp_path / "ct", series_affine(step=step))
    assert masked.mask.shape > SHAPE
    dataset = written(masked, tmp_path)
    assert (dataset.Rows, dataset.Columns) == SHAPE[1::-1]
    positions = [
        group.PlanePositionSequence[0].ImagePositionPatient
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    sources = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    theirs = np.array([each.ImagePositionPatient for each in sources], float)
    apart_mm = np.array(positions, float)[:, None] - theirs
    assert np.linalg.norm(apart_mm, axis=2).min(axis=1).max() < 1e-6
    # A pixel is what the mask is at the voxel that its centre lies in.
    found = frame_places(dataset, 1)
    index = found @ np.linalg.inv((LPS @ masked.affine)[:3, :3]).T
    index -= np.linalg.inv((LPS @ masked.affine)[:3, :3]) @ (LPS @ masked.affine)[:3, 3]
    assert np.abs(index[:, [0, 2]] - np.rint(index[:, [0, 2]])).max() < 1e-3
    i, j, k = np.rint(index).astype(int).T
    assert (masked.mask[i, j, k] == 1).all()
    # Beside a slice, where nothing was measured, it has no pixel.
    _, j, k = np.argwhere(masked.mask == 1).T
    rows = j - k * 1.13 / SPACING[1]
    assert np.isclose(len(found), ((rows > -0.5) & (rows < SHAPE[1] - 0.5)).sum(), rtol=0.02)


def enhanced(folder: Path) -> Path:
    """The series of `masked_series` as one file, frames in another order, in which all differ."""
    from pydicom.dataset import Dataset

    masked_series(folder / "single", series_affine("oblique"))
    singles = [pydicom.dcmread(folder / "single" / f"{k}.dcm") for k in (4, 0, 7, 2, 8, 1, 3, 6, 5)]
    one = singles[0]
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    one.NumberOfFrames = len(singles)
    groups = []
    for each in singles:
        group, position, plane, measures = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = each.ImagePositionPatient
        plane.ImageOrientationPatient = each.ImageOrientationPatient
        measures.PixelSpacing = each.PixelSpacing
        group.PlanePositionSequence, group.PlaneOrientationSequence = [position], [plane]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    one.PixelData = b"".join(each.PixelData for each in singles)
    one.PerFrameFunctionalGroupsSequence = groups
    one.SharedFunctionalGroupsSequence = [Dataset()]
    del one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing
    (folder / "enhanced").mkdir()
    one.save_as(folder / "enhanced" / "all.dcm")
    return folder / "enhanced"


def test_frames_refer_to_frames_of_an_enhanced_file(tmp_path):
    folder = enhanced(tmp_path)
    masked = mask_of(folder, NAMES)
    dataset = written(masked, tmp_path)
    source = pydicom.dcmread(folder / "all.dcm")
    for number, value in enumerate(FOUND, 1):
        here = places(value == MASK, series_affine("oblique"))
        assert np.allclose(frame_places(dataset, number), here, atol=1e-3)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        frame = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        assert np.allclose(
            group.PlanePositionSequence[0].ImagePositionPatient,
            frame.PlanePositionSequence[0].ImagePositionPatient,
        )
    (series,) = dataset.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == len(dataset.SourceImageSequence) == 1


def refusal(segmentation: Segmentation, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        write_dicom_seg(segmentation, folder / "mask.dcm")
    assert not (folder / "mask.dcm").exists()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_dicom_cannot_refer_to_is_refused(tmp_path, write_nifti):
    masked = masked_series(tmp_path / "ct", series_affine())
    nifti = write_nifti("scan.nii.gz", np.zeros(SHAPE, np.int16))
    assert "scan.nii.gz: found no DICOM series" in refusal(replace(masked, scan=nifti), tmp_path)
    other = replace(masked, mask=masked.mask[:, :-1])
    assert "found a mask of 24×19×9 voxels on another grid" in refusal(other, tmp_path)
    moved = replace(masked, affine=masked.affine + 0.1)
    assert "on another grid" in refusal(moved, tmp_path)
    empty = replace(masked, mask=np.zeros_like(masked.mask))
    assert "found no voxel of any class" in refusal(empty, tmp_path)


def test_files_of_several_series_are_refused(tmp_path):
    from pydicom.uid import generate_uid

    def change(dataset, k):
        dataset.SeriesInstanceUID = generate_uid()

    masked = masked_series(tmp_path / "ct", series_affine(), change=change)
    assert "found 9 SeriesInstanceUID in its files, expected one" in refusal(masked, tmp_path)


def test_a_series_without_uids_is_written_and_said(tmp_path, caplog):
    masked = masked_series(
        tmp_path / "ct", series_affine(), StudyInstanceUID="", FrameOfReferenceUID=None
    )
    dataset = written(masked, tmp_path)
    assert "no StudyInstanceUID and no FrameOfReferenceUID" in caplog.text
    assert len(dataset.StudyInstanceUID) > 10
    again = written(masked, tmp_path)
    assert again.StudyInstanceUID == dataset.StudyInstanceUID
    assert again.SOPInstanceUID != dataset.SOPInstanceUID
    assert np.allclose(frame_places(again, 1), places(MASK == 1, series_affine()), atol=1e-3)


def test_odd_headers_are_copied_as_they_are(tmp_path):
    masked = masked_series(
        tmp_path / "ct",
        series_affine(),
        PatientSex="X",
        PatientBirthDate="",
        StudyID=None,
        SOPClassUID=None,
        SOPInstanceUID=None,
    )
    assert written(masked, tmp_path).PatientSex == "X"


@pytest.mark.real_data
@pytest.mark.parametrize("scan", ["ts_ct_dicom", "dcmqi_ct/ct"])
def test_real_series(samples, tmp_path, scan):
    masked = real_masks(samples)[scan]
    dataset = written(masked, tmp_path)
    (tmp_path / "out").mkdir()
    read = dcmqi_places(tmp_path / "mask.dcm", tmp_path / "out")
    assert list(read) == list(masked.class_names.values())
    for number, (value, name) in enumerate(masked.class_names.items(), 1):
        here = places(masked.mask == value, LPS @ masked.affine)
        assert np.allclose(read[name], here, atol=1e-3)
        assert np.allclose(frame_places(dataset, number), here, atol=1e-3)


@pytest.mark.real_data
def test_the_label_server_reads_it(samples, tmp_path):
    from lib.store.segmentation_voxels import write_label
    from liverseg.io.volumes import save_as_nifti

    masked = real_masks(samples)["ts_ct_dicom"]
    save_as_nifti(masked.scan, tmp_path / "scan.nii.gz")
    dataset = written(masked, tmp_path)
    names = write_label([dataset], tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz")
    read = np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    for each in names:
        (value,) = (value for value, name in masked.class_names.items() if name == each["name"])
        assert np.array_equal(read == each["idx"], masked.mask == value)
