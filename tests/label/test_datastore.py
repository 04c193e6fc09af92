"""The folder of studies, whoever else changes it."""

from __future__ import annotations

import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import make_scan, save
from helpers.label_bundles import stop_watching
from helpers.waiting import wait_until

from liverseg.errors import InputError
from liverseg.transforms.load import check_same_grid

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from lib.store.local import LockedDatastore
from lib.store.volumes import grid_of, read_label, values_in


def open_store(folder, **settings) -> LockedDatastore:
    return LockedDatastore(str(folder), extensions=["*.nii.gz", "*.nii"], **settings)


@pytest.fixture
def folder(tmp_path):
    """Three scans, of which `linked` and its label are links to files elsewhere."""
    folder, outside = tmp_path / "studies", tmp_path / "outside"
    (folder / "labels" / "final").mkdir(parents=True)
    outside.mkdir()
    for name in ("a", "b"):
        save(folder / f"{name}.nii.gz", make_scan(0)[0])
    for name, array in zip(("scan", "label"), make_scan(1), strict=True):
        save(outside / f"{name}.nii.gz", array)
    (folder / "linked.nii.gz").symlink_to(outside / "scan.nii.gz")
    (folder / "labels" / "final" / "linked.nii.gz").symlink_to(outside / "label.nii.gz")
    return folder


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def label_files(folder) -> list[str]:
    return sorted(file.name for file in (folder / "labels").rglob("*.nii*"))


def test_what_a_link_points_to_is_never_changed(folder, tmp_path):
    store, outside = open_store(folder), tmp_path / "outside"
    before = contents(outside)
    store.save_label("linked", str(folder / "a.nii.gz"), "final", {})
    assert not (folder / "labels" / "final" / "linked.nii.gz").is_symlink()
    (folder / "labels" / "original" / "linked.nii").symlink_to(outside / "label.nii.gz")
    store.remove_label("linked", "original")
    store.remove_image("linked")
    (folder / "new.nii.gz").symlink_to(outside / "gone.nii.gz")
    store.add_image("new", str(folder / "a.nii.gz"), {})
    assert contents(outside) == before
    assert sorted(file.name for file in folder.glob("*.nii*")) == [
        "a.nii.gz",
        "b.nii.gz",
        "new.nii.gz",
    ]
    assert label_files(folder) == []


def test_a_removed_label_does_not_come_back_as_an_older_one(folder, tmp_path):
    store = open_store(folder)
    for number, suffix in enumerate((".nii", ".nii.gz", ".nii")):
        save(tmp_path / f"label{suffix}", make_scan(number)[1])
        store.save_label("a", str(tmp_path / f"label{suffix}"), "final", {"number": number})
        assert label_files(folder) == sorted([f"a{suffix}", "linked.nii.gz"])
    assert store.get_label_info("a", "final")["number"] == 2
    shutil.copy(tmp_path / "label.nii.gz", folder / "labels" / "final" / "a.nii.gz")
    store.remove_label("a", "final")
    assert store.get_labeled_images() == ["linked"]
    # No id is a path.
    store.remove_label("../../b", "final")
    assert sorted(store.list_images()) == ["a", "b", "linked"]


def test_a_removed_scan_leaves_no_label_for_the_next_of_its_name(folder, tmp_path):
    store = open_store(folder)
    save(tmp_path / "label.nii.gz", make_scan(0)[1])
    for tag in ("final", "original", "mine"):
        store.save_label("a", str(tmp_path / "label.nii.gz"), tag, {})
    store.remove_image("a")
    store.add_image("a", str(folder / "b.nii.gz"), {})
    assert open_store(folder).get_labels_by_image_id("a") == {}


def test_a_scan_that_is_renamed_into_the_folder_is_found(folder):
    store = open_store(folder, auto_reload=True)
    try:
        shutil.copy(folder / "a.nii.gz", folder / ".moved.nii.gz.x1")
        (folder / ".moved.nii.gz.x1").rename(folder / "moved.nii.gz")
        wait_until(lambda: "moved" in store.list_images())
    finally:
        stop_watching(store)


def test_what_another_process_adds_is_there_at_once(folder, tmp_path):
    """Also where the clock of the file system is too coarse for two changes."""
    store, other = open_store(folder), open_store(folder)
    list_file = folder / "datastore_v2.json"
    save(tmp_path / "label.nii.gz", make_scan(0)[1])
    for ask in (
        lambda name: store.get_image_uri(name) == str(folder / f"{name}.nii.gz"),
        lambda name: store.get_image_info(name)["by"] == "other",
        lambda name: store.get_labels_by_image_id(name) == {"final": name},
        lambda name: (
            store.get_label_uri(name, "final")
            == str(folder / "labels" / "final" / f"{name}.nii.gz")
        ),
        lambda name: store.get_label_info(name, "final")["by"] == "other",
    ):
        name = f"new{len(store.list_images())}"
        seen = os.stat(list_file).st_mtime_ns
        other.add_image(name, str(folder / "a.nii.gz"), {"by": "other"})
        other.save_label(name, str(tmp_path / "label.nii.gz"), "final", {"by": "other"})
        os.utime(list_file, ns=(seen, seen))
        assert ask(name)


def test_hidden_files_folders_and_twins_are_no_scans(folder, caplog):
    shutil.copy(folder / "a.nii.gz", folder / ".hidden.nii.gz")
    (folder / "folder.nii.gz").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), folder / "a.nii")
    store = open_store(folder)
    assert sorted(store.list_images()) == ["a", "b", "linked"]
    assert store.get_image_uri("a") == str(folder / "a.nii.gz")
    assert "a.nii.gz and a.nii" in caplog.text


def test_a_folder_for_no_labels_is_refused_with_a_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        open_store(tmp_path / "file" / "studies")


@pytest.mark.parametrize("read", [grid_of, read_label])
def test_what_is_not_3d_is_refused_by_name(tmp_path, read):
    for shape in ((4, 5), (4, 5, 6, 2)):
        save(tmp_path / "several.nii.gz", np.zeros(shape, np.uint8))
        with pytest.raises(
            InputError, match=r"several\.nii\.gz'?: the volume is .-D with shape 4×5.* expected one"
        ):
            read(str(tmp_path / "several.nii.gz"))
    save(tmp_path / "one.nii.gz", np.zeros((4, 5, 6, 1), np.uint8))
    assert read(str(tmp_path / "one.nii.gz")).shape == (1, 4, 5, 6)


def test_a_labelmap_has_whole_values_of_a_byte(tmp_path):
    values = np.array([0, 0.9999999, 1.0000001, 2], np.float32).reshape(1, 2, 2)
    save(tmp_path / "near.nii.gz", values)
    label = read_label(str(tmp_path / "near.nii.gz"))
    assert label.flatten().tolist() == [0, 1, 1, 2] and label.dtype == torch.uint8
    assert values_in(label) == [1, 2]
    for odd, words in (
        (0.5, "found label values 0.5, expected whole numbers"),
        (np.nan, "found label values nan"),
    ):
        save(tmp_path / "odd.nii.gz", np.full((2, 2, 2), odd, np.float32))
        with pytest.raises(InputError, match=rf"odd\.nii\.gz: {words}"):
            read_label(str(tmp_path / "odd.nii.gz"))
    for odd in (-1, 256):
        save(tmp_path / "odd.nii.gz", np.full((2, 2, 2), odd, np.int16))
        with pytest.raises(
            InputError, match=rf"odd\.nii\.gz: found label values {odd}, expected 0 to 255"
        ):
            read_label(str(tmp_path / "odd.nii.gz"))
    voxels = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(tmp_path / "odd.nii.gz", voxels)
    with pytest.raises(InputError, match=r"odd\.nii\.gz: its voxels are colours"):
        read_label(str(tmp_path / "odd.nii.gz"))


def test_a_label_may_lie_at_either_place_of_a_scan_whose_forms_disagree(tmp_path):
    drawn, sform, qform = (
        np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
        np.eye(4),
        np.diag([-1.0, 1, 1, 1]),
    )
    qform[0, 3] = 30
    scan = nib.Nifti1Image(drawn.astype(np.int16), sform)
    scan.set_qform(qform, 1)
    nib.save(scan, tmp_path / "scan.nii.gz")
    grid = grid_of(str(tmp_path / "scan.nii.gz"))
    # 3D Slicer goes by the qform here, nibabel by the sform.
    for affine in (qform, sform):
        save(tmp_path / "label.nii.gz", drawn, affine)
        label = check_same_grid(grid, read_label(str(tmp_path / "label.nii.gz")))
        assert np.array_equal(label.affine, qform) and np.array_equal(label[0], drawn)
    save(tmp_path / "label.nii.gz", drawn, sform + 15 * np.eye(4, k=3))
    with pytest.raises(
        InputError, match=r"label\.nii\.gz: its grid is not that of scan 'scan\.nii\.gz' \(.*mm off"
    ):
        check_same_grid(grid, read_label(str(tmp_path / "label.nii.gz")))
