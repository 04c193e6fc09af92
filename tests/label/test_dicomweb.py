"""The studies of a DICOM server, read through dicomweb-client's own implementation on DICOM files."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import SimpleITK
from dicomweb_client import DICOMfileClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lib.dicomweb import DicomwebDatastore, connect
from liverseg.errors import InputError

STUDY, SERIES, MIXED, TILTED = "1.2.3", "1.2.3.4", "1.2.3.5", "1.2.3.6"
SHAPE = (9, 7, 5)
# Rows and columns are tilted, voxels have three sizes; LPS in mm.
ROW, COLUMN = np.array([0.8, 0.6, 0]), np.array([-0.6, 0.8, 0])
SPACING = (1.5, 2.0, 4.0)
ORIGIN = np.array([-20.0, 30, 5])
SCAN = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
AFFINE = np.diag([-1, -1, 1, 1]) @ np.block(
    [[np.stack([ROW, COLUMN, [0, 0, 1]], 1) * SPACING, ORIGIN[:, None]], [np.zeros((1, 3)), 1]]
)


def write_slice(folder: Path, series: str, number: int, pixels: np.ndarray, aside_mm: float = 0) -> None:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = UID(f"{series}.{number + 1}")
    one.is_little_endian, one.is_implicit_VR = True, False
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = STUDY, series, "1.2.3.9"
    one.Modality, one.PatientID, one.PatientName, one.StudyDate, one.StudyTime = "CT", "p", "p", "20260101", "120000"
    one.PatientSex = one.PatientBirthDate = one.StudyID = one.AccessionNumber = one.ReferringPhysicianName = ""
    one.SeriesNumber, one.InstanceNumber = 1, number + 1
    one.ImagePositionPatient = (ORIGIN + number * (np.array([0, 0, SPACING[2]]) + aside_mm * COLUMN)).tolist()
    one.ImageOrientationPatient = [*ROW, *COLUMN]
    one.PixelSpacing, one.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    one.Rows, one.Columns = pixels.shape[1], pixels.shape[0]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 1
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.RescaleIntercept, one.RescaleSlope = 15, 0, 1
    one.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    one.save_as(folder / f"{series}_{number}.dcm", write_like_original=False)


def spot(number: int) -> np.ndarray:
    """A slice of a rod that stands upright in a tilted scan: it moves against the slices."""
    pixels = np.zeros(SHAPE[:2], np.int16)
    pixels[4, 6 - number] = 1000
    return pixels


@pytest.fixture
def client(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    # Files are in another order than slices.
    for number in (3, 0, 4, 1, 2):
        write_slice(folder, SERIES, number, SCAN[:, :, number])
    for number in (0, 1):
        write_slice(folder, MIXED, number, SCAN[: 9 - number, :, number])
    for number in range(5):
        write_slice(folder, TILTED, number, spot(number), aside_mm=3.0)
    return DICOMfileClient(url=folder.as_uri(), in_memory=True, update_db=True)


@pytest.fixture
def new_store(client, tmp_path, monkeypatch):
    """A function for the datastore of a server that never saw this DICOM server before."""
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    stores: list[DicomwebDatastore] = []

    def make() -> DicomwebDatastore:
        store = DicomwebDatastore(
            client=client, search_filter={"Modality": "CT"}, cache_path=str(tmp_path / f"cache{len(stores)}")
        )
        stores.append(store)
        return store

    yield make
    for store in stores:
        store._observer.stop()


@pytest.fixture
def store(new_store):
    return new_store()


def load(file: str) -> nib.Nifti1Image:
    return nib.load(file)


def save(store: DicomwebDatastore, folder: Path, label: np.ndarray, info: dict) -> None:
    file = folder / "drawn.nii.gz"
    nib.save(nib.Nifti1Image(label.astype(np.uint8), AFFINE), file)
    store.save_label(SERIES, str(file), "final", info)


def drawn(*values: int) -> np.ndarray:
    label = np.zeros(SHAPE)
    for number, value in enumerate(values):
        label[1 + 2 * number : 3 + 2 * number, 2:4, 1 + number] = value
    return label


def test_a_scan_has_its_voxels_at_their_places(store):
    scan = load(store.get_image_uri(SERIES))
    assert np.allclose(scan.affine, AFFINE, atol=1e-4)
    assert np.array_equal(np.asanyarray(scan.dataobj), SCAN)


def test_a_tilted_scan_lies_where_it_was_taken_for_itk_too(store):
    scan = store.get_image_uri(TILTED)
    image = SimpleITK.ReadImage(scan)
    voxels = SimpleITK.GetArrayFromImage(image).T.astype(float)
    assert np.allclose(load(scan).affine[:3, 2], [0, 0, SPACING[2]], atol=1e-6)
    for number in range(5):
        bright = np.argwhere(voxels[:, :, number] > 0)
        weights = voxels[:, :, number][tuple(bright.T)]
        index = [*(weights @ bright / weights.sum()), float(number)]
        expected = ORIGIN + ROW * 4 * SPACING[0] + COLUMN * ((6 - number) * SPACING[1] + 3 * number)
        expected[2] += SPACING[2] * number
        assert np.allclose(image.TransformContinuousIndexToPhysicalPoint(index), expected, atol=1e-3)


def test_what_is_left_of_a_download_that_was_cut_short_is_not_taken_for_the_scan(store):
    part = Path(store._datastore.image_path()) / SERIES
    part.mkdir()
    write_slice(part, SERIES, 0, SCAN[:, :, 0])
    assert load(store.get_image_uri(SERIES)).shape == SHAPE


@pytest.mark.parametrize("name", ["1.2.999", "../../../etc", "..", "", "/etc"])
def test_what_is_no_series_of_the_server_is_no_image(store, name):
    assert store.get_image_uri(name) == ""


def test_a_series_that_is_no_volume_is_said(store):
    with pytest.raises(InputError, match=f"image {MIXED}: no CT or MRI series in it .only single slice"):
        store.get_image_uri(MIXED)


def test_info_of_a_scan_that_nobody_opened_yet(store):
    assert store.get_unlabeled_images() and SERIES in store.list_images()
    store.update_image_info(SERIES, {"served": {"a": 1}})
    info = store.get_image_info(SERIES)
    # What OHIF needs to open it.
    assert info["StudyInstanceUID"] == STUDY and info["served"] == {"a": 1}


def test_a_label_is_a_dicom_seg_with_the_names_of_its_segments(store, new_store, client, tmp_path):
    label = drawn(1, 3)
    names = [{"name": name, "idx": value} for value, name in enumerate(["liver", "lesion", "spleen"], 1)]
    save(store, tmp_path, label, {"label_info": names})
    (found,) = client.search_for_series(search_filters={"Modality": "SEG"})
    series = Dataset.from_json(found).SeriesInstanceUID
    (segmentation,) = client.retrieve_series(STUDY, series)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["liver", "spleen"]
    assert store.get_labeled_images() == [SERIES]
    assert SERIES not in store.get_unlabeled_images()

    other = new_store()
    read = load(other.get_label_uri(SERIES, "final"))
    assert np.allclose(read.affine, AFFINE, atol=1e-4)
    value = {one["name"]: one["idx"] for one in other.get_label_info(SERIES, "final")["label_info"]}
    voxels = np.asanyarray(read.dataobj)
    assert np.array_equal(voxels == value["liver"], label == 1)
    assert np.array_equal(voxels == value["spleen"], label == 3)


def test_a_label_of_floats_is_saved_as_its_whole_numbers(store, client, tmp_path):
    file = tmp_path / "drawn.nii.gz"
    nib.save(nib.Nifti1Image(drawn(1, 3).astype(np.float32) * np.float32(0.9999999), AFFINE), file)
    names = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 3}]
    store.save_label(SERIES, str(file), "final", {"label_info": names})
    (found,) = client.search_for_series(search_filters={"Modality": "SEG"})
    (segmentation,) = client.retrieve_series(STUDY, Dataset.from_json(found).SeriesInstanceUID)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["liver", "spleen"]
    assert int(segmentation.pixel_array.sum()) == np.count_nonzero(drawn(1, 3))
    assert np.array_equal(load(store.get_label_uri(SERIES, "final")).get_fdata() > 0, drawn(1, 3) > 0)


def test_a_mask_that_is_saved_as_label_has_the_models_names(store, client, tmp_path):
    save(store, tmp_path, drawn(2), {"model": "m", "params": {"label_names": {"liver": 1, "lesion": 2}}})
    (found,) = client.search_for_series(search_filters={"Modality": "SEG"})
    (segmentation,) = client.retrieve_series(STUDY, Dataset.from_json(found).SeriesInstanceUID)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["lesion"]
    assert segmentation.SeriesDescription == "m"


def test_the_newest_dicom_seg_counts_whoever_sent_it(store, client, tmp_path):
    save(store, tmp_path, drawn(1), {"label_info": [{"name": "liver", "idx": 1}]})
    (found,) = client.search_for_series(search_filters={"Modality": "SEG"})
    (segmentation,) = client.retrieve_series(STUDY, Dataset.from_json(found).SeriesInstanceUID)
    # A UID that comes first, so that the date decides.
    segmentation.SeriesInstanceUID, segmentation.SeriesDate = "1.1.5", "20990101"
    segmentation.SOPInstanceUID = segmentation.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    segmentation.SegmentSequence[0].SegmentLabel = "lesion"
    client.store_instances([segmentation])
    (item,) = store.datalist()
    assert np.array_equal(np.asanyarray(load(item["label"]).dataobj) > 0, drawn(1) > 0)
    assert store.get_label_info(SERIES, "final")["label_info"] == [{"name": "lesion", "idx": 1}]


def test_a_label_without_a_segment_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="found no segment"):
        save(store, tmp_path, np.zeros(SHAPE), {})


def test_an_upload_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="send it there as DICOM"):
        store.add_image("a", str(tmp_path / "a.nii.gz"), {})


def test_a_server_that_is_not_there_is_said():
    with pytest.raises(InputError, match=r"no DICOMweb server at http://127\.0\.0\.1:9"):
        connect("http://127.0.0.1:9/dicom-web")
