"""The bundles train, evaluate and infer with their other networks, losses and stages.

What their READMEs name first is run in `test_archives.py`.
"""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import (
    ABDOMEN,
    BUNDLE,
    SHORT,
    known,
    monai_bundle,
    torchrun,
    tracked_epochs,
)
from monai.bundle import create_workflow

from liverseg.networks import PreactivationUNet3D, UNet, load_weights

# A small training of bundles with two stages, and the network of each.
STAGED = {
    "mixed_unet_lits": {
        "spatial_size": [32, 32],
        "slices_per_volume": 1,
        "stage_network#first_filters": 8,
    },
    "unet3d_liver": {
        **{
            "spatial_size": [28, 28, 28],
            "lesion_spatial_size": [20, 20, 20],
            "lesion_spacing": [6.0, 6.0, 10.0],
        },
        **{
            "stage_networks#liver#width": 4,
            "stage_networks#lesion#width": 4,
            "patches_per_volume": 1,
        },
    },
}
LESION_NETWORKS = {
    "mixed_unet_lits": lambda: UNet(pooling="mixed", first_filters=8),
    "unet3d_liver": lambda: PreactivationUNet3D(width=4, valid=True),
}
# The dataset's liver and lesion in the place of two of the seven organs.
VOLUMES = {
    "classes": {name: [value] if value < 3 else [] for value, name in enumerate(ABDOMEN)},
    "spacing": [12, 12, 12],
    "spatial_size": [16, 16, 16],
    "iterations_per_epoch": 1,
    "networks#paper#width": 4,
    "networks#quality#init_filters": 4,
}
ORGANS = {
    "classes": {
        "background": [0],
        "liver": [1],
        "right_kidney": [2],
        "left_kidney": [],
        "spleen": [],
    }
}
RUNS = {
    "unet_liver vgg16": {"network_def#encoder": "vgg16"},
    "fcn_liver simple": {"network_def": "@networks#simple"},
    "deeplabv3_abdomen_mr per_organ": {**ORGANS, "loss": "@losses#per_organ"},
    "unet3d_abdomen quality": {**VOLUMES, "tier": "quality", "loss": "@losses#dice_square"},
}


@pytest.mark.parametrize("name", RUNS)
def test_trains_evaluates_and_infers(name, dataset, tmp_path):
    folder = BUNDLE.parent / name.split()[0] / "configs"
    settings = {
        "spacing": SHORT["spacing"],
        **RUNS[name],
        "bundle_root": str(tmp_path),
        "dataset_dir": str(dataset),
    }
    short = {"spatial_size": SHORT["spatial_size"], **settings, "max_epochs": 1, "val_interval": 1}

    def run(files, kind, **more):
        config = [str(folder / file) for file in files]
        create_workflow(config_file=config, workflow_type=kind, **{**settings, **more}).run()

    run(["train.json"], "train", **short)
    run(["train.json", "evaluate.json"], "train")
    settings = known(folder / "inference.json", settings)
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
@pytest.mark.parametrize("name", STAGED)
def test_liver_and_lesion_networks_are_trained_one_after_the_other(name, dataset, tmp_path):
    config = BUNDLE.parent / name / "configs" / "train.json"
    settings = {"bundle_root": tmp_path, "dataset_dir": dataset, "batch_size": 2, **STAGED[name]}
    settings |= {"resume": True, "tracking": "mlflow"}

    def train(run_id, **more):
        found = monai_bundle(
            "run", run_id, "--config_file", config, cwd=tmp_path, **settings, **more
        )
        assert found.returncode == 0, found.stderr[-3000:]
        return found.stdout

    # The liver is done, the lesions come to the first of two epochs; `--resume true` begins what is
    # not begun.
    train("training", stage="liver", max_epochs=2)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["liver"]
    train("run", stage="lesion", max_epochs=1)
    done = [tmp_path / "models" / "liver" / name for name in ("model.pt", "checkpoint.pt")]
    before = [path.stat().st_mtime_ns for path in done]
    shown = train("training", max_epochs=2)
    assert [path.stat().st_mtime_ns for path in done] == before
    assert "Resuming after epoch 1 from" in shown
    for stage in ("liver", "lesion"):
        lines = (tmp_path / "eval" / stage / "history.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in lines] == ["epoch", "1", "2"]
        assert json.loads((tmp_path / "eval" / stage / "metrics.json").read_text())["epochs"] == 2
    assert tracked_epochs(tmp_path / "eval" / "mlflow.db") == [
        ("liver", [1, 2]),
        ("lesion", [1, 2]),
    ]

    # Evaluation, inference and export take the file of both.
    merged = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    for stage in ("liver", "lesion"):
        state = torch.load(tmp_path / "models" / stage / "model.pt", weights_only=True)
        assert all(torch.equal(value, merged.pop(f"{stage}.{key}")) for key, value in state.items())
    assert not merged


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGED)
def test_two_processes_train_one_of_the_stages(name, dataset, tmp_path):
    files = [
        str(BUNDLE.parent / name / "configs" / file)
        for file in ("train.json", "multi_gpu_train.json")
    ]
    settings = {"bundle_root": tmp_path, "dataset_dir": dataset, **STAGED[name]}
    settings |= {"max_epochs": 1, "batch_size": 1, "tracking": "mlflow"}
    found = torchrun(
        "run", "run", "--config_file", str(files), "--stage", "lesion", cwd=tmp_path, **settings
    )
    assert found.returncode == 0, found.stderr[-3000:]
    # Two cases train: one each, so an epoch is one step.
    assert (
        (tmp_path / "eval" / "lesion" / "history.csv")
        .read_text()
        .splitlines()[-1]
        .startswith("1,1,")
    )
    assert tracked_epochs(tmp_path / "eval" / "mlflow.db") == [("lesion", [1])]
    load_weights(LESION_NETWORKS[name](), tmp_path / "models" / "lesion" / "model.pt")


class Cascade:
    """Short runs of `cascade_lits` in one folder, over the coronal plane."""

    configs = BUNDLE.parent / "cascade_lits" / "configs"

    def __init__(self, folder, dataset):
        self.folder = folder
        self.dataset = dataset
        self.short = {
            "localise_size": [48, 48],
            "spatial_size": [48, 48],
            "max_epochs": 1,
            "slices_per_volume": 2,
        }
        self.settings = {
            **{"bundle_root": str(folder), "dataset_dir": str(dataset)},
            **{"localise_network#first_filters": 8, "tune_network#first_filters": 4},
            **{"localise_spacing": [6.0, 6.0, -1.0], "spacing": [6.0, 6.0, 6.0]},
        }

    def run(self, files, kind, **more):
        config = [str(self.configs / file) for file in files]
        create_workflow(config_file=config, workflow_type=kind, **self.settings, **more).run()

    def chain(self, run_id, *typed, **more):
        typed = ("run", run_id, "--config_file", self.configs / "train.json", *typed)
        settings = {**self.settings, **self.short, **more, "tracking": "mlflow"}
        found = monai_bundle(*typed, cwd=self.folder, **settings)
        assert found.returncode == 0, found.stderr[-3000:]


@pytest.fixture(scope="module")
def cascade(dataset, tmp_path_factory):
    """Trained: lesion stages and liver rounds as real chains, the rest in this process."""
    cascade = Cascade(tmp_path_factory.mktemp("cascade"), dataset)
    for stage in ("localise", "tune"):
        cascade.run(["train.json"], "train", **cascade.short, stage=stage, plane="coronal")
    cascade.chain("training", "--plane=coronal", "--target", "lesion")
    cascade.chain("iterate", "--target=liver", "--plane", "coronal", max_rounds=1, round_epochs=1)
    return cascade


@pytest.mark.slow
def test_cascade_is_trained_by_stages(cascade):
    models, results = cascade.folder / "models", cascade.folder / "eval"
    parts = [(target, part) for target in ("liver", "lesion") for part in ("localise", "coronal")]
    assert sorted(models.glob("*/*")) == sorted(models / target / part for target, part in parts)
    for target, part in parts:
        facts = json.loads((results / target / part / "metrics.json").read_text())
        assert facts["epochs"] == 1
        assert (models / target / part / "model.pt").is_file()
    # Four networks were not trained, so there is no file of all.
    assert not (models / "model.pt").exists()


@pytest.mark.slow
def test_cascade_keeps_its_best_round(cascade):
    part = cascade.folder / "models" / "liver" / "coronal"
    with (part / "rounds" / "rounds.csv").open(newline="") as file:
        metrics = {row["round"]: float(row["val_mean_dice"]) for row in csv.DictReader(file)}
    assert set(metrics) == {"0", "1"}
    best = part / "rounds" / max(metrics, key=metrics.get) / "model.pt"
    assert (part / "model.pt").read_bytes() == best.read_bytes()
    patches = {path.name for path in (part / "rounds" / "1" / "patches").iterdir()}
    assert patches == {"0.npz", "1.npz", "patches.json"}
    results = cascade.folder / "eval" / "liver" / "coronal" / "rounds" / "1"
    assert json.loads((results / "metrics.json").read_text())
    # The model of a round has been trained in it: it is not that of the round before.
    with (results / "history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]


@pytest.mark.slow
def test_cascade_tracks_each_stage_and_round_as_a_run(cascade):
    names = ("lesion/localise", "lesion/coronal", "liver/coronal/rounds/1")
    tracked = tracked_epochs(cascade.folder / "eval" / "mlflow.db")
    assert tracked == [(name, [1]) for name in names]


@pytest.mark.slow
def test_cascade_evaluates_and_gives_one_mask(cascade):
    cascade.run(["train.json", "evaluate.json"], "train", planes=["coronal"])
    summary = json.loads((cascade.folder / "eval" / "summary.json").read_text())
    assert summary["lesions"]["reference_lesions"] == 1
    cascade.run(["inference.json"], "infer", planes=["coronal"])
    mask = nib.load(cascade.folder / "output" / "volume-4_liver_lesion.nii.gz")
    scan = nib.load(cascade.dataset / "volume-4.nii")
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
