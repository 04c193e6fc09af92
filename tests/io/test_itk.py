"""NRRD and MetaImage against what SimpleITK writes and nibabel reads."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from liverseg.data import find_scans
from liverseg.errors import InputError
from liverseg.io.paths import ITK_SUFFIXES, stem_of
from liverseg.io.volumes import read_volume, read_volume_grid

SHAPE = (7, 6, 5)
AXES = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]


def make_image(axes=(0, 1, 2), angle=0.0, dtype=np.int16) -> sitk.Image:
    voxels = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(dtype)
    image = sitk.GetImageFromArray(voxels.transpose())
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((11.0, -22.0, 33.0))
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    image.SetDirection((turn @ np.eye(3)[:, axes]).ravel())
    return image


@pytest.mark.parametrize("suffix", ITK_SUFFIXES)
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("axes", AXES)
def test_voxels_and_places_are_those_of_the_same_image_as_nifti(tmp_path, suffix, compressed, axes):
    image = make_image(axes, angle=0.3)
    path = tmp_path / f"ä scan{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    sitk.WriteImage(image, str(tmp_path / "same.nii.gz"))
    expected = nib.load(tmp_path / "same.nii.gz")
    for found in (read_volume(str(path)), read_volume_grid(str(path))):
        assert found.array.shape == SHAPE
        assert np.allclose(found.affine, expected.affine, atol=1e-4)
        assert found.warnings == ()
    volume = read_volume(str(path))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, np.asarray(expected.dataobj))
    assert stem_of(path) == "ä scan"
    assert find_scans(path) == [{"image": str(path)}]


def test_a_folder_lists_them_beside_others_and_leaves_segmentations_out(tmp_path):
    for name in ("a.nrrd", "b.mha", "c.nii.gz", "a.seg.nrrd"):
        sitk.WriteImage(make_image(), str(tmp_path / name))
    sitk.WriteImage(make_image(), str(tmp_path / "d.mhd"))
    found = [Path(item["image"]).name for item in find_scans(tmp_path)]
    assert sorted(found) == ["a.nrrd", "b.mha", "c.nii.gz", "d.mhd"]


def test_a_further_axis_of_length_one_is_dropped(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(1, 4, 3, 2)
    image = sitk.GetImageFromArray(voxels, isVector=False)
    assert image.GetDimension() == 4
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    found = read_volume(str(tmp_path / "a.nrrd"))
    assert np.array_equal(found.array, voxels[0].transpose())


def test_a_header_that_does_not_say_where_left_is_gives_a_warning(tmp_path):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspacings: 1 2 3\nencoding: raw\n"
    data = np.arange(8, dtype="<i2").tobytes()
    (tmp_path / "a.nrrd").write_bytes(f"{header}endian: little\n\n".encode() + data)
    found = read_volume(str(tmp_path / "a.nrrd"))
    assert np.allclose(found.affine, np.diag([-1, -2, 3, 1]))
    assert "does not say which way is left" in found.warnings[0]


def cut(path: Path) -> None:
    image = make_image()
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes()[:-30])


def colours(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True), path)


def planes(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4), np.uint8)), path)


def times(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.uint8), isVector=False), path)


def text(path: Path) -> None:
    path.write_text("no volume")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (cut, "not readable as a volume"),
        (colours, "4×3×2×3 values a voxel, expected one 3-D volume"),
        (planes, "the volume is 4×3, expected one 3-D volume"),
        (times, "the volume is 5×4×3×2, expected one 3-D volume"),
        (text, "not readable as a volume"),
    ],
)
def test_what_is_no_whole_volume_is_refused_by_name(tmp_path, suffix, write, expected):
    path = tmp_path / f"scan{suffix}"
    write(path)
    with pytest.raises(InputError, match=rf"scan{suffix}: .*{expected}") as error:
        read_volume(str(path))
    assert "\n" not in str(error.value)


def test_a_header_without_its_voxels_is_refused(tmp_path):
    sitk.WriteImage(make_image(), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputError, match="not readable as a volume"):
        read_volume(str(tmp_path / "a.mhd"))
