"""The bundle on real scans: the chain works on real input, which says nothing about accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import BUNDLE, copy_files
from monai.bundle import create_workflow

from liverseg.networks import load_weights

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

ABDOMEN = BUNDLE.parent / "deeplabv3_abdomen_mr"
CLASSES = {"background": None, "liver": [5]}
SETTINGS = {
    "spacing": [3.0, 3.0, -1],
    "spatial_size": [128, 108],
    "classes": CLASSES,
    "learning_rate": 0.0007,
}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory) -> Path:
    """A training on one scan, validated on the same: nothing but learning by heart."""
    return overfit(tmp_path_factory.mktemp("overfit"), BUNDLE, "ts_ct", SETTINGS, max_epochs=30)


def overfit(folder: Path, bundle: Path, name: str, settings: dict, max_epochs: int) -> Path:
    samples = Path(__file__).resolve().parents[3] / "shared" / "samples"
    if not samples.is_dir():
        pytest.skip(f"the real scans are not there: {samples}")
    item = {
        "image": str(samples / f"{name}.nii.gz"),
        "label": str(samples / f"{name}_organs.nii.gz"),
    }
    training, validation = (
        {**item, "fold": 1},
        {**copy_files(item, folder / "copy"), "fold": 0, "patient": "copy"},
    )
    # Eight times the same scan: an epoch of eight steps, so that writing checkpoints takes no time.
    (folder / "dataset.json").write_text(json.dumps({"training": [validation, *[training] * 8]}))
    create_workflow(
        config_file=str(bundle / "configs" / "train.json"),
        workflow_type="train",
        bundle_root=str(folder),
        dataset_dir=str(folder),
        **settings,
        batch_size=1,
        slices_per_volume=6,
        foreground_ratio=0.8,
        max_epochs=max_epochs,
        val_interval=10,
    ).run()
    return folder


def test_the_chain_learns_one_scan_by_heart(overfitted):
    metrics = json.loads((overfitted / "eval" / "metrics.json").read_text())
    assert metrics["best_val_mean_dice"] >= 0.95


def segment(trained: Path, bundle: Path, scan: Path, output_dir: Path, settings: dict) -> tuple:
    create_workflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        bundle_root=str(trained),
        dataset_dir=str(scan),
        output_dir=str(output_dir),
        spacing=settings["spacing"],
    ).run()
    (path,) = output_dir.glob("*.nii.gz")
    return nib.load(path), series_of(scan) if scan.is_dir() else nib.load(scan)


def series_of(folder: Path) -> nib.Nifti1Image:
    """A DICOM series as ITK reads it."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return nib.Nifti1Image(sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine)


@pytest.mark.parametrize("name", ["ts_ct.nii.gz", "crlm_ct_1006.nii.gz", "ts_ct_dicom"])
def test_the_mask_lies_on_the_scans_grid(overfitted, samples, tmp_path, name):
    mask, scan = segment(overfitted, BUNDLE, samples / name, tmp_path, SETTINGS)
    assert mask.shape == tuple(scan.shape)
    assert np.allclose(mask.affine, scan.affine, atol=1e-3)
    # What a network that knows one scan by heart finds in another is chance; in its own it must
    # find the liver.
    if name == "ts_ct.nii.gz":
        found = np.asarray(mask.dataobj).astype(bool)
        liver = np.asarray(nib.load(samples / "ts_ct_organs.nii.gz").dataobj) == 5
        assert 2 * (found & liver).sum() / (found.sum() + liver.sum()) >= 0.9


ORGANS = {"background": None, "liver": [5], "right_kidney": [2], "left_kidney": [3], "spleen": [1]}
MR = {"spacing": [3.0, 3.0, -1], "spatial_size": [112, 96], "classes": ORGANS}


@pytest.fixture(scope="module")
def overfitted_mr(tmp_path_factory) -> Path:
    """The same for four organs in MRI."""
    return overfit(tmp_path_factory.mktemp("overfit_mr"), ABDOMEN, "ts_mr", MR, max_epochs=20)


def test_four_organs_in_mr_are_learned_by_heart(overfitted_mr):
    metrics = json.loads((overfitted_mr / "eval" / "metrics.json").read_text())
    assert metrics["best_val_mean_dice"] >= 0.85


def test_the_mr_mask_lies_on_the_grid_of_another_scan(overfitted_mr, samples, tmp_path):
    mask, scan = segment(overfitted_mr, ABDOMEN, samples / "cmb_mr_t2_visit1.nii.gz", tmp_path, MR)
    assert mask.shape == tuple(scan.shape)
    assert np.allclose(mask.affine, scan.affine, atol=1e-3)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3, 4}


def test_the_saved_model_is_the_one_that_was_validated(overfitted):
    network = torch.nn.Module()
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_weights(network, overfitted / "models" / "model.pt")
