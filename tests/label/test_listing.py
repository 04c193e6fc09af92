"""Which of what lies in a folder of studies are scans."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bundle_runs import AFFINE, make_scan, save
from helpers.dataset_trees import write_series
from helpers.full_disk import full_disk
from helpers.waiting import wait_until

from liverseg.errors import InputError

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from lib.score.next_scan import First
from lib.store import folder as listing
from lib.store import watcher
from lib.store.folder import FolderDatastore
from lib.train.scans import patient

SCAN, LABEL = make_scan(0)
NAMES = [f"IM{number}.dcm" for number in range(SCAN.shape[2])]
AXIAL = np.diag([2.0, 2, 5, 1])


def open_store(folder, watch=False, read_only=False) -> FolderDatastore:
    return FolderDatastore(str(folder), watch, read_only)


@pytest.fixture
def folder(tmp_path):
    """What is found in folders: scans, what other programs left, and what lies deeper."""
    folder = tmp_path / "studies"
    folder.mkdir()
    save(folder / "plain.nii.gz", SCAN)
    save(folder / "case.001.nii", SCAN)
    for name in ("meta.mha", "nearly.nrrd", "plain.seg.nrrd"):
        sitk.WriteImage(sitk.ReadImage(folder / "plain.nii.gz"), folder / name)
    shutil.copy(folder / "case.001.nii", folder / "UPPER.NII")
    blob = tmp_path / "blobs" / "3f2a"
    blob.parent.mkdir()
    shutil.copy(folder / "plain.nii.gz", blob)
    (folder / "linked.nii.gz").symlink_to(blob)
    for number, name in enumerate(("[CT] x", "p1/st/CT")):
        uid = f"1.2.3.{number}"
        write_series(
            folder / name, SCAN, AXIAL, NAMES, SeriesInstanceUID=uid, FrameOfReferenceUID=uid
        )
    return folder


def add_what_is_none(folder):
    for name in ("a.png", "b.xml", "c.raw", "d.vtk", "README"):
        (folder / name).write_bytes(b"none" * 50)
    (folder / "empty.nii.gz").touch()
    (folder / "noise.nii").write_bytes(b"noise" * 200)
    (folder / "._plain.nii.gz").write_bytes(b"\0\5\26\7" * 1024)
    (folder / "gone.nii.gz").symlink_to(folder / "nowhere" / "1")
    (folder / "masks").mkdir()
    save(folder / "masks" / "liver.nii.gz", LABEL)
    write_series(folder / "gap", SCAN, AXIAL, NAMES, SeriesInstanceUID="1.2.3.9")
    (folder / "gap" / NAMES[3]).unlink()


SCANS = ["UPPER", "[CT] x", "case.001", "linked", "meta", "nearly", "p1_st_CT", "plain"]


def test_what_can_be_read_is_listed_and_the_rest_named_once(folder, caplog):
    add_what_is_none(folder)
    with caplog.at_level(logging.WARNING):
        store = open_store(folder)
        store.refresh()
    assert sorted(store.list_images()) == SCANS
    (line,) = (
        record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    )
    for name in (
        "a.png",
        "b.xml",
        "empty.nii.gz",
        "noise.nii",
        "gone.nii.gz",
        "liver.nii.gz",
        "IM2.dcm",
        "gap",
    ):
        assert name in line
    for name in ("._plain", "datastore_v2", "plain.nii.gz"):
        assert name not in line
    assert store.status()["left_out"] in line
    assert store.status()["total"] == len(SCANS)
    with pytest.raises(InputError, match=r"noise\.nii: found a file that is no scan"):
        store.add_image("noise", str(folder / "case.001.nii"), {})


def test_every_scan_is_given_out_as_nifti_with_its_voxels_in_place(folder):
    store = open_store(folder)
    for name in SCANS:
        path = store.get_image_uri(name)
        image = nib.load(path)
        assert np.array_equal(np.asanyarray(image.dataobj), SCAN), name
        assert np.allclose(image.affine, AXIAL if "CT" in name else AFFINE, atol=1e-4)
        # What 3D Slicer opens, or else calls its copy.
        info = store.get_image_info(name)
        assert (info["path"], info["name"]) == (path, os.path.basename(path))
    # A link keeps its name, which says what it points to.
    assert store.get_image_uri("linked") == str(folder / "linked.nii.gz")
    assert store.get_image_uri("nothing") == ""


def test_a_label_is_drawn_on_what_was_given_out(folder, tmp_path):
    store = open_store(folder)
    save(tmp_path / "label.nii.gz", LABEL)
    store.save_label("p1_st_CT", str(tmp_path / "label.nii.gz"), "final", {"by": "me"})
    (item,) = store.datalist()
    assert item == {
        "image": store.get_image_uri("p1_st_CT"),
        "label": str(folder / "labels" / "final" / "p1_st_CT.nii.gz"),
    }
    # A process that trains takes the list as it is.
    other = open_store(folder, read_only=True)
    assert other.datalist() == [item]
    assert other.get_label_info("p1_st_CT", "final")["by"] == "me"
    # Neither the folder nor its label is deleted by a request.
    with pytest.raises(InputError, match="found a DICOM series, expected a NIfTI file"):
        store.remove_image("p1_st_CT")
    assert store.get_labeled_images() == ["p1_st_CT"]


def test_whose_a_series_is_its_headers_say(folder):
    for name, whose in {
        "s1/CT": {"PatientID": "p1", "StudyInstanceUID": "1.2.1"},
        "s1/CT2": {"PatientID": "p1", "StudyInstanceUID": "1.2.2"},
        "s2/CT": {"StudyInstanceUID": "1.2.3"},
        "s2/CT2": {"StudyInstanceUID": "1.2.3"},
        "plain": {"PatientID": "p1"},
    }.items():
        uid = f"1.2.4.{len(list(folder.rglob('*.dcm')))}"
        write_series(
            folder / name,
            SCAN,
            AXIAL,
            NAMES,
            SeriesInstanceUID=uid,
            FrameOfReferenceUID=uid,
            **whose,
        )
    whose = {
        "s1_CT": "p1",
        "s1_CT2": "p1",
        "s2_CT": "1.2.3",
        "s2_CT2": "1.2.3",
        "[CT] x": "[CT] x",
        "plain": "plain",
    }
    # The server, and a process that trains and reads no headers.
    for store in (open_store(folder), open_store(folder, read_only=True)):
        assert {name: patient(store, name) for name in whose} == whose
    # A word of ours counts more, also when the folder is looked through anew.
    store.update_image_info("s1_CT2", {"patient": "p2"})
    assert {name: patient(open_store(folder), name) for name in whose} == {**whose, "s1_CT2": "p2"}


def test_a_series_is_made_anew_when_slices_have_come(folder):
    store = open_store(folder)
    before = nib.load(store.get_image_uri("[CT] x")).shape
    more = np.concatenate([SCAN, SCAN[:, :, -1:]], axis=2)
    time.sleep(0.01)
    shutil.rmtree(folder / "[CT] x")
    write_series(folder / "[CT] x", more, AXIAL, [*NAMES, "last.dcm"], SeriesInstanceUID="1.2.3.0")
    assert nib.load(store.get_image_uri("[CT] x")).shape == (*before[:2], before[2] + 1)


@pytest.mark.parametrize("restart", [False, True])
def test_a_series_is_made_anew_when_it_is_replaced(folder, tmp_path, restart):
    place, store = folder / "[CT] x", open_store(folder)

    def check_given_out(scan):
        file = (open_store(folder) if restart else store).get_image_uri("[CT] x")
        assert np.array_equal(np.asanyarray(nib.load(file).dataobj), scan)

    check_given_out(SCAN)
    # As archives export it again, and as `cp -p` does.
    for scan, keep_times in ((SCAN[::-1], False), (SCAN[:, ::-1], True)):
        times = [os.stat(place / name).st_mtime_ns for name in NAMES]
        write_series(place, scan, AXIAL, NAMES, SeriesInstanceUID="1.2.3.0")
        for name, time_ns in zip(NAMES, times if keep_times else (), strict=keep_times):
            os.utime(place / name, ns=(time_ns, time_ns))
        check_given_out(scan)
    # As `cp -a` and `mv` do.
    other = tmp_path / "other"
    write_series(other, SCAN[::-1, ::-1], AXIAL, NAMES, SeriesInstanceUID="1.2.3.0")
    for path in (*other.iterdir(), other):
        os.utime(path, (1e9, 1e9))
    shutil.rmtree(place)
    other.rename(place)
    check_given_out(SCAN[::-1, ::-1])


def test_a_series_is_made_once_as_long_as_its_files_are_those(folder, monkeypatch):
    # A series of the folder itself lies beside what the server writes.
    shutil.rmtree(folder / "p1")
    for name in NAMES:
        (folder / "[CT] x" / name).rename(folder / name)
    store = open_store(folder)
    file = store.get_image_uri("studies")
    store.update_image_info("studies", {"note": 1})
    monkeypatch.setattr(listing, "save_as_nifti", None)
    assert store.get_image_uri("studies") == open_store(folder).get_image_uri("studies") == file


def test_a_series_that_is_torn_is_named_until_it_is_whole(folder):
    store, slice_file = open_store(folder), folder / "[CT] x" / NAMES[3]
    whole = slice_file.read_bytes()
    assert store.get_image_uri("[CT] x")
    slice_file.write_bytes(b"none")
    with pytest.raises(InputError, match=r"IM3\.dcm"):
        store.get_image_uri("[CT] x")
    assert list(store.status()["unreadable_scans"]) == ["[CT] x"]
    slice_file.write_bytes(whole)
    assert store.status()["unreadable_scans"] == {}
    assert store.get_image_uri("[CT] x")


def test_what_is_odd_about_a_series_is_known_as_long_as_it_is(folder, caplog):
    place, tilted = folder / "[CT] x", AXIAL + np.eye(4, k=1) * [[0], [1.5], [0], [0]]
    write_series(place, SCAN, tilted, NAMES, SeriesInstanceUID="1.2.3.0")
    (place / "notes.txt").write_text("none")
    store = open_store(folder)
    store.get_image_uri("[CT] x")
    for one in (store, open_store(folder)):
        one.get_image_uri("[CT] x")
        tilt, left_out = one.get_image_info("[CT] x")["warnings"]
        assert "tilted gantry" in tilt and "notes.txt" in left_out
    assert caplog.text.count(tilt) == 1
    (place / "notes.txt").unlink()
    write_series(place, SCAN, AXIAL, NAMES, SeriesInstanceUID="1.2.3.0")
    store.get_image_uri("[CT] x")
    assert store.get_image_info("[CT] x")["warnings"] == []


def spoil(file):
    """The file with its header and its length, but another content."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)


def test_next_sample_passes_over_what_cannot_be_read_until_it_can(tmp_path, caplog):
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in "abcd":
        save(studies / f"{name}.nii.gz", SCAN)
    whole = (studies / "a.nii.gz").read_bytes()
    (studies / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    spoil(studies / "b.nii.gz")
    flat = bytearray(gzip.decompress(whole))
    # No qform, and an sform of zeros.
    flat[252:256], flat[280:328] = bytes([0, 0, 1, 0]), bytes(48)
    (studies / "c.nii.gz").write_bytes(gzip.compress(flat))
    save(studies / "movie.nii.gz", np.zeros((4, 4, 4, 3), np.int16))
    store = open_store(studies)
    assert "(movie.nii.gz)" in store.status()["left_out"]
    ask = First("", 60)
    for _ in range(2):
        assert ask({"client_id": "me"}, store)["id"] == "d"
    unreadable = store.status()["unreadable_scans"]
    assert sorted(unreadable) == ["a", "b", "c"]
    assert unreadable["a"].startswith("a.nii.gz: not readable as a volume")
    assert store.get_unlabeled_images() == ["d"]
    with pytest.raises(InputError, match=r"a\.nii\.gz: not readable"):
        store.get_image_uri("a")
    # Each is logged once.
    assert caplog.text.count("a.nii.gz: not readable") == 1

    (studies / "a.nii.gz").write_bytes(whole)
    assert ask({"client_id": "me"}, store)["id"] == "a"
    assert sorted(store.status()["unreadable_scans"]) == ["b", "c"]
    for name in "ad":
        shutil.copy(studies / "a.nii.gz", studies / "labels" / "final" / f"{name}.nii.gz")
    store.refresh()
    assert ask({"client_id": "me"}, store) is None


def test_a_scan_for_which_the_disk_had_no_room_is_no_bad_scan(folder):
    store = open_store(folder)
    shutil.copy(folder / "plain.nii.gz", folder / "labels" / "final" / "p1_st_CT.nii.gz")
    store.refresh()
    with full_disk(100):
        for ask in (lambda: store.get_image_uri("p1_st_CT"), store.datalist):
            with pytest.raises(InputError, match=r"p1_st_CT\.nii\.gz: could not be saved"):
                ask()
    assert store.status()["unreadable_scans"] == {}
    assert [item["image"] for item in store.datalist()] == [store.get_image_uri("p1_st_CT")]


def test_what_an_older_server_listed_is_forgotten_unless_it_has_a_label(folder, tmp_path):
    (folder / "a.png").write_bytes(b"none")
    (folder / "torn.nii.gz").write_bytes(b"none")
    (folder / "labels" / "final").mkdir(parents=True)
    save(folder / "labels" / "final" / "torn.nii.gz", LABEL)
    objects = {
        "a": {"image": {"ext": ".png"}},
        "torn": {
            "image": {"ext": ".nii.gz"},
            "labels": {"final": {"ext": ".nii.gz", "info": {"by": "me"}}},
        },
    }
    list_file = {
        "name": "n",
        "description": "d",
        "images_dir": ".",
        "labels_dir": "labels",
        "objects": objects,
    }
    (folder / "datastore_v2.json").write_text(json.dumps(list_file))
    store = open_store(folder)
    assert sorted(store.list_images()) == sorted([*SCANS, "torn"])
    assert store.get_label_info("torn", "final")["by"] == "me"


def test_files_that_come_while_the_server_runs_are_found_when_they_are_whole(folder, monkeypatch):
    monkeypatch.setattr(watcher, "SETTLE_SECONDS", 0.1)
    store = open_store(folder, watch=True)

    def wait_for(*names):
        wait_until(lambda: sorted(store.list_images()) == sorted([*SCANS, *names]))

    with (folder / "copied.NII.gz").open("wb") as file:
        file.write(gzip.compress(b"not yet"))
        file.flush()
        write_series(folder / "new" / "CT", SCAN, AXIAL, NAMES, SeriesInstanceUID="1.2.3.7")
        wait_for("new_CT")
        file.seek(0)
        file.truncate()
        file.write((folder / "plain.nii.gz").read_bytes())
    wait_for("new_CT", "copied")
    shutil.copy(folder / "plain.nii.gz", folder / ".moved.nii.gz.x1")
    (folder / ".moved.nii.gz.x1").rename(folder / "moved.nii.gz")
    shutil.rmtree(folder / "new")
    wait_for("copied", "moved")
