"""The commands of the bundle's README, as a user types them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import BUNDLE, ROOT, SHORT, monai_bundle, options, torchrun, tracked_epochs
from helpers.waiting import SECONDS, wait_until

from liverseg.networks import DeepLabV3Plus, load_weights

TRAIN = str(BUNDLE / "configs" / "train.json")
EVALUATE = f"['{TRAIN}','{BUNDLE / 'configs' / 'evaluate.json'}']"
INFERENCE = str(BUNDLE / "configs" / "inference.json")


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_from_the_bundles_folder_ends_with_a_line_of_json(trained):
    summary = json.loads((trained / "training.log").read_text().splitlines()[-1])
    assert summary == json.loads((trained / "eval" / "metrics.json").read_text())
    assert summary["epochs"] == 2
    assert (
        summary["best_val_mean_dice"]
        == json.loads((trained / "models" / "model.json").read_text())["val_mean_dice"]
    )
    assert [row["epoch"] for row in history(trained / "eval")] == ["1", "2"]
    assert list((trained / "eval").glob("events.out.tfevents.*"))
    load_weights(DeepLabV3Plus(), trained / "models" / "model.pt")


def test_evaluating_from_elsewhere_writes_cases_and_summary(trained, dataset, tmp_path):
    run = monai_bundle(
        *("run", "evaluating", "--config_file", EVALUATE),
        cwd=tmp_path,
        bundle_root=trained,
        dataset_dir=dataset,
        output_dir=tmp_path / "out",
        spacing=SHORT["spacing"],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["case"]).name for row in rows if row["class"] == "liver"] == ["volume-4.nii"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())


def test_inference_from_elsewhere_writes_the_mask_on_the_scans_grid(trained, dataset, tmp_path):
    run = monai_bundle(
        *("run", "inference", "--config_file", INFERENCE),
        cwd=tmp_path,
        bundle_root=trained,
        dataset_dir=dataset,
        output_dir=tmp_path / "masks",
        spacing=SHORT["spacing"],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    mask, scan = (
        nib.load(tmp_path / "masks" / "volume-4_liver.nii.gz"),
        nib.load(dataset / "volume-4.nii"),
    )
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1}


def test_other_loss_optimiser_and_schedule_by_name(dataset, tmp_path):
    run = monai_bundle(
        *("run", "training", "--config_file", TRAIN),
        cwd=tmp_path,
        **{**SHORT, "max_epochs": 1},
        dataset_dir=dataset,
        ckpt_dir=tmp_path / "models",
        output_dir=tmp_path / "eval",
        loss="@losses#cross_entropy",
        optimizer="@optimizers#sgd",
        lr_scheduler="@lr_schedulers#paper_a",
        learning_rate=0.0005,
        in_channels=3,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)
    assert checkpoint["optimizer"]["param_groups"][0]["momentum"] == 0.9
    # The paper's 2874 iterations in epochs, which are one iteration of these two scans.
    assert checkpoint["lr_scheduler"]["step_size"] == 2874
    assert checkpoint["model"]["encoder.conv1.weight"].shape[1] == 3


def test_a_killed_training_resumes_where_it_stopped(dataset, tmp_path):
    settings = {**SHORT, "max_epochs": 40, "dataset_dir": dataset}
    folders = {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval"}
    typed = ["run", "training", "--config_file", TRAIN, "--tracking", "mlflow"]
    process = subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", *typed, *options(**settings, **folders)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Written after the checkpoint.
    wait_until(lambda: (tmp_path / "eval" / "history.csv").is_file() or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(SECONDS)
    done = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)["epoch"]
    assert done < 40
    settings["max_epochs"] = done + 2
    run = monai_bundle(*typed, cwd=tmp_path, **settings, **folders, resume=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"Resuming after epoch {done}" in run.stdout
    assert json.loads(run.stdout.splitlines()[-1])["epochs"] == done + 2
    epochs = [int(row["epoch"]) for row in history(tmp_path / "eval")]
    assert epochs == list(range(1, done + 3))
    # It goes on in the run of the training that was killed, which may not have logged its last
    # epoch.
    ((_, tracked),) = tracked_epochs(tmp_path / "eval" / "mlflow.db")
    assert tracked == epochs


def test_torchscript_export_computes_the_same(trained, tmp_path):
    run = monai_bundle("ckpt_export", "--config_file", INFERENCE, cwd=tmp_path, bundle_root=trained)
    assert run.returncode == 0, run.stderr[-3000:]
    network = load_weights(DeepLabV3Plus(), trained / "models" / "model.pt").eval()
    exported = torch.jit.load(trained / "models" / "model.ts").eval()
    x = torch.rand(2, 1, 37, 50)
    with torch.no_grad():
        assert torch.allclose(exported(x), network(x), atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_together(dataset, tmp_path):
    run = torchrun(
        *(
            "run",
            "training",
            "--config_file",
            f"['{TRAIN}','{BUNDLE / 'configs' / 'multi_gpu_train.json'}']",
        ),
        cwd=tmp_path,
        **SHORT,
        dataset_dir=dataset,
        ckpt_dir=tmp_path / "models",
        output_dir=tmp_path / "eval",
        batch_size=1,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    # Two cases train: one each, so an epoch is one step.
    assert [row["iteration"] for row in history(tmp_path / "eval")] == ["1", "2"]
    load_weights(DeepLabV3Plus(), tmp_path / "models" / "model.pt")
