from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import AFFINE
from helpers.masked_series import NAMES, hard_mask, masked_series, series_affine
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app

pytest.importorskip("highdicom", reason='needs pip install ".[segment]"')
sitk = pytest.importorskip("SimpleITK")

from liverseg.outputs.dicom_seg import write_dicom_seg  # noqa: E402
from liverseg.outputs.reading import read_dicom_seg, read_segmentation  # noqa: E402
from liverseg.outputs.segments_nrrd import write_nrrd  # noqa: E402


def test_what_we_wrote_is_read(tmp_path):
    masked = masked_series(tmp_path / "ct", series_affine("oblique"))
    write_dicom_seg(masked, tmp_path / "mask.dcm")
    read = read_dicom_seg(str(tmp_path / "mask.dcm"), masked.scan)
    mask = hard_mask()
    assert list(read.class_names.values()) == ["liver", "lesion", "spleen", "größtes Segment"]
    for value, name in read.class_names.items():
        (ours,) = (number for number, other in NAMES.items() if other == name)
        assert np.array_equal(read.mask == value, mask == ours)


@pytest.mark.real_data
def test_a_foreign_dicom_seg_is_read(samples):
    folder = samples / "dcmqi_ct"
    read = read_dicom_seg(str(folder / "liver.dcm"), str(folder / "ct"))
    image = sitk.ReadImage(str(folder / "liver_seg.nrrd"))
    assert list(read.class_names) == [1]
    # On the same grid: rows, columns and slices run in the same direction.
    assert np.array_equal(read.mask, sitk.GetArrayFromImage(image).T)


@pytest.mark.parametrize("file", ["0.dcm", "note.txt", "nowhere.dcm"])
def test_what_is_no_dicom_seg_is_refused(tmp_path, file):
    masked = masked_series(tmp_path / "ct", series_affine())
    (tmp_path / "ct" / "note.txt").write_text("no DICOM")
    with pytest.raises(InputError, match=rf"{file}: .*expected a DICOM SEG: choose another"):
        read_dicom_seg(str(tmp_path / "ct" / file), masked.scan)


FAR = AFFINE + np.array([[0, 0, 0, 900.0]] + [[0] * 4] * 3)


@pytest.fixture
def scan(tmp_path):
    """A scan in other axes than the masks drawn on it."""
    image = nib.Nifti1Image(np.zeros(hard_mask().shape, np.int16), AFFINE)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    nib.save(turned, tmp_path / "ct.nii.gz")
    return turned


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd", "mask.seg.nrrd"])
def test_a_mask_in_other_axes_is_put_on_the_scans_grid(tmp_path, scan, name):
    mask, path = hard_mask(), tmp_path / name
    drawn = nib.Nifti1Image(mask, AFFINE)
    names = NAMES if ".seg" in name else {}
    if name.endswith(".nii.gz"):
        nib.save(drawn, path)
    else:
        write_nrrd(path, mask, AFFINE, names)
    read = read_segmentation(str(path), str(tmp_path / "ct.nii.gz"), {2: "tumour"})
    expected = drawn.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    assert np.array_equal(read.mask, expected.dataobj)
    assert np.allclose(read.affine, scan.affine)
    found = {value: name for value, name in NAMES.items() if (mask == value).any()}
    others = {value: name if names else f"segment {value}" for value, name in found.items()}
    assert read.class_names == {**others, 2: "tumour"}
    assert read.warnings == ()


def test_a_mask_of_a_part_of_the_scan_is_put_in_its_place_and_said(tmp_path, scan):
    """3D Slicer writes the box around the segments alone."""
    part = nib.Nifti1Image(hard_mask(), AFFINE).slicer[4:, 2:, 1:]
    nib.save(part, tmp_path / "mask.nii.gz")
    read = read_segmentation(str(tmp_path / "mask.nii.gz"), str(tmp_path / "ct.nii.gz"))
    whole = np.zeros_like(hard_mask())
    whole[4:, 2:, 1:] = part.dataobj
    turned = nib.Nifti1Image(whole, AFFINE).as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    assert np.array_equal(read.mask, turned.dataobj)
    assert "the mask lies on another grid" in read.warnings[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda mask: (mask * 0.5, AFFINE), "found voxels from 0 to 4.5, expected a mask"),
        (lambda mask: (mask.astype(np.int16) - 1, AFFINE), "found voxels from -1 to 8"),
        (lambda mask: (mask, FAR), "expected a mask that lies in the scan"),
    ],
)
def test_what_is_no_mask_of_the_scan_is_refused(tmp_path, scan, change, expected):
    array, affine = change(hard_mask())
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=rf"mask.nii.gz: .*{expected}"):
        read_segmentation(str(tmp_path / "mask.nii.gz"), str(tmp_path / "ct.nii.gz"))


@pytest.mark.real_data
def test_the_command_makes_a_page_of_a_foreign_mask(tmp_path, samples):
    folder, page = samples / "dcmqi_ct", tmp_path / "liver.html"
    mask = folder / "liver.dcm"
    printed = CliRunner().invoke(
        app, ["report", str(folder / "ct"), str(page), "--mask", str(mask)]
    )
    drawn = sitk.ReadImage(str(folder / "liver_seg.nrrd"))
    volume_ml = sitk.GetArrayFromImage(drawn).sum() * np.prod(drawn.GetSpacing()) / 1000
    assert printed.exception is None
    assert f"liver {volume_ml:.0f} ml" in printed.output
    text = page.read_text()
    assert "liver.dcm" in text and f"{volume_ml:.1f}" in text
    both, options = folder / "liver_spine_seg.nrrd", ["--names", "1=liver,2=spine"]
    named = CliRunner().invoke(
        app, ["report", str(folder / "ct"), str(page), "--mask", str(both), *options]
    )
    assert "spine 8 ml" in named.output


def test_the_page_has_a_name_that_browsers_know(tmp_path):
    found = CliRunner().invoke(app, ["report", "ct.nii.gz", "out", "--mask", "mask.nii.gz"])
    assert "expected one in .html" in str(found.exception)
