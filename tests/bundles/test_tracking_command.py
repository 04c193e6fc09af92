"""`--tracking mlflow` as a user types it."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from helpers.bundle_runs import BUNDLE, SHORT, monai_bundle
from helpers.waiting import SECONDS
from mlflow import MlflowClient
from PIL import Image

TRAIN = BUNDLE.parent / "unet_liver" / "configs" / "train.json"
OPTIONS = ("-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false")
SILENT = (
    "PYTEST_CURRENT_TEST",
    "CI",
    "GITHUB_ACTIONS",
    "MLFLOW_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
)
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


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """A repository with a tracked training, and in `watch/attempts` its tries of the network."""
    folder = tmp_path_factory.mktemp("tracked")
    watch = folder / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH.format(folder=watch))
    git(folder, "init", "-q")
    git(folder, *OPTIONS, "commit", "-q", "--allow-empty", "-m", "my work")
    settings = {
        **SHORT,
        "network_def#first_filters": 8,
        "network_def#dropout": 0.25,
        "loss": "@losses#dice",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(watch))
        # MLflow sends nothing under pytest and on servers for CI, whatever it is told.
        for name in SILENT:
            patch.delenv(name, raising=False)
        run = monai_bundle(
            *("run", "training", "--config_file", TRAIN, "--tracking", "mlflow"),
            cwd=folder,
            **settings,
            bundle_root=TRAIN.parents[1],
            dataset_dir=dataset,
            output_dir="my eval",
            ckpt_dir="models",
        )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1])["epochs"] == 2
    return folder


@pytest.fixture(scope="module")
def client(folder):
    return MlflowClient(f"sqlite:///{folder / 'my eval' / 'mlflow.db'}")


@pytest.fixture(scope="module")
def found(client):
    experiment = client.get_experiment_by_name("unet_liver")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def git(folder, *arguments):
    command = ["git", "-C", folder, *arguments]
    return subprocess.check_output(command, text=True, timeout=SECONDS).strip()


def test_no_network_is_tried(folder):
    assert (folder / "watch" / "watching").exists()
    attempts = folder / "watch" / "attempts"
    assert not attempts.exists(), attempts.read_text()


def test_a_run_is_finished_with_its_metrics(client, found):
    assert found.info.status == "FINISHED"
    metrics = client.get_metric_history(found.info.run_id, "val_mean_dice")
    assert [metric.step for metric in metrics] == [1, 2]


def test_a_run_has_the_settings_of_the_training_and_none_of_the_tracking(found):
    params = {
        "max_epochs": "2",
        "network_def.dropout": "0.25",
        "loss": "@losses::dice",
        "spacing": "[6.0, 6.0, -1]",
    }
    assert params.items() <= found.data.params.items()
    assert "network_def.first_filters" in found.data.params
    assert not {"tracking_uri", "is_not_rank0", "device", "training"} & set(found.data.params)


def test_a_run_has_the_commits_and_the_command(folder, found):
    tags = found.data.tags
    assert tags["mlflow.source.git.commit"] == git(folder, "rev-parse", "HEAD")
    bundle_head = git(TRAIN.parent, "rev-parse", "HEAD")
    assert tags["bundle.git.commit"].removesuffix("-dirty") == bundle_head
    assert "run training --config_file" in tags["mlflow.source.name"]


def test_a_run_has_the_config_the_model_and_pictures(folder, found):
    artifacts = folder / "my eval" / "mlartifacts" / found.info.run_id / "artifacts"
    (config,) = (artifacts / "config").iterdir()
    content = json.loads(config.read_text())
    assert (content["network_def"]["dropout"], content["loss"]) == (0.25, "@losses::dice")
    assert (artifacts / "model.pt").read_bytes() == (folder / "models" / "model.pt").read_bytes()
    pictures = sorted(artifacts.glob("overlays/*/*.png"))
    assert pictures
    assert all(np.unique(Image.open(picture)).size > 50 for picture in pictures)
