"""unet3d_abdomen on real scans: that the chain works on real input, and nothing about accuracy."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import BUNDLE, copy_files
from monai.bundle import ConfigParser, create_workflow

from liverseg.data import count_voxels

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

CONFIGS = BUNDLE.parent / "unet3d_abdomen" / "configs"
# Coarse and narrow: some steps in seconds.
SETTINGS = {"spacing": [6.0, 6.0, 6.0], "spatial_size": [32, 32, 32], "networks#paper#width": 8}
# TotalSegmentator's values of the organs, in the order of the classes.
VALUES = {
    "artery": 52,
    "portal_vein": 64,
    "liver": 5,
    "spleen": 1,
    "stomach": 6,
    "gallbladder": 4,
    "pancreas": 7,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A training on one scan, validated on the same."""
    samples = Path(__file__).resolve().parents[3] / "shared" / "samples"
    if not samples.is_dir():
        pytest.skip(f"the real scans are not there: {samples}")
    folder = tmp_path_factory.mktemp("abdomen")
    item = {"image": str(samples / "ts_ct.nii.gz"), "label": str(samples / "ts_ct_organs.nii.gz")}
    copies = {
        name: {**copy_files(item, folder / name), "patient": name}
        for name in ("validation", "test")
    }
    items = [{**copies["validation"], "fold": 0}, {**item, "fold": 1}]
    (folder / "dataset.json").write_text(json.dumps({"training": items, "test": [copies["test"]]}))
    create_workflow(
        config_file=str(CONFIGS / "train.json"),
        workflow_type="train",
        bundle_root=str(folder),
        dataset_dir=str(folder),
        label_map="totalsegmentator",
        loss="@losses#dice_ce",
        # Calm enough for any processor and seed: at 0.01 some end in a network that finds nothing.
        learning_rate=0.003,
        max_iterations=180,
        iterations_per_epoch=60,
        val_interval=3,
        **SETTINGS,
    ).run()
    return folder


def test_some_steps_on_totalsegmentators_labels_find_the_liver(trained):
    with (trained / "eval" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["60", "120", "180"]
    assert float(rows[-1]["loss"]) < 0.9 * float(rows[0]["loss"])
    create_workflow(
        config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")],
        workflow_type="train",
        bundle_root=str(trained),
        dataset_dir=str(trained),
        label_map="totalsegmentator",
        **SETTINGS,
    ).run()
    with (trained / "eval" / "cases.csv").open(newline="") as file:
        dice = {row["class"]: float(row["dice"]) for row in csv.DictReader(file)}
    assert list(dice) == list(VALUES)
    assert dice["liver"] > 0.5


def test_totalsegmentators_values_are_counted_by_name(samples):
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    data = [{"label": str(samples / "ts_ct_organs.nii.gz")}]
    counts = count_voxels(data, parser.get_parsed_content("label_maps")["totalsegmentator"])
    labels = np.asarray(nib.load(data[0]["label"]).dataobj)
    assert counts[1:].tolist() == [(labels == value).sum() for value in VALUES.values()]
    assert counts.sum() == labels.size


@pytest.mark.parametrize("name", ["crlm_ct_1004", "crlm_ct_1006", "ts_ct_dicom"])
def test_masks_lie_on_the_grid_of_other_scans(trained, samples, tmp_path, name):
    scan = samples / f"{name}.nii.gz" if name.startswith("crlm") else samples / name
    create_workflow(
        config_file=str(CONFIGS / "inference.json"),
        workflow_type="infer",
        bundle_root=str(trained),
        dataset_dir=str(scan),
        output_dir=str(tmp_path),
        **SETTINGS,
    ).run()
    (path,) = tmp_path.glob("*_organs.nii.gz")
    mask = nib.load(path)
    if name.startswith("crlm"):
        assert mask.shape == nib.load(scan).shape
        assert np.allclose(mask.affine, nib.load(scan).affine, atol=1e-3)
    else:
        assert mask.shape == (512, 512, 20)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) <= set(range(8))
