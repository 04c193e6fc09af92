from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from helpers.full_disk import full_disk
from helpers.masked_series import LPS, hard_mask, places

from liverseg.errors import InputError
from liverseg.outputs.class_files import write_class_files
from liverseg.outputs.segmentation import Segmentation
from liverseg.outputs.segments_nrrd import write_nrrd, write_segments_nrrd

sitk = pytest.importorskip("SimpleITK")

NAMES = {1: "liver", 2: "lesion", 4: "right kidney", 5: "Milz größer", 7: "gallbladder"}
AFFINE = np.array([[0.7, 0, 0, -30], [0, 0.8, 0, 12], [0, 0, 2.5, 40], [0, 0, 0, 1]])
MASK = hard_mask()
_cos, _sin = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[_cos, -_sin, 0, 0], [_sin, _cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TURNS = [
    "".join(sides)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for sides in itertools.product(*axes)
]


def segmentation(mask=MASK, affine=AFFINE) -> Segmentation:
    return Segmentation("scan.nii.gz", mask, affine, NAMES, "unet3d_liver", "0.2.0")


def image_places(image: sitk.Image, value: int) -> np.ndarray:
    size, spacing = np.array(image.GetDirection()).reshape(3, 3), np.diag(image.GetSpacing())
    to_lps = nib.affines.from_matvec(size @ spacing, image.GetOrigin())
    return places(value == sitk.GetArrayFromImage(image).T, to_lps)


def turned(axes: str) -> Segmentation:
    """The same mask at the same place, with its axes in another order."""
    affine = OBLIQUE @ AFFINE
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    image = nib.Nifti1Image(MASK, affine).as_reoriented(turn)
    return segmentation(np.asarray(image.dataobj), image.affine)


@pytest.mark.parametrize("axes", TURNS)
def test_itk_reads_the_voxels_where_they_are(tmp_path, axes):
    write_segments_nrrd(turned(axes), tmp_path / "mask.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "mask.seg.nrrd"))
    files = write_class_files(turned(axes), tmp_path, ".nii")
    for value, name in NAMES.items():
        here = places(value == MASK, LPS @ OBLIQUE @ AFFINE)
        assert np.allclose(image_places(image, value), here, atol=1e-3)
        assert np.allclose(image_places(sitk.ReadImage(str(files[name])), 1), here, atol=1e-3)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1)])
def test_pynrrd_reads_the_header(tmp_path, compress, shape):
    nrrd = pytest.importorskip("nrrd")
    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8))
    write_nrrd(tmp_path / "mask.nrrd", mask, AFFINE, {}, compress)
    array, header = nrrd.read(str(tmp_path / "mask.nrrd"))
    assert np.array_equal(array, mask)
    assert array.dtype == np.uint8
    assert np.allclose(header["space directions"], (LPS @ AFFINE)[:3, :3].T)
    assert np.allclose(header["space origin"], (LPS @ AFFINE)[:3, 3])
    assert not any(key.startswith("Segment") for key in header)


def test_segments_are_as_in_3d_slicer(tmp_path):
    write_segments_nrrd(segmentation(), tmp_path / "mask.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "mask.seg.nrrd"))
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    segments = [
        {
            key: header.get(f"Segment{number}_{key}")
            for key in ("Name", "ID", "LabelValue", "Layer", "Extent", "Color", "Tags")
        }
        for number in range(sum(key.endswith("_Name") for key in header))
    ]
    # What the mask does not hold is no segment, what the bundle does not name is one.
    assert [each["Name"] for each in segments] == ["liver", "lesion", "Milz größer", "segment 9"]
    assert [each["LabelValue"] for each in segments] == ["1", "2", "5", "9"]
    for each in segments:
        inside = np.argwhere(int(each["LabelValue"]) == MASK)
        extent = np.stack([inside.min(axis=0), inside.max(axis=0)], axis=1).ravel()
        assert each["Extent"] == " ".join(map(str, extent))
    liver, lesion, unknown, _ = segments
    general = "TerminologyEntry:Segmentation category and type - 3D Slicer General Anatomy list"
    assert liver["Tags"] == (
        f"{general}~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^"
        "~Anatomic codes - DICOM master list~^^~^^|"
    )
    assert lesion["Tags"] == (
        f"{general}~SCT^49755003^Morphologically Abnormal Structure~SCT^4147007^Mass~^^"
        "~Anatomic codes - DICOM master list~SCT^10200004^Liver~^^|"
    )
    assert np.allclose([float(part) * 255 for part in liver["Color"].split()], (221, 130, 101), 0.1)
    assert unknown["Color"] is None
    assert "SCT^85756007^Tissue" in unknown["Tags"]


def test_sides_are_in_the_codes(tmp_path):
    kidney = segmentation(np.where(MASK == 1, 4, 0).astype(np.uint8))
    write_segments_nrrd(kidney, tmp_path / "mask.seg.nrrd")
    tags = sitk.ReadImage(str(tmp_path / "mask.seg.nrrd")).GetMetaData("Segment0_Tags")
    assert "~SCT^64033007^Kidney~SCT^24028007^Right~" in tags


def test_a_mask_without_anything(tmp_path):
    empty = segmentation(np.zeros_like(MASK))
    write_segments_nrrd(empty, tmp_path / "mask.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "mask.seg.nrrd"))
    assert not sitk.GetArrayFromImage(image).any()
    assert not any(key.startswith("Segment0") for key in image.GetMetaDataKeys())


def test_each_class_has_a_file(tmp_path):
    files = write_class_files(segmentation(), tmp_path / "classes")
    assert {name: file.name for name, file in files.items()} == {
        "liver": "liver.nii.gz",
        "lesion": "lesion.nii.gz",
        "right kidney": "right_kidney.nii.gz",
        "Milz größer": "Milz_größer.nii.gz",
        "gallbladder": "gallbladder.nii.gz",
        "segment 9": "segment_9.nii.gz",
    }
    for value, name in {**NAMES, 9: "segment 9"}.items():
        image = nib.load(files[name])
        assert np.array_equal(np.asarray(image.dataobj), value == MASK)
        assert image.get_data_dtype() == np.uint8
        assert np.allclose(image.affine, AFFINE)


def test_two_classes_of_one_file_are_refused(tmp_path):
    same = Segmentation("scan", MASK, AFFINE, {1: "right kidney", 2: "Right_Kidney"}, "mine")
    with pytest.raises(InputError, match="channel_def of mine: found the classes right kidney, "):
        write_class_files(same, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path):
    file = tmp_path / "mask.seg.nrrd"
    write_segments_nrrd(segmentation(), file)
    before = file.read_bytes()
    noise = np.random.default_rng(0).integers(0, 9, (90, 90, 30)).astype(np.uint8)
    with full_disk(1000), pytest.raises(InputError, match=r"mask\.seg\.nrrd: could not"):
        write_segments_nrrd(segmentation(noise), file)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
