from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from liverseg.data import cache_num, find_scans, inverse_frequency_weights
from liverseg.errors import InputError


def test_a_file_a_folder_and_a_datalist(tmp_path, write_nifti):
    a, b = (write_nifti(name, np.zeros((2, 2, 2), np.int16)) for name in ("a.nii.gz", "b.nii"))
    (tmp_path / "notes.txt").touch()
    assert find_scans(a) == [{"image": a}]
    assert find_scans(tmp_path) == [{"image": a}, {"image": b}]
    (tmp_path / "dataset.json").write_text(json.dumps({"test": ["b.nii"]}))
    assert find_scans(tmp_path) == [{"image": b}]


def test_folders_of_dicom_are_series(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "slice.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert [item["image"] for item in find_scans(tmp_path)] == [str(tmp_path / "1"), str(tmp_path / "2")]
    assert find_scans(tmp_path / "1") == [{"image": str(tmp_path / "1")}]


@pytest.mark.parametrize(("name", "words"), [("gone", "no such file or folder"), ("", "no scan in it")])
def test_nothing_to_segment(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        find_scans(tmp_path / name)


def test_cache_num_counts_decoded_bytes(write_nifti):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    data = [{"image": write_nifti(f"{n}.nii.gz", np.zeros((20, 20, 10), np.int16), affine)} for n in range(4)]
    one_gb = 20 * 20 * 10 * 5 / 1e9
    assert cache_num(data, 2.5 * one_gb) == 2
    assert cache_num(data, 10 * one_gb) == 4
    assert cache_num(data, 2.5 * one_gb, spacing=(2, 2, -1)) == 4
    assert cache_num(data, 0) == 0


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
    inverse = np.array([1 / 72, 1 / 8])
    assert np.allclose(weights, inverse / inverse.mean())
    absent = inverse_frequency_weights(data, {"background": [0], "liver": [1, 2], "spleen": [3]})
    assert absent[2] == 0
    assert torch.isfinite(absent).all()
