"""One network per organ, merged by an overlay over the bundle's own configs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import BUNDLE, SHORT
from monai.bundle import create_workflow

from liverseg.errors import message
from liverseg.networks import DeepLabV3Plus

ABDOMEN = BUNDLE.parent / "deeplabv3_abdomen_mr"
OVERLAY = json.loads((ABDOMEN / "configs" / "uniclass.json").read_text())
ORGANS = list(OVERLAY["organ_networks"]["networks"])
SETTINGS = {
    "spacing": SHORT["spacing"],
    "amp": False,
    "modality": "ct",
    "postprocessing": "@postprocessings#none",
}


def slices(dataset: Path) -> torch.Tensor:
    """Return the test scan as the network sees it, (D, 1, H, W); nothing is resampled."""
    scan = torch.tensor(np.asarray(nib.load(dataset / "volume-4.nii").dataobj), dtype=torch.float32)
    return ((scan + 160) / 400).clamp(0, 1).permute(2, 0, 1)[:, None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, dataset) -> Path:
    """A copy of the bundle with the overlay and a model per organ, of random weights."""
    ignore = shutil.ignore_patterns("models", "eval", "output")
    folder = shutil.copytree(
        ABDOMEN, tmp_path_factory.mktemp("uniclass") / ABDOMEN.name, ignore=ignore
    )
    for seed, name in enumerate(ORGANS):
        torch.manual_seed(seed)
        network = DeepLabV3Plus().eval()
        with torch.no_grad():
            logits = network(slices(dataset))
            # About 40 % of the voxels, in the places that the random weights choose.
            network.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).quantile(0.6)
        (folder / "models" / name).mkdir(parents=True)
        torch.save(network.state_dict(), folder / "models" / name / "model.pt")
    return folder


@pytest.fixture(scope="module")
def merged_by_hand(bundle, dataset) -> np.ndarray:
    """Return the organ of highest probability above one half, of all networks, (H, W, D)."""
    probabilities = []
    for name in ORGANS:
        network = DeepLabV3Plus().eval()
        network.load_state_dict(
            torch.load(bundle / "models" / name / "model.pt", weights_only=True)
        )
        with torch.no_grad():
            probabilities.append(network(slices(dataset)).double().softmax(1)[:, 1].numpy())
    p = np.stack(probabilities)
    mask = np.where(p.max(0) > 0.5, p.argmax(0) + 1, 0).transpose(1, 2, 0)
    assert min(np.bincount(mask.ravel(), minlength=5)) > mask.size / 50
    assert ((p > 0.5).sum(0) >= 2).any()
    return mask


def run(bundle: Path, dataset: Path, output_dir: Path, *names: str, **settings) -> None:
    create_workflow(
        config_file=[str(bundle / "configs" / f"{name}.json") for name in (*names, "uniclass")],
        workflow_type="infer" if names[0] == "inference" else "train",
        bundle_root=str(bundle),
        dataset_dir=str(dataset),
        output_dir=str(output_dir),
        **{**SETTINGS, **settings},
    ).run()


def test_inference_gives_the_merge_of_the_organs_own_networks(
    bundle, dataset, merged_by_hand, tmp_path
):
    run(bundle, dataset, tmp_path, "inference")
    mask = np.asarray(nib.load(tmp_path / "volume-4_organs.nii.gz").dataobj)
    assert mask.shape == merged_by_hand.shape
    # Convolutions of other batches round otherwise, which may turn a tie.
    assert (mask != merged_by_hand).mean() < 1e-3


def test_evaluation_measures_the_merged_mask(bundle, dataset, merged_by_hand, tmp_path):
    run(bundle, dataset, tmp_path, "train", "evaluate")
    with (tmp_path / "cases.csv").open(newline="") as file:
        found = {row["class"]: float(row["dice"]) for row in csv.DictReader(file)}
    label = np.asarray(nib.load(dataset / "segmentation-4.nii").dataobj)
    for value, name in enumerate(ORGANS, start=1):
        predicted, reference = merged_by_hand == value, label == value
        dice = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
        assert found[name] == pytest.approx(dice, abs=2e-3)


def test_models_are_given_by_organ_and_a_missing_one_is_named(
    bundle, dataset, merged_by_hand, tmp_path
):
    models = {
        name: str(shutil.copy(bundle / "models" / name / "model.pt", tmp_path / name))
        for name in ORGANS
    }
    swapped = {**models, "liver": models["spleen"], "spleen": models["liver"]}
    run(bundle, dataset, tmp_path, "inference", organ_models=swapped)
    mask = np.asarray(nib.load(tmp_path / "volume-4_organs.nii.gz").dataobj)
    assert (mask != np.array([0, 4, 2, 3, 1])[merged_by_hand]).mean() < 1e-3
    with pytest.raises(Exception) as error:
        run(bundle, dataset, tmp_path, "inference", organ_models={"liver": models["liver"]})
    assert f"found weights for liver, expected {', '.join(ORGANS)}" in (message(error.value) or "")


def test_the_organs_stand_in_the_order_of_the_classes():
    classes = json.loads((ABDOMEN / "configs" / "train.json").read_text())["classes"]
    assert ["background", *ORGANS] == list(classes)
