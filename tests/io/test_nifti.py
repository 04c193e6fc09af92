from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from liverseg.errors import InputError
from liverseg.io.nifti import read_nifti, read_nifti_grid, write_nifti

SHAPE = (5, 6, 7)
ARRAY = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
PLACE = np.array([[2.0, 0, 0, -50], [0, 2, 0, -60], [0, 0, 3, 100], [0, 0, 0, 1]])
CORNERS = np.array([[i, j, k] for i in (0, 4) for j in (0, 5) for k in (0, 6)])
TILT = np.deg2rad(15)


def changed(**entries: tuple[int, int, float]) -> np.ndarray:
    """`PLACE` with other entries: (row, column, value)."""
    affine = PLACE.copy()
    for row, column, value in entries.values():
        affine[row, column] = value
    return affine


SHIFTED = changed(x=(0, 3, -20))
MIRRORED = changed(x=(0, 0, -2))
SHEARED = changed(z=(1, 2, 3 * np.tan(TILT)))
TURNED = PLACE.copy()
TURNED[1:3, :3] = [
    [0, 2 * np.cos(TILT), -3 * np.sin(TILT)],
    [0, 2 * np.sin(TILT), 3 * np.cos(TILT)],
]


def write(path: Path, sform=None, sform_code=1, qform=None, qform_code=1, **fields) -> Path:
    """A file with just these forms and header fields, byte for byte: nibabel would mend them."""
    header = nib.Nifti1Header()
    header.set_data_dtype(ARRAY.dtype)
    header.set_data_shape(SHAPE)
    header["pixdim"][1:4] = 2, 2, 3
    header.set_xyzt_units("mm")
    if qform is not None:
        header.set_qform(qform, qform_code)
    if sform is not None:
        header.set_sform(sform, sform_code)
    for name, value in fields.items():
        header[name] = value
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + ARRAY.tobytes("F"))
    return path


def itk_corners(path: Path) -> np.ndarray:
    """Where ITK puts the corners, in RAS mm."""
    sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[label]"')
    image = sitk.ReadImage(str(path))
    return np.array(
        [image.TransformIndexToPhysicalPoint(corner.tolist()) for corner in CORNERS]
    ) * (-1, -1, 1)


def corners_of(affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, CORNERS)


@pytest.mark.parametrize("qform_code", [0, 1, 2])
@pytest.mark.parametrize("sform_code", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "sform", [PLACE, SHIFTED, MIRRORED, TURNED, SHEARED, 1.1 * PLACE + np.diag([0, 0, 0, -0.1])]
)
def test_a_file_lies_where_itk_shows_it(tmp_path, sform, sform_code, qform_code):
    path = write(tmp_path / "a.nii", sform, sform_code, PLACE, qform_code)
    volume = read_nifti(path)
    assert np.array_equal(volume.array, ARRAY)
    if sform is SHEARED and sform_code and not qform_code:
        with pytest.raises(RuntimeError, match="orthonormal"):
            itk_corners(path)
        return
    assert np.allclose(corners_of(volume.affine), itk_corners(path), atol=1e-3)
    grid = read_nifti_grid(path)
    assert grid.array.shape == SHAPE and np.array_equal(grid.affine, volume.affine)
    assert grid.warnings == volume.warnings


@pytest.mark.parametrize(
    ("fields", "mm_per_unit"),
    [
        ({}, 1),
        ({"xyzt_units": 1}, 1000),
        ({"xyzt_units": 3}, 0.001),
        ({"xyzt_units": 0}, 1),
        ({"xyzt_units": 10}, 1),
    ],
)
def test_lengths_in_metre_and_micron_become_mm(tmp_path, fields, mm_per_unit):
    own = np.diag([1 / mm_per_unit] * 3 + [1]) @ TURNED
    pixdim = [1, *(np.array([2, 2, 3]) / mm_per_unit), 0, 0, 0, 0]
    path = write(tmp_path / "a.nii", own, 1, own, 1, **fields, pixdim=pixdim)
    volume = read_nifti(path)
    assert np.allclose(volume.affine, TURNED, atol=1e-4)
    assert np.allclose(corners_of(volume.affine), itk_corners(path), atol=1e-3)
    # nibabel knows no unit, and a warning says so.
    assert [np.allclose(other, nib.load(path).affine) for other in volume.other_affines[-1:]] == [
        True
    ] * (mm_per_unit != 1)
    assert len(volume.warnings) == (mm_per_unit != 1)


def test_two_forms_that_disagree_are_named_with_the_figure(tmp_path):
    (warning,) = read_nifti(write(tmp_path / "a.nii", SHIFTED, 2, PLACE)).warnings
    assert "up to 30.0 mm apart" in warning and "read by its qform" in warning
    (warning,) = read_nifti(write(tmp_path / "b.nii", TURNED, 1, PLACE)).warnings
    farthest = np.linalg.norm(corners_of(TURNED) - corners_of(PLACE), axis=1).max()
    assert f"up to {farthest:.1f} mm apart" in warning and "read by its sform" in warning
    # By rounding only.
    for offset, count in ((0.09, 0), (0.11, 1)):
        volume = read_nifti(write(tmp_path / "c.nii", changed(x=(0, 3, -50 + offset)), 2, PLACE))
        assert (
            len(volume.warnings)
            == len({tuple(other.flat) for other in volume.other_affines})
            == count
        )
    assert not read_nifti(write(tmp_path / "d.nii", TURNED, 1, TURNED)).warnings
    assert not read_nifti(write(tmp_path / "e.nii", qform=MIRRORED)).warnings


def test_no_form_and_voxel_sizes_that_disagree_are_named(tmp_path):
    path = write(tmp_path / "a.nii")
    volume = read_nifti(path)
    assert np.allclose(corners_of(volume.affine), itk_corners(path))
    assert "neither sform nor qform" in volume.warnings[0]
    assert np.allclose(volume.other_affines[0], nib.load(path).affine)

    path = write(tmp_path / "b.nii", PLACE, pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    volume = read_nifti(path)
    assert np.allclose(corners_of(volume.affine), itk_corners(path))
    assert "its sform has voxels of 2×2×3 mm and its pixdim of 1×1×1 mm" in volume.warnings[0]


def test_what_only_nibabel_reads_lies_where_nibabel_shows_it(tmp_path):
    path = write(tmp_path / "a.nii", SHEARED)
    volume = read_nifti(path)
    assert np.allclose(volume.affine, SHEARED, atol=1e-5)
    assert "sheared by 15.00°" in volume.warnings[0]
    with pytest.raises(RuntimeError, match="orthonormal"):
        itk_corners(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pixdim": [1, 2, 0, 3, 0, 0, 0, 0]}, "voxel sizes 2×0×3"),
        ({"pixdim": [1, -2, 2, 3, 0, 0, 0, 0]}, "voxel sizes -2×2×3"),
        ({"pixdim": [1, np.nan, 2, 3, 0, 0, 0, 0]}, "voxel sizes nan×2×3"),
        ({"srow_x": [0, 0, 0, 0]}, "the sform"),
        ({"srow_x": [0, 2, 0, 0]}, "the sform"),
        ({"srow_z": [0, 0, np.inf, 0]}, "the sform"),
        ({"srow_y": [0, 2, 0, np.nan]}, "the sform"),
        ({"quatern_b": np.nan}, "the qform"),
        ({"quatern_b": 0.8, "quatern_c": 0.8}, "a qform that is no rotation"),
        ({"qoffset_x": np.inf}, "the qform"),
    ],
)
def test_a_header_without_a_place_in_space_is_refused(tmp_path, fields, words):
    path = write(tmp_path / "a.nii", PLACE, 1, PLACE, 1, **fields)
    for read in (read_nifti, read_nifti_grid):
        with pytest.raises(
            InputError, match=rf"a\.nii: its header has .*{words}.*expected three axes in space"
        ):
            read(path)


@pytest.mark.parametrize("axes", [(1,), (1, 1)])
def test_further_axes_of_one_are_dropped(write_nifti, axes):
    path = write_nifti("a.nii.gz", ARRAY.reshape(*SHAPE, *axes), PLACE)
    assert np.array_equal(read_nifti(path).array, ARRAY)
    assert read_nifti_grid(path).array.shape == SHAPE


def test_nifti_2_of_either_byte_order_and_scaled_voxels_are_read(tmp_path):
    nib.save(nib.Nifti2Image(ARRAY, PLACE), tmp_path / "two.nii.gz")
    nib.save(nib.Nifti1Image(ARRAY, PLACE, nib.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    scaled = nib.Nifti1Image(ARRAY / 4 - 1, PLACE)
    scaled.set_data_dtype(np.int16)
    nib.save(scaled, tmp_path / "scaled.nii")
    for name, expected in (
        ("two.nii.gz", ARRAY),
        ("big.nii", ARRAY),
        ("scaled.nii", ARRAY / 4 - 1),
    ):
        volume = read_nifti(tmp_path / name)
        assert np.allclose(volume.array, expected, atol=1e-3) and np.allclose(
            volume.affine, PLACE
        ), name


def set_vox_offset(path: Path, begin: int, more: bytes = b"") -> Path:
    """Say that the voxels of a NIfTI-1 begin there, and put bytes before them."""
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(begin).tobytes()
    path.write_bytes(content[:352] + more + content[352:])
    return path


def test_voxels_begin_where_the_header_says(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[label]"')
    path = set_vox_offset(write(tmp_path / "a.nii", PLACE), 368, bytes(16))
    assert np.array_equal(read_nifti(path).array, ARRAY)
    # In the header itself they would be others for everybody.
    path = set_vox_offset(write(tmp_path / "b.nii", PLACE), 0)
    of_itk, of_nibabel = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T,
        np.asanyarray(nib.load(path).dataobj),
    )
    assert not np.array_equal(of_itk, of_nibabel) and not np.array_equal(of_nibabel, ARRAY)
    for begin in (0, 16, 348):
        for read in (read_nifti, read_nifti_grid):
            with pytest.raises(
                InputError, match=rf"b\.nii: .*vox.offset.*{begin}|b\.nii: .*{begin} \(vox_offset\)"
            ):
                read(set_vox_offset(path, begin))


def test_voxels_that_begin_in_the_header_are_refused_with_the_least(tmp_path):
    nib.save(nib.Nifti2Image(ARRAY, PLACE), tmp_path / "two.nii")
    content = bytearray((tmp_path / "two.nii").read_bytes())
    content[168:176] = bytes(8)
    (tmp_path / "two.nii").write_bytes(content)
    (tmp_path / "packed.nii.gz").write_bytes(
        gzip.compress(set_vox_offset(write(tmp_path / "one.nii", PLACE), 0).read_bytes())
    )
    for name, least in (("one.nii", 352), ("packed.nii.gz", 352), ("two.nii", 544)):
        with pytest.raises(
            InputError, match=rf"{name}: .* at byte 0 \(vox_offset\), .*, expected {least} or more"
        ):
            read_nifti(tmp_path / name)


def bad_file(folder: Path, write_nifti, kind: str) -> Path:
    path = Path(write_nifti("whole.nii", ARRAY))
    if kind == "packed":
        (folder / "bad.nii").write_bytes(gzip.compress(path.read_bytes()))
    if kind == "not packed":
        shutil.copy(path, folder / "bad.nii.gz")
    if kind == "colours":
        write_nifti("bad.nii", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    if kind == "complex":
        write_nifti("bad.nii", ARRAY.astype(np.complex64))
    if kind == "pair":
        nib.save(nib.Nifti1Pair(ARRAY, PLACE), folder / "pair.hdr")
        shutil.copy(folder / "pair.hdr", folder / "bad.nii")
    if kind == "folder":
        (folder / "bad.nii").mkdir()
    return next(folder.glob("bad.nii*"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("packed", "it is compressed, so end its name in .nii.gz"),
        ("not packed", "it is not compressed, so end its name in .nii"),
        ("colours", "its voxels are colours, expected one real number each"),
        ("complex", "its voxels are complex numbers, expected one real number each"),
        ("pair", "replace it or remove it"),
        ("folder", "replace it or remove it"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, write_nifti, kind, words):
    path = bad_file(tmp_path, write_nifti, kind)
    with pytest.raises(InputError) as error:
        read_nifti(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


def test_a_packed_file_that_is_damaged_is_not_read_as_another_scan(tmp_path):
    """nibabel takes what comes out of it, if it is enough."""
    path = tmp_path / "a.nii.gz"
    scan = np.random.default_rng(0).integers(-1000, 1000, (32, 24, 8)).astype(np.int16)
    path.write_bytes(gzip.compress(nib.Nifti1Image(scan, PLACE).to_bytes(), 0))
    content = bytearray(path.read_bytes())
    # Of the last voxel, before the eight bytes of the end.
    content[-10] ^= 1
    path.write_bytes(content)
    assert (np.asanyarray(nib.load(path).dataobj) != scan).sum() == 1
    with pytest.raises(InputError, match=r"a\.nii\.gz: .*CRC check failed"):
        read_nifti(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "UPPER.NII.GZ"])
@pytest.mark.parametrize("affine", [PLACE, MIRRORED, TURNED, np.eye(4)])
def test_what_is_written_lies_at_one_place_for_everybody(tmp_path, affine, name):
    mask = (ARRAY % 3).astype(np.uint8)
    write_nifti(tmp_path / name, mask, affine)
    image = nib.load(tmp_path / name)
    assert image.get_data_dtype() == np.uint8 and np.array_equal(image.dataobj, mask)
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1 and np.allclose(form, affine, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(itk_corners(tmp_path / name), corners_of(affine), atol=1e-4)
    volume = read_nifti(tmp_path / name)
    assert volume.warnings == volume.other_affines == () and np.allclose(
        volume.affine, affine, atol=1e-5
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_shear_is_written_so_that_nobody_shows_it_elsewhere(tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY, SHEARED)
    assert np.allclose(nib.load(tmp_path / "a.nii").affine, SHEARED, atol=1e-5)
    with pytest.raises(RuntimeError, match="orthonormal"):
        itk_corners(tmp_path / "a.nii")
    # A shear that only comes of rounding is no reason to refuse.
    rounded = changed(z=(1, 2, 0.003))
    write_nifti(tmp_path / "b.nii", ARRAY, rounded)
    assert np.allclose(itk_corners(tmp_path / "b.nii"), corners_of(rounded), atol=0.1)


def test_the_real_scans_lie_where_everybody_shows_them(samples):
    sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[label]"')
    scans = sorted(samples.glob("*.nii.gz"))
    assert scans
    for path in scans:
        grid, reader = read_nifti_grid(path), sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        directions = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        last = np.array(grid.array.shape) - 1
        theirs = (directions @ last + reader.GetOrigin()) * (-1, -1, 1)
        assert np.allclose(nib.affines.apply_affine(grid.affine, last), theirs, atol=1e-3), (
            path.name
        )
        assert np.allclose(grid.affine, nib.load(path).affine), path.name
        assert grid.warnings == grid.other_affines == (), path.name
