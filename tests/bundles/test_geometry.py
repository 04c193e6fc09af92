"""Masks come back on the scan's own grid, whatever that grid is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import AFFINE, BUNDLE, SHORT, make_scan, save
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


@pytest.fixture(scope="module")
def masks(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grids")
    for name, image in grids().items():
        nib.save(image, folder / f"{name}.nii.gz")
    settings = {"bundle_root": str(trained), "dataset_dir": str(folder), "output_dir": str(folder / "masks")}
    create_workflow(
        config_file=INFERENCE,
        workflow_type="infer",
        spacing=SHORT["spacing"],
        mask_cleaning="@postprocessings#none",
        **settings,
    ).run()
    return folder / "masks"


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


def test_a_scan_without_test_section_needs_no_datalist(trained, tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(3)[0])
    settings = {"bundle_root": str(trained), "output_dir": str(tmp_path / "out"), "spacing": SHORT["spacing"]}
    create_workflow(
        config_file=INFERENCE, workflow_type="infer", dataset_dir=str(tmp_path / "scan.nii.gz"), **settings
    ).run()
    assert (tmp_path / "out" / "scan_liver.nii.gz").is_file()
