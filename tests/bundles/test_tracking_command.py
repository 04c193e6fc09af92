"""`--tracking mlflow` as a user types it."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from helpers.bundle_runs import BUNDLE, SHORT, monai_bundle
from mlflow import MlflowClient
from PIL import Image

TRAIN = BUNDLE.parent / "unet_liver" / "configs" / "train.json"
# Python runs this before anything else, and it notes each attempt to reach the network.
WATCH = """
import sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open("{folder}/attempts", "a") as file:
            print(event, arguments, file=file)
sys.addaudithook(note)
open("{folder}/watching", "a").close()
"""


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """A folder whose file `attempts` lists every attempt of the commands to reach the network."""
    folder = tmp_path / "watch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH.format(folder=folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_a_run_says_what_was_trained_and_how_without_a_network(
    dataset, tmp_path, watch, monkeypatch
):
    # MLflow sends nothing under pytest and on servers for CI, whatever it is told.
    for name in (
        "PYTEST_CURRENT_TEST",
        "CI",
        "GITHUB_ACTIONS",
        "MLFLOW_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    ):
        monkeypatch.delenv(name, raising=False)
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=me",
        "-c",
        "user.email=me@here",
        "-c",
        "commit.gpgsign=false",
    ]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "my work"]):
        subprocess.check_call([*git, *command])
    settings = {
        **SHORT,
        "network_def#first_filters": 8,
        "network_def#dropout": 0.25,
        "loss": "@losses#dice",
    }
    run = monai_bundle(
        *("run", "training", "--config_file", TRAIN, "--tracking", "mlflow"),
        cwd=tmp_path,
        **settings,
        bundle_root=TRAIN.parents[1],
        dataset_dir=dataset,
        output_dir="my eval",
        ckpt_dir="models",
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1])["epochs"] == 2
    assert (watch / "watching").exists()
    assert not (watch / "attempts").exists(), (watch / "attempts").read_text()

    output = tmp_path / "my eval"
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("unet_liver").experiment_id])
    assert found.info.status == "FINISHED"
    assert [
        metric.step for metric in client.get_metric_history(found.info.run_id, "val_mean_dice")
    ] == [1, 2]
    params = {
        "max_epochs": "2",
        "network_def.dropout": "0.25",
        "loss": "@losses::dice",
        "spacing": "[6.0, 6.0, -1]",
    }
    assert params.items() <= found.data.params.items()
    assert "network_def.first_filters" in found.data.params
    assert not {"tracking_uri", "is_not_rank0", "device", "training"} & set(found.data.params)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    bundle_head = subprocess.check_output(
        ["git", "-C", TRAIN.parent, "rev-parse", "HEAD"], text=True
    ).strip()
    assert found.data.tags["mlflow.source.git.commit"] == head
    assert found.data.tags["bundle.git.commit"].removesuffix("-dirty") == bundle_head
    assert "run training --config_file" in found.data.tags["mlflow.source.name"]
    artifacts = output / "mlartifacts" / found.info.run_id / "artifacts"
    (config,) = (artifacts / "config").iterdir()
    content = json.loads(config.read_text())
    assert (content["network_def"]["dropout"], content["loss"]) == (0.25, "@losses::dice")
    assert (artifacts / "model.pt").read_bytes() == (tmp_path / "models" / "model.pt").read_bytes()
    pictures = sorted(artifacts.glob("overlays/*/*.png"))
    assert pictures
    assert all(np.unique(Image.open(picture)).size > 50 for picture in pictures)
