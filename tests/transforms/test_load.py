from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from monai.transforms import Orientationd

from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])


def test_loads_channel_first_float32_with_the_affine(write_nifti):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    loaded = LoadVolumed(keys=["image", "label"])(
        {
            "image": write_nifti("i.nii.gz", array, AFFINE),
            "label": write_nifti("l.nii.gz", array, AFFINE),
        }
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
    if case in ("nan", "inf", "1e31"):
        broken = whole.astype(np.float32)
        broken[1, 2, 3] = float(case)
        if case == "1e31":
            # The sum of so many leaves float32, though each is finite.
            broken[1:] = -1e35
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
        ("1e31", ["7600 voxels are NaN or infinite, or beyond ±1e+12"]),
    ],
)
def test_bad_files_are_named_in_one_message(tmp_path, write_nifti, case, words):
    path = bad_file(tmp_path, write_nifti, case)
    with pytest.raises(InputError) as error:
        LoadVolumed(keys="image")({"image": path})
    message = str(error.value)
    assert Path(path).name in message
    assert all(word in message for word in words), message
    assert "\n" not in message


LABEL_OFF = (
    r"l\.nii\.gz: its grid is not that of .*i\.nii\.gz \(.*\): draw or export it on that scan, "
    "or resample"
)


def load_pair(write_nifti, image_affine, label_affine, shape=(4, 4, 4), label_shape=None):
    paths = {
        "image": write_nifti("i.nii.gz", np.zeros(shape, np.int16), image_affine),
        "label": write_nifti("l.nii.gz", np.zeros(label_shape or shape, np.uint8), label_affine),
    }
    return LoadVolumed(keys=["image", "label"])(paths)


def test_image_and_label_must_share_a_grid(write_nifti):
    with pytest.raises(InputError, match=LABEL_OFF) as error:
        load_pair(write_nifti, AFFINE, AFFINE, label_shape=(4, 4, 5))
    assert "found the shape 4×4×5, expected 4×4×4" in str(error.value)
    # Half a voxel of 2 mm along an axis: a corner taken for a centre.
    with pytest.raises(InputError, match=LABEL_OFF) as error:
        load_pair(write_nifti, AFFINE, AFFINE + np.eye(4)[0][:, None] * np.eye(4)[3])
    assert "at voxel (0, 0, 0) lies 1 mm off, expected 0.4 mm at most" in str(error.value)


def test_a_spacing_that_differs_is_measured_at_the_corner(write_nifti):
    one, other = np.diag([0.700, 0.7, 5, 1]), np.diag([0.709, 0.7, 5, 1])
    with pytest.raises(InputError, match=LABEL_OFF) as error:
        load_pair(write_nifti, one, other, (512, 2, 2))
    # 511 · 0.009 mm.
    assert "at voxel (511, 0, 0) lies 4.6 mm off, expected 0.28 mm at most" in str(error.value)
    load_pair(write_nifti, one, other, (20, 2, 2))


@pytest.mark.parametrize("field_of_view_mm", [350, 360, 398, 411, 500])
def test_what_programs_round_is_the_same_grid(write_nifti, field_of_view_mm):
    angle, spacing_mm = np.deg2rad(12.3456), field_of_view_mm / 512
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine, rounded = np.eye(4), np.eye(4)
    affine[:3] = np.column_stack(
        [turn @ np.diag([spacing_mm, spacing_mm, 2.49876]), [-170.123456, 88.8888, -1234.5678]]
    )
    rounded[:3, :3] = turn.round(6) @ np.diag([round(spacing_mm, 3)] * 2 + [2.499])
    rounded[:3, 3] = affine[:3, 3].round(3)
    loaded = load_pair(write_nifti, affine, rounded, (512, 512, 2))
    # The label gets the scan's affine, or its size after resampling would be another.
    assert torch.equal(loaded["label"].affine, loaded["image"].affine)
    assert torch.equal(loaded["label"].meta["original_affine"], loaded["image"].affine)


def disagreeing_scan(tmp_path: Path, array: np.ndarray) -> tuple[Path, np.ndarray, np.ndarray]:
    """A scan with its forms: nibabel takes the sform, ITK and 3D Slicer the qform."""
    sform, qform = np.diag([2.0, 1.5, 3, 1]), np.diag([-2.0, 1.5, 3, 1])
    sform[:3, 3], qform[:3, 3] = (5, -7, 11), (35, -7, 11)
    image = nib.Nifti1Image(array, sform)
    image.set_qform(qform, 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz", sform, qform


@pytest.mark.parametrize(
    "drawn_in", ["3D Slicer", "nibabel", "nibabel with the header", "3D Slicer, axes reversed"]
)
def test_a_label_lies_on_a_scan_whose_forms_disagree(tmp_path, caplog, drawn_in):
    sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[label]"')
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path, _, qform = disagreeing_scan(tmp_path, array)
    drawn = (array % 7).astype(np.uint8)
    if drawn_in.startswith("nibabel"):
        header = nib.load(path).header if "header" in drawn_in else None
        nib.save(nib.Nifti1Image(drawn, nib.load(path).affine, header), tmp_path / "label.nii.gz")
    else:
        label = sitk.GetImageFromArray(drawn.transpose())
        label.CopyInformation(sitk.ReadImage(str(path)))
        sitk.WriteImage(
            label[::-1, :, ::-1] if "reversed" in drawn_in else label,
            str(tmp_path / "label.nii.gz"),
        )
    paths = {"image": str(path), "label": str(tmp_path / "label.nii.gz")}
    loaded = LoadVolumed(keys=["image", "label"])(paths)
    assert np.allclose(loaded["image"].affine, qform)
    assert (
        "up to 30.0 mm apart" in loaded["image"].meta["warnings"]
        and "scan.nii.gz: its sform" in caplog.text
    )
    # Each voxel of the label lies over the voxel that it was drawn on.
    turned = Orientationd(keys=["image", "label"], axcodes="RAS", labels=None)(loaded)
    assert torch.equal(turned["label"].affine, turned["image"].affine)
    assert torch.equal(turned["label"].as_tensor(), turned["image"].as_tensor() % 7)


def test_a_label_on_neither_place_of_such_a_scan_is_refused(tmp_path, write_nifti):
    path, sform, _ = disagreeing_scan(tmp_path, np.zeros((3, 4, 5), np.int16))
    label = write_nifti(
        "l.nii.gz", np.zeros((3, 4, 5), np.uint8), sform + 15 * np.eye(4)[0][:, None] * np.eye(4)[3]
    )
    with pytest.raises(InputError, match=r"l\.nii\.gz: its grid is not that of .*scan\.nii\.gz"):
        LoadVolumed(keys=["image", "label"])({"image": str(path), "label": label})


def test_scans_with_and_without_other_places_make_one_batch(tmp_path, write_nifti):
    path, _, _ = disagreeing_scan(tmp_path, np.zeros((3, 4, 5), np.int16))
    plain = write_nifti("i.nii.gz", np.zeros((3, 4, 5), np.int16), AFFINE)
    load = LoadVolumed(keys="image")
    batch = list_data_collate([load({"image": str(path)}), load({"image": plain})])
    assert batch["image"].shape == (2, 1, 3, 4, 5)
    assert [bool(text) for text in batch["image"].meta["warnings"]] == [True, False]


def test_the_same_grid_stored_in_another_axis_order_is_the_same_grid(write_nifti):
    array = np.zeros((4, 5, 6), np.int16)
    image = nib.Nifti1Image(array, AFFINE)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("LSA"))
    paths = {"image": write_nifti("i.nii.gz", array, AFFINE)}
    paths["label"] = write_nifti("l.nii.gz", np.asarray(turned.dataobj), turned.affine)
    loaded = LoadVolumed(keys=["image", "label"])(paths)
    assert loaded["label"].shape != loaded["image"].shape
