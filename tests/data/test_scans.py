from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.dataset_trees import write_series

from liverseg.data import cache_num, find_scans, inverse_frequency_weights
from liverseg.errors import InputError
from liverseg.io.masks import MaskFolder
from liverseg.io.volumes import read_volume


def test_a_file_a_folder_and_a_datalist(tmp_path, write_nifti):
    a, b = (write_nifti(name, np.zeros((2, 2, 2), np.int16)) for name in ("a.nii.gz", "b.nii"))
    (tmp_path / "notes.txt").touch()
    assert find_scans(a) == [{"image": a}]
    assert find_scans(tmp_path) == [{"image": a}, {"image": b}]
    (tmp_path / "dataset.json").write_text(json.dumps({"test": ["b.nii"]}))
    assert find_scans(tmp_path) == [{"image": b}]


def write_dicom(folder: Path, uid: str = "1.2.3", name: str = "{}.dcm") -> None:
    names = [name.format(k) for k in range(3)]
    write_series(
        folder, np.zeros((4, 5, 3), np.int16), np.diag([-2, -2, 3, 1]), names, SeriesInstanceUID=uid
    )


def images(path: Path) -> list[str]:
    return [Path(item["image"]).relative_to(path).as_posix() for item in find_scans(path)]


def test_dicom_series_are_found_however_deep(tmp_path):
    write_dicom(tmp_path / "1")
    write_dicom(tmp_path / "P2" / "ST0" / "SE0", "1.2.4")
    write_dicom(tmp_path / "P3", "1.2.5")
    write_dicom(tmp_path / "P3", "1.2.6", "b{}.dcm")
    assert images(tmp_path) == ["1", "P2/ST0/SE0", "P3/0.dcm", "P3/b0.dcm"]
    assert find_scans(tmp_path / "1") == [{"image": str(tmp_path / "1")}]
    assert find_scans(tmp_path / "P3" / "b1.dcm") == [{"image": str(tmp_path / "P3" / "b1.dcm")}]


def test_scans_are_found_one_folder_below(tmp_path, write_nifti):
    """As TotalSegmentator and KiTS lay them out."""
    volume = np.zeros((2, 2, 2), np.int16)
    for name in (
        "s0001/ct.nii.gz",
        "s0001/segmentations/liver.nii.gz",
        "s0002/ct.nii.gz",
        "s0002/segmentation.nii.gz",
    ):
        write_nifti(name, volume)
    assert images(tmp_path) == ["s0001/ct.nii.gz", "s0002/ct.nii.gz"]
    for name in ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"):
        write_nifti(f"msd/{name}", volume)
    assert images(tmp_path / "msd") == ["imagesTr/a.nii.gz"]
    assert images(tmp_path / "msd" / "labelsTr") == ["a.nii.gz"]
    # What lies in the folder itself is meant before what lies below.
    write_nifti("root.nii", volume)
    assert images(tmp_path) == ["root.nii"]


def test_suffixes_in_any_case_and_nothing_hidden(tmp_path, write_nifti):
    volume = np.zeros((2, 2, 2), np.int16)
    for name in ("UPPER.NII", "b.NII.GZ", "._b.NII.GZ", ".c.nii"):
        whole = Path(
            write_nifti("whole.nii" + (".gz" if name.lower().endswith("gz") else ""), volume)
        )
        whole.rename(tmp_path / name)
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    write_dicom(tmp_path / "__MACOSX")
    write_dicom(tmp_path / ".cache")
    assert images(tmp_path) == ["UPPER.NII", "b.NII.GZ"]
    for item in find_scans(tmp_path):
        assert np.array_equal(read_volume(item["image"]).array, volume)


def test_what_is_no_scan_is_named_once(tmp_path, write_nifti, caplog):
    write_nifti("scan.nii.gz", np.zeros((2, 2, 2), np.int16))
    write_nifti("scan_label.nii.gz", np.zeros((2, 2, 2), np.int16))
    for name in ("notes.txt", "picture.png", "scan.xyz", "scan.json"):
        (tmp_path / name).write_text("nothing" * 50)
    assert images(tmp_path) == ["scan.nii.gz"]
    (line,) = caplog.messages
    assert "neither NIfTI nor DICOM (notes.txt, picture.png, scan.json and 1 more)" in line
    assert "mask (scan_label.nii.gz)" in line
    assert "\n" not in line


def test_masks_of_an_earlier_run_are_not_scans(tmp_path, write_nifti, caplog):
    volume = np.zeros((2, 2, 2), np.uint8)
    scans = [write_nifti(name, volume) for name in ("s1_ct.nii.gz", "s2_ct.nii.gz")]
    for _ in range(2):
        found = find_scans(tmp_path)
        assert [item["image"] for item in found] == scans
        masks = MaskFolder(tmp_path, "liver", scans=found)
        for item in found:
            masks.save(item["image"], volume, np.eye(4))
    assert "mask of an earlier run (s1_ct_liver.nii.gz, s2_ct_liver.nii.gz)" in caplog.messages[-1]
    # Where scans lie one folder down, masks in the folder itself do not stand for them.
    for scan in scans:
        (tmp_path / Path(scan).name[:2]).mkdir()
        Path(scan).rename(tmp_path / Path(scan).name[:2] / "ct.nii.gz")
    assert images(tmp_path) == ["s1/ct.nii.gz", "s2/ct.nii.gz"]
    # A folder of masks alone has no scan, nor has one with a series beside.
    shutil.rmtree(tmp_path / "s1")
    shutil.rmtree(tmp_path / "s2")
    with pytest.raises(InputError, match=r"no scan in it \(only .*mask of an earlier run"):
        find_scans(tmp_path)
    write_dicom(tmp_path / "series")
    write_nifti("liver_mask.nii.gz", volume)
    assert images(tmp_path) == ["series"]


def test_masks_are_known_by_the_names_of_their_scans(tmp_path, write_nifti, caplog):
    volume = np.zeros((2, 2, 2), np.uint8)
    masks = ("a_liver.nii.gz", "a_liver_lesion.nii", "b.organs.nii.gz", "b-lk.nii.gz")
    scans = ("a.nii.gz", "b.nii.gz", "c_liver.nii.gz", "liver.nii.gz", "a_later.nii.gz")
    for name in (*masks, *scans):
        write_nifti(name, volume)
    assert images(tmp_path) == sorted(scans)
    assert (
        "left out: mask (a_liver.nii.gz, a_liver_lesion.nii, b-lk.nii.gz and 1 more)"
        in caplog.messages[-1]
    )


def test_a_mask_beside_the_folder_of_its_series_is_no_scan(tmp_path, write_nifti):
    write_dicom(tmp_path / "series")
    for name in ("series_organs.nii.gz", "serious.nii.gz"):
        write_nifti(name, np.zeros((2, 2, 2), np.int16))
    assert images(tmp_path) == ["serious.nii.gz", "series"]


@pytest.mark.parametrize(
    "summary", ["[]", "no json", '{"scans": ["a.nii.gz", {"image": "a.nii.gz"}]}', '{"mean": {}}']
)
def test_a_summary_of_another_program_says_nothing_of_masks(tmp_path, write_nifti, summary):
    scan = write_nifti("a.nii.gz", np.zeros((2, 2, 2), np.int16))
    (tmp_path / "summary.json").write_text(summary)
    assert find_scans(tmp_path) == [{"image": scan}]


def test_nifti_further_down_is_named(tmp_path, write_nifti, caplog):
    volume = np.zeros((2, 2, 2), np.int16)
    for name in ("a.nii.gz", "sub/b.nii.gz", "sub/deep/c.nii"):
        write_nifti(name, volume)
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert images(tmp_path) == ["a.nii.gz"]
    assert "file with a volume further down (b.nii.gz, c.nii)" in caplog.messages[0]
    (tmp_path / "sub" / "b.nii.gz").unlink()
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"no scan in it \(only file with a volume further down \(c\.nii\)\)"
    ):
        find_scans(tmp_path)


def test_a_link_keeps_its_name_and_is_read(tmp_path, write_nifti):
    """Hugging Face's cache and git-annex keep links to files without a suffix."""
    volume = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for name in ("scan.nii.gz", "other.nii"):
        Path(write_nifti(name, volume)).rename(tmp_path / "blobs" / name[:3])
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name[:3]}")
    assert images(tmp_path / "snapshot") == ["other.nii", "scan.nii.gz"]
    for item in find_scans(tmp_path / "snapshot"):
        assert np.array_equal(read_volume(item["image"]).array, volume)
    assert find_scans(tmp_path / "snapshot" / "scan.nii.gz") == [
        {"image": str(tmp_path / "snapshot" / "scan.nii.gz")}
    ]
    (tmp_path / "snapshot" / "lost.nii").symlink_to("../blobs/not-fetched")
    with pytest.raises(InputError, match=r"lost\.nii: there is a link to a file that is not there"):
        read_volume(find_scans(tmp_path / "snapshot")[0]["image"])


@pytest.mark.parametrize(
    ("name", "words"), [("gone", "no such file or folder"), ("", "no scan in it")]
)
def test_nothing_to_segment(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        find_scans(tmp_path / name)


def test_cache_num_counts_decoded_bytes(write_nifti):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    data = [
        {"image": write_nifti(f"{n}.nii.gz", np.zeros((20, 20, 10), np.int16), affine)}
        for n in range(4)
    ]
    one_gb = 20 * 20 * 10 * 5 / 1e9
    assert cache_num(data, 2.5 * one_gb) == 2
    assert cache_num(data, 10 * one_gb) == 4
    assert cache_num(data, 2.5 * one_gb, spacing=(2, 2, -1)) == 4
    assert cache_num(data, 0) == 0


def test_cache_num_counts_the_slices_of_a_series(tmp_path):
    write_dicom(tmp_path / "a")
    one_gb = 4 * 5 * 3 * 5 / 1e9
    data = [{"image": str(tmp_path / "a")}, {"image": str(tmp_path / "a" / "1.dcm")}] * 2
    assert cache_num(data, 2.5 * one_gb) == 2
    assert cache_num(data, 2.5 * one_gb, spacing=(4, 4, -1)) == 4


def test_a_scan_whose_header_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.nii").write_text("no image")
    with pytest.raises(InputError, match=r"a\.nii: not readable as a volume"):
        cache_num([{"image": str(tmp_path / "a.nii")}], 1)


def test_inverse_frequency_weights_over_the_whole_set(write_nifti):
    labels = [np.zeros((4, 5, 2), np.uint8), np.zeros((4, 5, 2), np.uint8)]
    labels[0][:2, 0, 0] = 1
    labels[1][:3, :2, 1] = 2
    data = [{"label": write_nifti(f"{n}.nii.gz", label)} for n, label in enumerate(labels)]
    weights = inverse_frequency_weights(data, {"background": [0], "liver": [1, 2]})
    assert np.allclose(weights, [80 / 72, 80 / 8])
    absent = inverse_frequency_weights(data, {"background": [0], "liver": [1, 2], "spleen": [3]})
    assert absent[2] == 0
    assert torch.isfinite(absent).all()
