"""Each bundle trains, evaluates and infers with its own configs."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLE, SHORT
from monai.bundle import create_workflow

# The full FCN-8s has 134 million parameters.
SMALL = {"networks#fcn8s#fc_channels": 64}
RUNS = {
    "unet_liver": {"modality": "mr"},
    "unet_liver vgg16": {"network_def#encoder": "vgg16"},
    "fcn_liver": SMALL,
    "fcn_liver simple": {"network_def": "@networks#simple"},
    "deeplabv3_abdomen_mr": {},
    "deeplabv3_abdomen_mr per_organ": {"loss": "@losses#per_organ"},
}


@pytest.mark.parametrize("name", RUNS)
def test_trains_evaluates_and_infers(name, dataset, tmp_path):
    folder = BUNDLE.parent / name.split()[0] / "configs"
    settings = {**RUNS[name], "bundle_root": str(tmp_path), "dataset_dir": str(dataset), "spacing": SHORT["spacing"]}
    short = {"max_epochs": 1, "val_interval": 1, "spatial_size": SHORT["spatial_size"]}

    def run(files, kind, **more):
        config = [str(folder / file) for file in files]
        create_workflow(config_file=config, workflow_type=kind, **settings, **more).run()

    run(["train.json"], "train", **short)
    run(["train.json", "evaluate.json"], "train")
    settings.pop("loss", None)
    run(["inference.json"], "infer")
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    labels = json.loads((folder / "inference.json").read_text())["num_classes"]
    assert summary["number_of_cases"] == 1
    assert len(summary["cases"]) == labels - 1
    (path,) = (tmp_path / "output").glob("volume-4_*.nii.gz")
    mask, scan = nib.load(path), nib.load(dataset / "volume-4.nii")
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine)
    assert set(np.unique(mask.dataobj)) <= set(range(labels))
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True)
