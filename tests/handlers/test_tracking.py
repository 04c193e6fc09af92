from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_training import train
from helpers.waiting import SECONDS
from ignite.engine import Events
from mlflow import MlflowClient
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from liverseg.errors import InputError
from liverseg.handlers import Tracking
from liverseg.handlers.provenance import git_commit

CONFIG = {
    "imports": ["$import os"],
    "output_dir": "$@bundle_root + '/eval'",
    "spacing": [1.5, 1.5, -1],
    "loss": "@losses::dice_ce",
    "losses": {"dice_ce": {"_target_": "DiceCELoss"}},
    "max_epochs": 2,
    "tracking_uri": "https://me:secret@host",
    "training": "%run",
}
CASES = [np.ones((6, 4, 2), np.uint8)]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """An empty database; to make one takes longer than to train here."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def client(database, tmp_path) -> MlflowClient:
    """Reads what is tracked in the folder `out` of an own folder, whose name has a space."""
    (tmp_path / "my out").mkdir()
    return MlflowClient(f"sqlite:///{shutil.copy(database, tmp_path / 'my out')}")


def tracking(folder: Path, uri: str | None = None, **config) -> Tracking:
    path = folder / "config_1.json"
    path.write_text(json.dumps(CONFIG | config))
    # As MONAI gives it where output_dir is not an expression.
    written = f"{folder} + '/{path.name}'"
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    return Tracking(uri, config_path=written, **settings(folder))


def settings(folder: Path) -> dict:
    """What is no matter of the config, of a `Tracking` in one folder."""
    return {
        "experiment_name": "tries",
        "run_name": "first",
        "bundle_root": folder,
        "output_dir": folder,
        "ckpt_dir": folder,
    }


def runs(client: MlflowClient) -> list:
    return client.search_runs([client.get_experiment_by_name("tries").experiment_id])


def history(client: MlflowClient, run, name: str) -> list[tuple[int, float]]:
    return [
        (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)
    ]


def artifacts(client: MlflowClient, run, folder: str | None = None) -> list[str]:
    found = client.list_artifacts(run.info.run_id, folder)
    return [
        name
        for item in found
        for name in (artifacts(client, run, item.path) if item.is_dir else [item.path])
    ]


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_resumed_training_goes_on_in_its_run(client, tmp_path):
    folder = tmp_path / "my out"
    train(folder, [0.3, 0.2], CASES, tracking(folder))
    (first,) = runs(client)
    assert (first.info.run_name, first.info.status) == ("first", "FINISHED")
    # Neither expressions nor components, and not where it is tracked.
    assert first.data.params == {
        "spacing": "[1.5, 1.5, -1]",
        "loss": "@losses::dice_ce",
        "max_epochs": "2",
    }
    assert first.data.metrics["best_val_mean_dice"] == 0.3
    first_model = (folder / "model.pt").read_bytes()
    kept = folder / "mlartifacts" / first.info.run_id / "artifacts"
    assert (kept / "model.pt").read_bytes() == first_model

    train(folder, [0.3, 0.2, 0.5], CASES, tracking(folder, max_epochs=3, patience=7), resume=True)
    (run,) = runs(client)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert run.data.params == first.data.params | {"patience": "7"}
    assert history(client, run, "val_mean_dice") == [(1, 0.3), (2, 0.2), (3, 0.5)]
    assert [step for step, _ in history(client, run, "loss")] == [1, 2, 3]
    assert history(client, run, "learning_rate")[0][1] == pytest.approx(0.1)
    assert (run.data.metrics["best_val_mean_dice"], run.data.metrics["best_epoch"]) == (0.5, 3)
    assert sorted(artifacts(client, run)) == [
        *("config/config_1.json", "history.csv", "metrics.json", "model.json", "model.pt"),
        *("overlays/epoch_0001/case_1.png", "overlays/epoch_0003/case_1.png", "packages.txt"),
    ]
    assert sha256(kept / "model.pt") == sha256(folder / "model.pt") == run.data.tags["model.sha256"]
    assert (kept / "model.pt").read_bytes() != first_model
    assert Path(run.data.tags["model.path"]) == folder / "model.pt"
    assert f"numpy=={np.__version__}" in (kept / "packages.txt").read_text().splitlines()
    assert run.data.tags["version.monai"]

    train(folder, [0.1], CASES, tracking(folder))
    another, earlier = runs(client)
    assert earlier.info.run_id == run.info.run_id
    # The model of the training before is better, so it is not this one's.
    assert "model.sha256" not in another.data.tags
    assert "overlays/epoch_0001/case_1.png" in artifacts(client, another)
    assert not {"model.pt", "model.json"} & set(artifacts(client, another))


def test_the_weights_to_start_from_are_epoch_0(client, tmp_path):
    folder = tmp_path / "my out"
    train(folder, [0.3, 0.2], CASES, tracking(folder), start=0.4)
    (run,) = runs(client)
    assert history(client, run, "val_mean_dice") == [(0, 0.4), (1, 0.3), (2, 0.2)]
    assert [step for step, _ in history(client, run, "loss")] == [1, 2]
    assert (run.data.metrics["best_val_mean_dice"], run.data.metrics["best_epoch"]) == (0.4, 0)


class Breaks:
    """Fails at the end of the first epoch."""

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self):
        raise OSError("the disk is gone")


def test_a_training_that_fails_is_a_failed_run_with_its_metrics(client, tmp_path):
    folder = tmp_path / "my out"
    with pytest.raises(OSError, match="the disk is gone"):
        train(folder, [0.3, 0.2], CASES, tracking(folder), Breaks())
    (run,) = runs(client)
    assert run.info.status == "FAILED"
    assert history(client, run, "val_mean_dice") == [(1, 0.3)]
    assert run.data.tags["model.sha256"] == sha256(folder / "model.pt")


def test_what_a_killed_training_had_no_time_to_log_is_logged_when_it_is_resumed(client, tmp_path):
    folder = tmp_path / "my out"
    with pytest.raises(OSError, match="the disk is gone"):
        train(folder, [0.3, 0.2], CASES, Breaks(), tracking(folder))
    (run,) = runs(client)
    assert history(client, run, "loss") == []
    train(folder, [0.3, 0.2], CASES, tracking(folder), resume=True)
    (run,) = runs(client)
    assert history(client, run, "val_mean_dice") == [(1, 0.3), (2, 0.2)]
    assert "model.pt" in artifacts(client, run)
    assert run.data.tags["model.sha256"] == sha256(folder / "model.pt")


@pytest.mark.parametrize("uri", ["mlruns", "nothing://there"])
def test_a_store_that_is_none_is_refused_before_the_first_epoch(tmp_path, uri):
    with pytest.raises(
        InputError,
        match=rf"^tracking_uri: MLflow cannot use {uri} \(.*\), expected a SQLite file or",
    ):
        train(tmp_path, [0.3], CASES, tracking(tmp_path, uri))
    assert not (tmp_path / "history.csv").exists()


@pytest.mark.parametrize("written_as", ["{folder}", "$'{folder}'"])
def test_the_config_is_the_one_that_monai_writes(client, tmp_path, written_as):
    folder = tmp_path / "my out"
    parser = ConfigParser({"output_dir": written_as.format(folder=folder)})
    ConfigWorkflow.patch_bundle_tracking(parser, DEFAULT_MLFLOW_SETTINGS)
    (written,) = folder.glob("config_*.json")
    found = Tracking(
        f"sqlite:///{folder / 'mlflow.db'}",
        config_path=parser.get_parsed_content("save_execute_config"),
        **settings(folder),
    )
    assert found.config_path == written


def test_without_a_config_nothing_is_tracked(tmp_path):
    off = Tracking("nothing://there", config_path=True, **settings(tmp_path))
    train(tmp_path, [0.3], CASES, off)
    assert not list(tmp_path.glob("*mlflow*"))


def test_no_other_address_is_read_from_the_environment(client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere")
    folder = tmp_path / "my out"
    train(folder, [0.3], CASES, tracking(folder))
    assert len(runs(client)) == 1


def test_without_mlflow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"found no package mlflow, .* pip install mlflow"):
        tracking(tmp_path)


def test_commit_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        settings = ("-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false")
        return subprocess.check_output(
            ["git", *settings, "-C", tmp_path, *arguments], text=True, timeout=SECONDS
        ).strip()

    assert git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text("one")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-am", "release", "v1")
    assert git_commit(tmp_path / "below") == git("rev-parse", "HEAD")
    (tmp_path / "below" / "file").write_text("two")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None
