"""multi_gpu_train.json: several processes, on one machine or two, train as one does."""

from __future__ import annotations

import collections
import csv
import json
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from helpers.bundle_runs import ABDOMEN, BUNDLE, start_node, torchrun, write_dataset
from helpers.waiting import SECONDS, wait_until
from monai.bundle import ConfigParser, create_workflow

BUNDLES = sorted(path.parents[1] for path in BUNDLE.parent.glob("*/configs/multi_gpu_train.json"))
CONFIGS = BUNDLE.parent / "unet3d_abdomen" / "configs"
TRAIN = str(CONFIGS / "train.json")
BOTH = f"['{TRAIN}','{CONFIGS / 'multi_gpu_train.json'}']"
COMMAND = ("run", "training", "--config_file")
# What two processes compute as one does: a loss that is a mean over scans (Dice of each, not of the
# batch) and no batch norm. The seed decides the first weights and the patients; a crop is the whole
# scan, and nothing is augmented.
SETTINGS = {
    "fold": 1,
    "classes": {name: [value] if value < 3 else [] for value, name in enumerate(ABDOMEN)},
    "spacing": [12, 12, 12],
    "spatial_size": [24, 24, 8],
    "tier": "quality",
    "tiers#quality#crop_margin": 0,
    "networks#quality#init_filters": 4,
    "augmentations#quality": [],
    "loss": "@losses#dice_ce",
    "losses#dice_ce#batch": False,
    "optimizer": "@optimizers#sgd",
    "learning_rate": 0.01,
    "iterations_per_epoch": 2,
    "val_interval": 1,
    "amp": False,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Four scans to train on and three for validation, which two processes cannot share evenly."""
    return write_dataset(tmp_path_factory.mktemp("scans"), 7)


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "eval" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> collections.Counter[str]:
    """Return what was written, by name, without the names of host, process and picture.

    The first process draws the scans that it validates itself, which are fewer.
    """
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    paths = {path.parent if path.parent.name == "overlays" else path for path in paths}
    return collections.Counter(str(path).split(".tfevents")[0] for path in paths)


def largest_difference(one, other) -> float:
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


@pytest.mark.slow
def test_two_processes_with_half_the_batch_equal_one(scans, tmp_path):
    def settings(name, **more):
        folders = {"ckpt_dir": f"{tmp_path}/{name}/models", "output_dir": f"{tmp_path}/{name}/eval"}
        return {**SETTINGS, **folders, "dataset_dir": str(scans), "max_epochs": 3, **more}

    create_workflow(config_file=TRAIN, workflow_type="train", **settings("one", batch_size=2)).run()
    run = torchrun(*COMMAND, BOTH, cwd=tmp_path, **settings("two", batch_size=1))
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (
        torch.load(tmp_path / name / "models" / "checkpoint.pt", weights_only=True)
        for name in ("one", "two")
    )
    assert one["iteration"] == two["iteration"] == 6
    # The average has hardly left the weights that the training started with.
    assert largest_difference(one["model"], one["ema_model"]) > 0.05
    assert largest_difference(one["model"], two["model"]) < 1e-6
    assert largest_difference(one["ema_model"], two["ema_model"]) < 1e-6
    for one, two in zip(*(history(tmp_path / name) for name in ("one", "two")), strict=True):
        assert float(one["val_mean_dice"]) == pytest.approx(float(two["val_mean_dice"]), abs=1e-6)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.slow
def test_a_killed_process_ends_both_machines_and_the_training_goes_on(scans, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    folders = {
        "dataset_dir": scans,
        "ckpt_dir": tmp_path / "models",
        "output_dir": tmp_path / "eval",
    }

    def start(**more):
        settings = {**SETTINGS, **folders, "batch_size": 1, **more}
        return [
            start_node(f"127.0.0.{node}", endpoint, *COMMAND, BOTH, cwd=tmp_path, **settings)
            for node in (1, 2)
        ]

    def end(nodes):
        try:
            return [node.communicate(timeout=SECONDS) for node in nodes]
        finally:
            for node in nodes:
                node.kill()

    nodes = start(max_epochs=1000)
    checkpoint = tmp_path / "models" / "checkpoint.pt"
    wait_until(lambda: checkpoint.is_file() or nodes[1].poll() is not None)
    for process in psutil.Process(nodes[1].pid).children():
        process.kill()
    (_, survivor), (_, killed) = end(nodes)
    assert [node.returncode for node in nodes] == [1, 1]
    assert "Signal 9 (SIGKILL)" in killed
    assert "error: the connection to another process of this training is lost" in survivor
    assert "go on with --resume true" in survivor

    done = torch.load(checkpoint, weights_only=True)["epoch"]
    nodes = start(max_epochs=done + 2, resume=True)
    (shown, errors), (other, _) = end(nodes)
    assert [node.returncode for node in nodes] == [0, 0], errors[-3000:]
    assert f"Resuming after epoch {done}" in shown
    assert f"Resuming after epoch {done}" in other
    assert json.loads(shown.splitlines()[-1])["epochs"] == done + 2
    assert [int(row["epoch"]) for row in history(tmp_path)] == list(range(1, done + 3))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize("processes", [2, 3])
def test_every_scan_belongs_to_one_process(bundle, processes, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(sys, "path", sys.path[:])

    def share(part, rank):
        parser = ConfigParser()
        parser.read_config(
            [bundle / "configs" / name for name in ("train.json", "multi_gpu_train.json")]
        )
        parser.update(
            {"bundle_root": str(tmp_path), "dataset_dir": str(scans), "fold": 1, "cache_gb": 0}
        )
        parser["batch_size"] = 1
        # The labels have no more than two values above 0.
        parser["classes"] = dict(zip(parser["classes"], [[0], [1, 2], *[[]] * 9], strict=False))
        sampler = f"{part}#dataloader#sampler"
        own = {"num_replicas": processes, "rank": rank}
        if parser[sampler]["_target_"] == "DistributedSampler":
            parser.update({f"{sampler}#{name}": value for name, value in own.items()})
        drawn = parser.get_parsed_content(sampler)
        for name, value in own.items():  # what the others ask the group for
            setattr(drawn, name, value)
        drawn.set_epoch(4)
        return list(drawn)

    validated, drawn = (
        [share(part, rank) for rank in range(processes)] for part in ("validate", "train")
    )
    # Three scans are validated, four train.
    assert sorted(chain(*validated)) == [0, 1, 2]
    if (
        bundle.name == "unet3d_abdomen"
    ):  # draws patients with replacement, in each step different ones
        assert all(len(set(step)) == processes for step in zip(*drawn, strict=True))
        assert set(chain(*drawn)) == {0, 1, 2, 3}
    else:  # as many for each process, so where that does not divide a few come twice
        counts = collections.Counter(chain(*drawn))
        assert set(counts) == {0, 1, 2, 3}
        assert counts.total() == 4 + -4 % processes


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_one_process_writes_for_tensorboard(bundle):
    train = json.loads((bundle / "configs" / "train.json").read_text())
    handlers = [one for part in ("train", "validate") for one in train[part]["handlers"]]
    writers = [one for one in handlers if "TensorBoardStatsHandler" in str(one)]
    assert [one["_disabled_"] for one in writers] == ["$idist.get_rank() > 0"] * 2


def test_the_files_for_slurm_and_kubernetes_are_whole():
    files = BUNDLE.parents[1] / "docs" / "how-to" / "multi_gpu"
    subprocess.run(["bash", "-n", files / "train.sbatch"], check=True, timeout=SECONDS)
    service, job = yaml.safe_load_all((files / "job.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    given = dict(
        word.split("=") for word in container["args"] if word.startswith("--") and "=" in word
    )
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert given["--rdzv_endpoint"].split(":")[0] == f"{name}-0.{service['metadata']['name']}"
    assert int(given["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(given["--nproc_per_node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
