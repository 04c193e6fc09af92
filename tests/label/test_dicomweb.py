"""The studies of a DICOM server, read through dicomweb-client's implementation on files."""

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
from helpers.dicom_studies import (
    AFFINE,
    COLUMN,
    ORIGIN,
    ROW,
    SCAN,
    SERIES,
    SHAPE,
    SPACING,
    STUDY,
    make_scan,
    make_segmentation,
    make_slice,
)
from helpers.full_disk import full_disk
from helpers.label_bundles import stop_watching
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from lib.score.next_scan import First
from lib.store.dicomweb import DicomwebDatastore
from liverseg.errors import InputError

MIXED, TILTED, OTHER = "1.2.3.5", "1.2.3.6", "1.2.3.8"


def spot(number: int) -> np.ndarray:
    """A slice of a rod that stands upright in a tilted scan: it moves against the slices."""
    pixels = np.zeros(SHAPE[:2], np.int16)
    pixels[4, 6 - number] = 1000
    return pixels


@pytest.fixture
def client(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    mixed = [make_slice(MIXED, number, SCAN[: 9 - number, :, number]) for number in (0, 1)]
    tilted = [make_slice(TILTED, number, spot(number), aside_mm=3.0) for number in range(5)]
    for number, one in enumerate([*make_scan(), *mixed, *tilted]):
        one.save_as(folder / f"{number}.dcm", write_like_original=False)
    return DICOMfileClient(url=folder.as_uri(), in_memory=True, update_db=True)


@pytest.fixture
def new_store(client, tmp_path, monkeypatch):
    """A function for the datastore of a server that never saw this DICOM server before."""
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    stores: list[DicomwebDatastore] = []

    def make() -> DicomwebDatastore:
        store = DicomwebDatastore(
            client=client,
            search_filter={"Modality": "CT"},
            cache_path=str(tmp_path / f"cache{len(stores)}"),
        )
        stores.append(store)
        return store

    yield make
    for store in stores:
        stop_watching(store)


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
        assert np.allclose(
            image.TransformContinuousIndexToPhysicalPoint(index), expected, atol=1e-3
        )
    (warning,) = store.get_image_info(TILTED)["warnings"]
    assert "tilted gantry" in warning


def test_what_is_left_of_a_download_that_was_cut_short_is_not_taken_for_the_scan(store):
    part = Path(store.get_image_uri(TILTED)).with_name(SERIES)
    part.mkdir()
    make_slice(SERIES, 0, SCAN[:, :, 0]).save_as(part / "00000.dcm", write_like_original=False)
    assert load(store.get_image_uri(SERIES)).shape == SHAPE


@pytest.mark.parametrize("name", ["1.2.999", "../../../etc", "..", "", "/etc"])
def test_what_is_no_series_of_the_server_is_no_image(store, name):
    assert store.get_image_uri(name) == ""


def test_a_series_that_is_no_volume_is_reported(store):
    with pytest.raises(
        InputError, match=f"image {MIXED}: no CT or MRI series in it .only single slice"
    ):
        store.get_image_uri(MIXED)


def test_info_of_a_scan_that_nobody_opened_yet(store):
    assert store.get_unlabeled_images() and SERIES in store.list_images()
    store.update_image_info(SERIES, {"served": {"a": 1}})
    info = store.get_image_info(SERIES)
    # What OHIF needs to open it.
    assert info["StudyInstanceUID"] == STUDY and info["served"] == {"a": 1}


def test_a_label_is_a_dicom_seg_with_the_names_of_its_segments(store, new_store, client, tmp_path):
    label = drawn(1, 3)
    names = [
        {"name": name, "idx": value} for value, name in enumerate(["liver", "lesion", "spleen"], 1)
    ]
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
    assert np.array_equal(
        load(store.get_label_uri(SERIES, "final")).get_fdata() > 0, drawn(1, 3) > 0
    )


def test_a_mask_that_is_saved_as_label_has_the_models_names(store, client, tmp_path):
    save(
        store,
        tmp_path,
        drawn(2),
        {"model": "m", "params": {"label_names": {"liver": 1, "lesion": 2}}},
    )
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


def blocks(*names: str) -> dict[str, np.ndarray]:
    """Segments beside each other."""
    return {name: drawn(*[0] * number, 1) > 0 for number, name in enumerate(names)}


def names_of(store: DicomwebDatastore, image: str = SERIES) -> set[str]:
    """Of the segments in the label of a scan."""
    label = np.unique(np.asanyarray(load(store.get_label_uri(image, "final")).dataobj))
    return {
        one["name"]
        for one in store.get_label_info(image, "final")["label_info"]
        if one["idx"] in label
    }


def test_of_labels_that_are_saved_in_one_second_the_last_counts(store, new_store, tmp_path):
    for name in ("spleen", "liver"):
        save(store, tmp_path, drawn(1), {"label_info": [{"name": name, "idx": 1}]})
    assert names_of(store) == names_of(new_store()) == {"liver"}


def test_what_is_saved_last_counts_though_another_programs_clock_is_fast(
    store, new_store, client, tmp_path
):
    client.store_instances([make_segmentation(blocks("liver"), ContentDate="20990101")])
    save(store, tmp_path, drawn(1), {"label_info": [{"name": "spleen", "idx": 1}]})
    assert names_of(store) == names_of(new_store()) == {"spleen"}


def test_all_instances_of_a_series_count(store, client):
    one, other = (
        make_segmentation({name: mask}) for name, mask in blocks("liver", "spleen").items()
    )
    other.SeriesInstanceUID = one.SeriesInstanceUID
    client.store_instances([one])
    assert names_of(store) == {"liver"}
    client.store_instances([other])
    assert names_of(store) == {"liver", "spleen"}


def test_one_dicom_seg_for_each_organ(store, client):
    client.store_instances(
        [make_segmentation({name: mask}) for name, mask in blocks("liver", "spleen").items()]
    )
    (item,) = store.datalist()
    assert np.array_equal(np.asanyarray(load(item["label"]).dataobj) > 0, drawn(1, 1) > 0)
    assert names_of(store) == {"liver", "spleen"}


def test_a_correction_that_says_only_when_its_content_was_made(store, client):
    first = make_segmentation(blocks("liver", "lesion"), SeriesDate="20260102", SeriesTime="120000")
    client.store_instances([first, make_segmentation(blocks("liver"), ContentTime="120000.5")])
    assert names_of(store) == {"liver"}


def test_a_dicom_seg_that_names_only_instances(store, client):
    source = Dataset()
    source.ReferencedSOPInstanceUID = f"{SERIES}.3"
    derivation = Dataset()
    derivation.SourceImageSequence = [source]
    segmentation = make_segmentation(blocks("liver"), scan="")
    segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence = [derivation]
    client.store_instances([segmentation])
    assert store.get_labeled_images() == [SERIES] and names_of(store) == {"liver"}


def test_a_dicom_seg_of_several_series(store, client):
    client.store_instances(make_scan(OTHER))
    segmentation = make_segmentation(blocks("liver"))
    segmentation.ReferencedSeriesSequence.append(
        make_segmentation(blocks("liver"), scan=OTHER).ReferencedSeriesSequence[0]
    )
    client.store_instances([segmentation])
    assert set(store.get_labeled_images()) == {SERIES, OTHER}
    assert names_of(store, OTHER) == {"liver"}


def overlapping() -> Dataset:
    return make_segmentation({"liver": drawn(1) > 0, "spleen": drawn(1) > 0}, scan=OTHER)


def of_another_type() -> Dataset:
    return make_segmentation(blocks("liver"), scan=OTHER, SegmentationType="CONTOUR")


def damaged() -> Dataset:
    return make_segmentation(blocks("liver"), scan=OTHER, PixelData=b"\0\0")


def elsewhere() -> Dataset:
    segmentation = make_segmentation(blocks("liver"), scan=OTHER)
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 1000
    return segmentation


@pytest.mark.parametrize("bad", [overlapping, of_another_type, damaged, elsewhere])
def test_a_label_that_cannot_be_read_hides_no_other(store, client, bad):
    client.store_instances([*make_scan(OTHER), bad(), make_segmentation(blocks("liver"))])
    there = store.status()
    assert there["completed"] == 2
    # What trains, what is drawn next, what is listed and what is given away.
    assert store.get_labeled_images() == [SERIES]
    assert (
        not {SERIES, OTHER} & set(store.get_unlabeled_images())
        and MIXED in store.get_unlabeled_images()
    )
    assert [item["image"] for item in store.datalist()] == [store.get_image_uri(SERIES)]
    assert names_of(store) == {"liver"}
    with pytest.raises(
        InputError, match=rf"label of {OTHER}: DICOM SEG .*: found .*, expected .*: "
    ) as error:
        store.get_label_uri(OTHER, "final")
    status = store.status()
    assert status == {
        **there,
        "label_tags": {"final": 1},
        "completed": 1,
        "unreadable_labels": {OTHER: str(error.value)},
    }

    corrected = make_segmentation(blocks("liver"), scan=OTHER, ContentDate="20260103")
    client.store_instances([corrected])
    assert set(store.get_labeled_images()) == {SERIES, OTHER}
    assert store.status()["unreadable_labels"] == {}


def test_what_was_read_before_is_not_given_for_what_cannot_be_read(store, client):
    client.store_instances([*make_scan(OTHER), make_segmentation(blocks("liver"), scan=OTHER)])
    assert names_of(store, OTHER) == {"liver"}
    newer = overlapping()
    newer.ContentDate = "20260103"
    client.store_instances([newer])
    assert store.datalist() == []
    with pytest.raises(InputError, match="liver and spleen overlap"):
        store.get_label_uri(OTHER, "final")


def test_a_dicom_seg_of_no_scan_is_named(store, client):
    segmentation = make_segmentation(blocks("liver"), scan="")
    client.store_instances([segmentation, make_segmentation(blocks("liver"))])
    assert store.get_labeled_images() == [SERIES]
    shown = store.status()["unreadable_labels"]
    assert (
        list(shown) == [segmentation.SeriesInstanceUID]
        and "found no series of the server" in shown[segmentation.SeriesInstanceUID]
    )


def test_a_series_that_is_no_volume_does_not_block_the_next_scan(store, client):
    client.store_instances(make_scan(OTHER))
    following = First("by name", 60)
    given = [following({"client_id": "a"}, store)["id"] for _ in range(4)]
    assert {SERIES, OTHER} < {*given, MIXED} and MIXED not in given
    assert (
        list(store.status()["unreadable_scans"]) == [MIXED]
        and MIXED not in store.get_unlabeled_images()
    )


@pytest.mark.parametrize("free_bytes", [300, 10_000], ids=["for a slice", "for the volume"])
def test_a_scan_for_which_the_disk_had_no_room_is_no_bad_scan(store, client, free_bytes):
    voxels = np.random.default_rng(0).integers(-900, 900, (60, 50, 5)).astype(np.int16)
    client.store_instances([make_slice(OTHER, number, voxels[:, :, number]) for number in range(5)])
    with full_disk(free_bytes), pytest.raises(InputError, match="could not be saved"):
        store.get_image_uri(OTHER)
    assert store.status()["unreadable_scans"] == {} and OTHER in store.get_unlabeled_images()
    assert np.array_equal(load(store.get_image_uri(OTHER)).dataobj, voxels)


def test_a_label_for_which_the_disk_had_no_room_is_no_bad_label(store, client):
    client.store_instances([make_segmentation(blocks("liver"))])
    store.get_image_uri(SERIES)
    for ask in (store.get_labeled_images, lambda: store.get_label_uri(SERIES, "final")):
        with full_disk(50), pytest.raises(InputError, match="could not be saved"):
            ask()
    assert store.status()["unreadable_labels"] == {}
    assert store.get_labeled_images() == [SERIES] and names_of(store) == {"liver"}


def test_what_would_come_back_is_not_removed(store, client, tmp_path):
    save(store, tmp_path, drawn(1), {"label_info": [{"name": "liver", "idx": 1}]})
    for remove in (
        lambda: store.remove_image(SERIES),
        lambda: store.remove_label(SERIES, "final"),
        lambda: store.remove_label(SERIES, "*"),
    ):
        with pytest.raises(InputError, match="expected to delete it there"):
            remove()
    store.save_label(SERIES, store.get_label_uri(SERIES, "final"), "original", {})
    store.remove_label(SERIES, "original")
    assert store.get_label_uri(SERIES, "original") == "" and store.get_label_uri(SERIES, "final")


def test_a_label_without_a_segment_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="found no segment"):
        save(store, tmp_path, np.zeros(SHAPE), {})


def test_an_upload_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="send it there as DICOM"):
        store.add_image("a", str(tmp_path / "a.nii.gz"), {})
