from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])


def test_loads_channel_first_float32_with_the_affine(write_nifti):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    loaded = LoadVolumed(keys=["image", "label"])(
        {"image": write_nifti("i.nii.gz", array, AFFINE), "label": write_nifti("l.nii.gz", array, AFFINE)}
    )
    assert loaded["image"].shape == (1, 2, 3, 4)
    assert loaded["image"].dtype == torch.float32
    assert np.array_equal(loaded["image"][0], array)
    assert np.allclose(loaded["image"].affine, AFFINE)


def test_missing_keys_only_when_allowed(write_nifti):
    data = {"image": write_nifti("i.nii.gz", np.zeros((2, 2, 2), np.int16))}
    LoadVolumed(keys=["image", "label"], allow_missing_keys=True)(data)
    with pytest.raises(KeyError):
        LoadVolumed(keys=["image", "label"])(data)


def bad_file(tmp_path: Path, write_nifti, case: str) -> str:
    whole = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    if case == "missing":
        return str(tmp_path / "gone.nii.gz")
    if case == "text":
        (tmp_path / "bad.nii.gz").write_text("no image")
    if case == "gzipped text":
        (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(b"no image" * 100))
    if case == "picture":
        (tmp_path / "bad.xyz").write_bytes(b"\x89PNG")
        return str(tmp_path / "bad.xyz")
    if case == "truncated gz":
        data = Path(write_nifti("bad.nii.gz", whole)).read_bytes()
        (tmp_path / "bad.nii.gz").write_bytes(data[: len(data) // 2])
    if case == "truncated":
        data = Path(write_nifti("bad.nii", whole)).read_bytes()
        (tmp_path / "bad.nii").write_bytes(data[: len(data) // 2])
        return str(tmp_path / "bad.nii")
    if case == "2-D":
        return write_nifti("bad.nii.gz", whole[0])
    if case == "4-D":
        return write_nifti("bad.nii.gz", np.stack([whole, whole], -1))
    if case in ("nan", "inf"):
        broken = whole.astype(np.float32)
        broken[1, 2, 3] = float(case)
        return write_nifti("bad.nii.gz", broken)
    return str(tmp_path / "bad.nii.gz")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", ["there is no such file"]),
        ("text", ["not readable as a volume", "replace"]),
        ("gzipped text", ["not readable as a volume", "replace"]),
        ("picture", ["not readable as a volume", "replace"]),
        ("truncated gz", ["not readable as a volume", "replace"]),
        ("truncated", ["not readable as a volume", "replace"]),
        ("2-D", ["2-D", "20×20", "expected one 3-D volume"]),
        ("4-D", ["4-D", "20×20×20×2", "expected one 3-D volume"]),
        ("nan", ["1 voxels are NaN or infinite"]),
        ("inf", ["1 voxels are NaN or infinite"]),
    ],
)
def test_bad_files_are_named_in_one_sentence(tmp_path, write_nifti, case, words):
    path = bad_file(tmp_path, write_nifti, case)
    with pytest.raises(InputError) as error:
        LoadVolumed(keys="image")({"image": path})
    message = str(error.value)
    assert Path(path).name in message
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("what", ["shape", "affine"])
def test_image_and_label_must_share_a_grid(write_nifti, what):
    image = write_nifti("i.nii.gz", np.zeros((4, 4, 4), np.int16), AFFINE)
    other = AFFINE + (what == "affine") * np.eye(4)[0][:, None] * np.eye(4)[3]
    label = write_nifti("l.nii.gz", np.zeros((4, 4, 5 if what == "shape" else 4), np.uint8), other)
    with pytest.raises(InputError, match=r"l\.nii\.gz: its grid .* is not that of .*i\.nii\.gz"):
        LoadVolumed(keys=["image", "label"])({"image": image, "label": label})


def test_the_same_grid_stored_in_another_axis_order_is_the_same_grid(write_nifti):
    array = np.zeros((4, 5, 6), np.int16)
    image = nib.Nifti1Image(array, AFFINE)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("LSA"))
    paths = {"image": write_nifti("i.nii.gz", array, AFFINE)}
    paths["label"] = write_nifti("l.nii.gz", np.asarray(turned.dataobj), turned.affine)
    loaded = LoadVolumed(keys=["image", "label"])(paths)
    assert loaded["label"].shape != loaded["image"].shape
