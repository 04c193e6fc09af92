"""Small data and the real command line, for the tests of the bundles."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np

from helpers.waiting import SECONDS

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "deeplabv3_liver"
# The classes of unet3d_abdomen.
ABDOMEN = (
    "background",
    "artery",
    "portal_vein",
    "liver",
    "spleen",
    "stomach",
    "gallbladder",
    "pancreas",
)
AFFINE = np.diag([6.0, 6.0, 10.0, 1.0])
# Small and short: what these tests check does not need a good model.
SHORT = {"max_epochs": 2, "val_interval": 1, "spacing": [6.0, 6.0, -1], "spatial_size": [48, 48]}


def make_scan(seed: int, shape=(48, 40, 8)) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball with a lesion, somewhere in noise: enough to learn from in a few steps."""
    generator = np.random.default_rng(seed)
    centre = np.array(shape) * generator.uniform(0.35, 0.65, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    distance = np.linalg.norm((grid - centre) / (12, 12, 3), axis=-1)
    label = (distance < 1).astype(np.uint8) + (distance < 0.3)
    return (100.0 * (label > 0) + generator.normal(0, 20, shape)).astype(np.int16), label.astype(
        np.uint8
    )


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def write_dataset(folder: Path, num_cases: int = 4, num_folds: int = 2) -> Path:
    """A data set as LiTS names its files, with its datalist: folds and one test case."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(num_cases + 1):
        image, label = make_scan(number)
        save(folder / f"volume-{number}.nii", image)
        save(folder / f"segmentation-{number}.nii", label)
        items.append(
            {
                "image": f"volume-{number}.nii",
                "label": f"segmentation-{number}.nii",
                "fold": number % num_folds,
            }
        )
    (folder / "dataset.json").write_text(json.dumps({"training": items[:-1], "test": items[-1:]}))
    return folder


def copy_files(item: dict[str, str], folder: Path) -> dict[str, str]:
    """The item of another patient with the same scan: one file is of one patient."""
    folder.mkdir()
    return {key: str(shutil.copy(file, folder)) for key, file in item.items()}


def options(**values) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def known(config: Path, settings: dict) -> dict:
    """Those of the settings that a config has; others are refused."""
    names = json.loads(config.read_text())
    return {name: value for name, value in settings.items() if name.partition("#")[0] in names}


def monai_bundle(*arguments, cwd: Path, **values) -> subprocess.CompletedProcess[str]:
    """`python -m monai.bundle …` as a user types it."""
    return _run([*arguments, *options(**values)], cwd, {})


def monai_bundle_here(monkeypatch, *arguments, **values) -> None:
    """The same in this process, which is faster, raising what the command raises."""
    monkeypatch.setattr(sys, "argv", ["monai.bundle", *map(str, arguments), *options(**values)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


# Without a GPU, on this machine alone, and with the cores left to each other.
TORCHRUN = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}


def torchrun(*arguments, cwd: Path, **values) -> subprocess.CompletedProcess[str]:
    """The same in two processes that work together."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    return _run([*arguments, *options(**values)], cwd, TORCHRUN, launcher)


def start_node(
    address: str, endpoint: str, *arguments, cwd: Path, **values
) -> subprocess.Popen[str]:
    """The arguments of one of two machines with a process each, which meet at `endpoint`."""
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint, "--local_addr", address]
    launcher = ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *meeting, "-m"]
    command, environment = _command([*arguments, *options(**values)], TORCHRUN, launcher)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **streams)


def tracked_epochs(database: Path) -> list[tuple[str, list[int]]]:
    """Return each finished run of MLflow, by start: its name and the epochs whose loss it has."""
    query = """
        SELECT name, run_uuid, step FROM runs JOIN metrics USING (run_uuid)
        WHERE key = 'loss' AND runs.status = 'FINISHED' ORDER BY start_time, step
    """
    runs: dict[tuple[str, str], list[int]] = {}
    with closing(sqlite3.connect(database)) as connection:
        for name, run_id, epoch in connection.execute(query):
            runs.setdefault((name, run_id), []).append(epoch)
    return [(name, epochs) for (name, _), epochs in runs.items()]


def _run(arguments, cwd, variables, launcher=()) -> subprocess.CompletedProcess[str]:
    command, environment = _command(arguments, variables, launcher)
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        timeout=SECONDS,
        check=False,
        capture_output=True,
        text=True,
    )


def _command(arguments, variables, launcher) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", *launcher, "monai.bundle", *map(str, arguments)]
    return command, {**os.environ, "PYTHONPATH": path, **variables}
