"""Each bundle trains, evaluates and infers with its own configs."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLE, SHORT, monai_bundle
from monai.bundle import create_workflow

# The full FCN-8s has 134 million parameters.
SMALL = {"networks#fcn8s#fc_channels": 64}
# The dataset's liver and lesion in the place of two of the seven organs.
ABDOMEN = ("background", "artery", "portal_vein", "liver", "spleen", "stomach", "gallbladder", "pancreas")
VOLUMES = {
    "classes": {name: [value] if value < 3 else [] for value, name in enumerate(ABDOMEN)},
    "spacing": [12, 12, 12],
    "spatial_size": [16, 16, 16],
    "iterations_per_epoch": 1,
    "networks#paper#width": 4,
    "networks#quality#init_filters": 4,
}
RUNS = {
    "unet_liver": {"modality": "mr"},
    "unet_liver vgg16": {"network_def#encoder": "vgg16"},
    "fcn_liver": SMALL,
    "fcn_liver simple": {"network_def": "@networks#simple"},
    "deeplabv3_abdomen_mr": {},
    "deeplabv3_abdomen_mr per_organ": {"loss": "@losses#per_organ"},
    "unet3d_abdomen": {**VOLUMES, "loss": "@losses#dice_square"},
    "unet3d_abdomen quality": {**VOLUMES, "tier": "quality"},
}


@pytest.mark.parametrize("name", RUNS)
def test_trains_evaluates_and_infers(name, dataset, tmp_path):
    folder = BUNDLE.parent / name.split()[0] / "configs"
    settings = {"spacing": SHORT["spacing"], **RUNS[name], "bundle_root": str(tmp_path), "dataset_dir": str(dataset)}
    short = {"spatial_size": SHORT["spatial_size"], **settings, "max_epochs": 1, "val_interval": 1}

    def run(files, kind, **more):
        config = [str(folder / file) for file in files]
        create_workflow(config_file=config, workflow_type=kind, **{**settings, **more}).run()

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


@pytest.mark.slow
def test_liver_and_lesion_networks_are_trained_one_after_the_other(dataset, tmp_path):
    configs = BUNDLE.parent / "mixed_unet_lits" / "configs"
    settings = {"bundle_root": tmp_path, "dataset_dir": dataset, "spatial_size": [32, 32]}
    short = {"max_epochs": 1, "batch_size": 2, "slices_per_volume": 1}

    def run(run_id, *files, **more):
        config = str([str(configs / file) for file in files])
        found = monai_bundle("run", run_id, "--config_file", config, cwd=tmp_path, **settings, **more)
        assert found.returncode == 0, found.stderr[-3000:]

    run("training", "train.json", **short)
    for stage in ("liver", "lesion"):
        assert json.loads((tmp_path / "eval" / stage / "metrics.json").read_text())["epochs"] == 1
    made = (tmp_path / "models" / "liver" / "checkpoint.pt").stat().st_mtime
    run("training", "train.json", **short, stage="lesion")
    assert (tmp_path / "models" / "liver" / "checkpoint.pt").stat().st_mtime == made
    run("evaluating", "train.json", "evaluate.json")
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["lesions"]["reference_lesions"] == 1
    run("inference", "inference.json")
    mask, scan = nib.load(tmp_path / "output" / "volume-4_liver_lesion.nii.gz"), nib.load(dataset / "volume-4.nii")
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
