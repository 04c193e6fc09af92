"""Networks of several folds vote, merged by an overlay over the bundle's own configs."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import BUNDLE, SHORT
from monai.bundle import create_workflow

from liverseg.errors import message
from liverseg.networks import SimpleNet

CONFIGS = BUNDLE.parent / "fcn_liver" / "configs"
MEMBERS = ("a", "b", "c")


def run(folder, dataset, *names, **settings):
    create_workflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in (*names, "ensemble")],
        workflow_type="infer" if names[0] == "inference" else "train",
        **{"bundle_root": str(folder), "dataset_dir": str(dataset), "amp": False},
        **{"spacing": SHORT["spacing"], "network_def": "@networks#simple"},
        **{"postprocessing": "@postprocessings#none"},
        **{"members": {name: str(folder / f"{name}.pt") for name in MEMBERS}, **settings},
    ).run()


@pytest.fixture(scope="module")
def voted(tmp_path_factory, dataset):
    """Return the folder of three models, and where their mean probability of the liver is ½."""
    folder = tmp_path_factory.mktemp("ensemble")
    scan = torch.tensor(np.asarray(nib.load(dataset / "volume-4.nii").dataobj), dtype=torch.float32)
    slices = ((scan + 160) / 400).clamp(0, 1).permute(2, 0, 1)[:, None]
    probabilities = []
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        network = SimpleNet().eval()
        with torch.no_grad():
            # The last layer, so that each member finds about half of the voxels.
            last = [module for module in network.modules() if hasattr(module, "bias")][-1]
            logits = network(slices)
            last.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
            probabilities.append(network(slices).double().softmax(1)[:, 1].numpy())
        torch.save(network.state_dict(), folder / f"{name}.pt")
    mask = (np.mean(probabilities, axis=0) > 0.5).transpose(1, 2, 0)
    assert all(((p > 0.5).transpose(1, 2, 0) != mask).mean() > 0.02 for p in probabilities)
    return folder, mask


def test_inference_gives_the_vote_of_all_members(voted, dataset):
    folder, expected = voted
    run(folder, dataset, "inference")
    mask = np.asarray(nib.load(folder / "output" / "volume-4_liver.nii.gz").dataobj)
    assert (mask != expected).mean() < 1e-3


def test_evaluation_measures_the_vote_and_its_roc(voted, dataset):
    folder, expected = voted
    run(folder, dataset, "train", "evaluate", roc=True)
    with (folder / "eval" / "cases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    label = np.asarray(nib.load(dataset / "segmentation-4.nii").dataobj) > 0
    dice = 2 * (expected & label).sum() / (expected.sum() + label.sum())
    assert float(row["dice"]) == pytest.approx(dice, abs=2e-3)
    classes = json.loads((folder / "eval" / "summary.json").read_text())["pooled"]["classes"]
    # Of two classes, one is the other's complement.
    assert classes["liver"]["auc"] == pytest.approx(classes["background"]["auc"], abs=1e-9)


def test_a_member_without_weights_is_named(voted, dataset):
    folder, _ = voted
    with pytest.raises(Exception) as error:
        run(folder, dataset, "inference", members={"a": str(folder / "missing.pt")})
    assert "missing.pt" in (message(error.value) or "")
