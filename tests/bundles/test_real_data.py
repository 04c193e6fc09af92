"""The bundle on real scans. What comes out says that the chain works on real input, and nothing about accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLE
from monai.bundle import create_workflow
from monai.transforms import LoadImage

from liverseg.networks import load_weights

pytestmark = pytest.mark.real_data

CLASSES = {"background": None, "liver": [5]}
SETTINGS = {"spacing": [2.0, 2.0, -1], "spatial_size": [192, 160], "classes": CLASSES}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory) -> Path:
    """A training on one scan, validated on the same: nothing but learning by heart."""
    samples = Path(__file__).resolve().parents[3] / "shared" / "samples"
    if not samples.is_dir():
        pytest.skip(f"the real scans are not there: {samples}")
    folder = tmp_path_factory.mktemp("overfit")
    item = {"image": str(samples / "ts_ct.nii.gz"), "label": str(samples / "ts_ct_organs.nii.gz")}
    validation, training = ({**item, "patient": name, "fold": n} for n, name in enumerate(("validation", "training")))
    # Eight times the same scan: an epoch of eight steps, so that writing checkpoints takes no time.
    (folder / "dataset.json").write_text(json.dumps({"training": [validation, *[training] * 8]}))
    create_workflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        workflow_type="train",
        bundle_root=str(folder),
        dataset_dir=str(folder),
        **SETTINGS,
        batch_size=1,
        slices_per_volume=6,
        foreground_ratio=0.8,
        max_epochs=30,
        val_interval=10,
    ).run()
    return folder


def test_the_chain_learns_one_scan_by_heart(overfitted):
    metrics = json.loads((overfitted / "eval" / "metrics.json").read_text())
    assert metrics["best_val_mean_dice"] >= 0.95


@pytest.mark.parametrize("name", ["ts_ct.nii.gz", "crlm_ct_1006.nii.gz", "ts_ct_dicom"])
def test_the_mask_lies_on_the_scans_grid(overfitted, samples, tmp_path, name):
    create_workflow(
        config_file=str(BUNDLE / "configs" / "inference.json"),
        workflow_type="infer",
        bundle_root=str(overfitted),
        dataset_dir=str(samples / name),
        output_dir=str(tmp_path),
        spacing=SETTINGS["spacing"],
    ).run()
    (path,) = tmp_path.glob("*_liver.nii.gz")
    mask, scan = nib.load(path), LoadImage()(samples / name)
    assert mask.shape == tuple(scan.shape)
    assert np.allclose(mask.affine, scan.affine, atol=1e-3)
    # What a network that knows one scan by heart finds in another is chance; in its own it must find the liver.
    if name == "ts_ct.nii.gz":
        found = np.asarray(mask.dataobj).astype(bool)
        liver = np.asarray(nib.load(samples / "ts_ct_organs.nii.gz").dataobj) == 5
        assert 2 * (found & liver).sum() / (found.sum() + liver.sum()) >= 0.9


def test_the_saved_model_is_the_one_that_was_validated(overfitted):
    network = torch.nn.Module()
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_weights(network, overfitted / "models" / "model.pt")
