"""A tiny bundle and scans, and `liverseg segment` over them as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from helpers.bundle_runs import BUNDLE, ROOT, make_scan, save
from helpers.waiting import SECONDS
from liverseg.networks import SimpleNet

SETTINGS = (
    "network_def=@networks#simple",
    "postprocessing=@postprocessings#none",
    "amp=False",
    "spacing=[6.0,6.0,-1]",
)


def write_bundle(folder: Path, seed: int = 0) -> Path:
    """`fcn_liver` with the smallest of its networks, which finds something in noise."""
    shutil.copytree(BUNDLE.parent / "fcn_liver", folder, ignore=lambda *_: ["models"])
    (folder / "models").mkdir()
    torch.manual_seed(seed)
    torch.save(SimpleNet().state_dict(), folder / "models" / "model.pt")
    return folder


def write_scans(folder: Path, count: int, shape=(48, 40, 8)) -> Path:
    """`case0.nii` and so on; each is another."""
    folder.mkdir()
    for number in range(count):
        save(folder / f"case{number}.nii", make_scan(number, shape)[0])
    return folder


def start(scans: Path, output: Path, bundle: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command in a session of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "liverseg.workbench", "segment", str(scans), str(output)]
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [*command, "--bundle", str(bundle), "--device", "cpu", *words, *options],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What runs in the background of a shell without job control ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def segment(scans: Path, output: Path, bundle: Path, *options: str, status: int = 0) -> str:
    """Run the command; returns its output and messages."""
    process = start(scans, output, bundle, *options)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == status, out + err
    return out + err


def masks(output: Path) -> dict[str, bytes]:
    """The bytes of each mask, by its case."""
    return {path.parent.name: path.read_bytes() for path in output.glob("*/*.nii.gz")}


def records(output: Path) -> dict[str, dict]:
    """What run.json says of each case, which it must name once."""
    cases = json.loads((output / "run.json").read_text())["cases"]
    found = {case["name"]: case for case in cases}
    assert len(found) == len(cases)
    return found


def written_ns(output: Path) -> dict[str, int]:
    """When each case was done."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/case.json")}
