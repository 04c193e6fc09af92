"""Tiny bundles for the tests of the MONAI Label app, and what they give without it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import requests
import torch
from monai.bundle import ConfigParser, create_workflow

from helpers.bundle_runs import ROOT
from helpers.waiting import SECONDS, wait_until

if TYPE_CHECKING:
    from lib.store.local import LockedDatastore

# Whoever connects to anything but this machine is written down, and fails.
GUARD = """
import os, socket
def guard(connect):
    def checked(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            with open({log!r}, "a") as file:
                print(address, file=file)
            raise OSError("no network in this test")
        return connect(self, address)
    return checked
class Socket(socket.socket):
    connect = guard(socket.socket.connect)
    connect_ex = guard(socket.socket.connect_ex)
socket.socket = Socket
"""
SMALL_2D = {"stage_network#first_filters": 4, "spatial_size": [32, 32], "amp": False}
SMALL_3D = {
    "networks#paper#width": 4,
    "spacing": [12, 12, 12],
    "spatial_size": [16, 16, 16],
    "amp": False,
}


def copy_app(root: Path) -> None:
    ignored = shutil.ignore_patterns("model", "logs", "bin", "__pycache__")
    shutil.copytree(ROOT / "monailabel_app", root / "monailabel_app", ignore=ignored)


@contextmanager
def serve(root: Path, *arguments: str, **variables: str) -> Iterator[SimpleNamespace]:
    """The server of the app in `root` for `root/studies`, until the block ends."""
    guard = root / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD.format(log=str(root / "connections")))
    path = os.pathsep.join(filter(None, [str(guard), str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "MONAI_LABEL_SESSION_PATH": str(root / "sessions"),
        **variables,
    }
    port = free_port()
    command = [sys.executable, "-c", "from liverseg.workbench.cli import main; main()", "serve"]
    command += ["--studies", "studies", "--port", str(port), *arguments]
    log = root / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=root, env={**os.environ, **own}, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return requests.get(f"{url}/info/", timeout=SECONDS) is not None
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers)
        yield SimpleNamespace(url=url, log=log, process=process)
    finally:
        process.terminate()
        process.wait(SECONDS)


def tiny_bundle(folder: Path, source: str, **settings) -> Path:
    """A copy of a bundle's configs with other settings."""
    shutil.copytree(ROOT / "bundles" / source / "configs", folder / "configs")
    file = folder / "configs" / "inference.json"
    parser = ConfigParser(json.loads(file.read_text()))
    parser.update(
        {"postprocessings#none#keys": "pred", "postprocessing": "@postprocessings#none", **settings}
    )
    file.write_text(
        json.dumps({key: value for key, value in parser.get().items() if key != "_meta_"})
    )
    return folder


def write_weights(bundle: Path, seed: int) -> Path:
    """Random weights where the bundle looks for them, so large that masks hold several labels."""
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser["bundle_root"] = str(bundle)
    generator = torch.Generator().manual_seed(seed)
    state = parser.get_parsed_content("network").state_dict()
    for value in state.values():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator))
    path = bundle / "models" / "model.pt"
    path.parent.mkdir(exist_ok=True)
    # Replaced at once, as training does.
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    return path


def run_bundle(bundle: Path, image: Path, folder: Path, **settings) -> Path:
    """The mask that the bundle's own inference writes."""
    config = str(bundle / "configs" / "inference.json")
    paths = {"bundle_root": str(bundle), "dataset_dir": str(image), "output_dir": str(folder)}
    create_workflow(
        config_file=config, workflow_type="infer", logging_file=False, **paths, **settings
    ).run()
    (mask,) = folder.glob("*.nii.gz")
    return mask


def stop_watching(store: LockedDatastore) -> None:
    """Stop watching the folder of a store, which MONAI Label does until its process ends."""
    from watchdog.observers.api import BaseObserver

    for thread in threading.enumerate():
        emitters = thread.emitters if isinstance(thread, BaseObserver) else ()
        if str(store.folder) in {emitter.watch.path for emitter in emitters}:
            thread.stop()
            thread.join(SECONDS)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
