"""Masks come back on the scan's own grid, whatever that grid is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import AFFINE, BUNDLE, make_scan, save
from helpers.dataset_trees import write_series
from monai.bundle import create_workflow

INFERENCE = str(BUNDLE / "configs" / "inference.json")


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(4)
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


def in_orientation(codes: str) -> nib.Nifti1Image:
    image = nib.Nifti1Image(make_scan(9)[0], AFFINE)
    return image.as_reoriented(nib.orientations.axcodes2ornt(tuple(codes)))


def grids() -> dict[str, nib.Nifti1Image]:
    image = make_scan(9)[0]
    grids = {codes: in_orientation(codes) for codes in ("RAS", "LPS", "LAS", "PIR", "SAL")}
    oblique = rotation(20, 0) @ rotation(-15, 2) @ AFFINE
    oblique[:3, 3] = (31, -17, 400)
    grids["oblique"] = nib.Nifti1Image(image, oblique)
    grids["anisotropic"] = nib.Nifti1Image(image[:, ::2], np.diag([6.0, 12.0, 10.0, 1.0]))
    grids["identity"] = nib.Nifti1Image(image, np.eye(4))
    grids["one-slice"] = nib.Nifti1Image(image[..., 4:5], AFFINE)
    grids["thousand-slices"] = nib.Nifti1Image(np.tile(image[:16, :16], (1, 1, 125)), AFFINE)
    return grids


# Array axes to the left, back and head, as of DICOM; in the second each slice lies 2 mm further
# back.
UPRIGHT = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
SERIES = {"[CT] x": UPRIGHT, "tilted": UPRIGHT + np.outer([0, -2.0, 0, 0], [0, 0, 1, 0])}


def two_places() -> nib.Nifti1Image:
    """nibabel goes by the sform, ITK and 3D Slicer by the qform."""
    oblique = rotation(20, 0) @ rotation(-15, 2) @ AFFINE
    oblique[:3, 3] = (31, -17, 400)
    image = nib.Nifti1Image(make_scan(9)[0], AFFINE)
    image.set_qform(oblique, 1)
    return image


def segment(folder: Path, scans: Path) -> Path:
    """Run the bundle with a network that thresholds at the middle of the window."""
    network = torch.nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight[:] = torch.tensor([0.0, 1.0])[:, None, None, None]
        network.bias[:] = torch.tensor([0.5, 0.0])
    torch.save(network.state_dict(), folder / "threshold.pt")
    create_workflow(
        config_file=INFERENCE,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        network_def={
            "_target_": "torch.nn.Conv2d",
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": 1,
        },
        ckpt_path=str(folder / "threshold.pt"),
        dataset_dir=str(scans),
        output_dir=str(folder / "masks"),
        spacing=[6.0, 6.0, -1],
        postprocessing="@postprocessings#none",
        amp=False,
    ).run()
    return folder / "masks"


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grids")
    for name, image in grids().items():
        nib.save(image, folder / f"{name}.nii.gz")
    pytest.importorskip("pydicom")
    for number, (name, affine) in enumerate(SERIES.items()):
        names = [f"IM{k}" for k in range(8)]
        write_series(
            folder / name, make_scan(9)[0], affine, names, SeriesInstanceUID=f"1.2.{number}"
        )
    nib.save(two_places(), folder / "two-places.nii.gz")
    return segment(folder, folder)


def found_at(masks: Path, name: str) -> nib.Nifti1Image:
    (path,) = (path for path in masks.rglob("*.nii.gz") if name in str(path.relative_to(masks)))
    return nib.load(path)


def test_the_mask_of_a_series_lies_where_its_slices_do(masks):
    """In whatever order they were written; the folder's name is a pattern to some programs."""
    mask = found_at(masks, "[CT] x")
    assert np.array_equal(mask.dataobj, make_scan(9)[0] > 40)
    assert np.allclose(mask.affine, SERIES["[CT] x"], atol=1e-4)


def test_the_mask_of_a_tilted_series_lies_where_its_slices_do(masks):
    """Compare each voxel, at the place that its slice states, with the mask at that place."""
    mask = found_at(masks, "tilted")
    expected = make_scan(9)[0] > 40
    points = nib.affines.apply_affine(
        SERIES["tilted"], np.moveaxis(np.indices(expected.shape), 0, -1)
    )
    index = np.rint(nib.affines.apply_affine(np.linalg.inv(mask.affine), points)).astype(int)
    found = np.asarray(mask.dataobj)[tuple(np.moveaxis(index, -1, 0))] > 0
    # The slices step aside by a third of a voxel, and edges by as much.
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9
    axes = mask.affine[:3, :3] / np.linalg.norm(mask.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("name", grids())
def test_shape_affine_and_type(masks, name):
    mask, image = nib.load(masks / f"{name}_liver.nii.gz"), grids()[name]
    assert mask.shape == image.shape
    assert np.allclose(mask.affine, image.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8


@pytest.mark.parametrize("codes", ["LPS", "LAS", "PIR", "SAL"])
def test_the_storage_order_changes_no_voxel(masks, codes):
    turned = nib.as_closest_canonical(nib.load(masks / f"{codes}_liver.nii.gz"))
    straight = nib.load(masks / "RAS_liver.nii.gz")
    assert np.array_equal(turned.dataobj, straight.dataobj)
    assert np.asarray(straight.dataobj).any()


@pytest.mark.parametrize("name", ["RAS", "LPS", "one-slice", "thousand-slices"])
def test_every_voxel_is_decided_by_its_own_intensity(masks, name):
    """At the scan's own spacing nothing is resampled: the mask is the array above the threshold."""
    expected = np.asarray(grids()[name].dataobj) > 40
    assert np.array_equal(nib.load(masks / f"{name}_liver.nii.gz").dataobj, expected)


def test_a_mask_lies_where_itk_shows_the_scan(masks):
    sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[label]"')
    scan, mask = (
        sitk.ReadImage(str(path))
        for path in (masks.parent / "two-places.nii.gz", masks / "two-places_liver.nii.gz")
    )
    assert mask.GetSize() == scan.GetSize()
    for corner in ((0, 0, 0), (47, 0, 0), (0, 39, 0), (47, 39, 7)):
        places = [image.TransformIndexToPhysicalPoint(corner) for image in (scan, mask)]
        assert np.allclose(*places, atol=1e-3), corner
    assert np.array_equal(sitk.GetArrayFromImage(mask) > 0, sitk.GetArrayFromImage(scan) > 40)
    # Everybody shows the mask at one place.
    written = nib.load(masks / "two-places_liver.nii.gz")
    assert np.allclose(written.affine, two_places().get_qform(), atol=1e-4)


def test_a_single_file_needs_no_datalist(tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(3)[0])
    assert (segment(tmp_path, tmp_path / "scan.nii.gz") / "scan_liver.nii.gz").is_file()
