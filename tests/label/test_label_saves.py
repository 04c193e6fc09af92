"""Labels that the server has acknowledged are there and whole, whatever happens to it."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from helpers.bundle_runs import AFFINE, save
from helpers.label_bundles import copy_app, serve
from helpers.waiting import SECONDS, wait_until

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from monailabel.client import MONAILabelClient

SHAPE = (128, 128, 64)
SCANS = ["scan0", "scan1", "scan2", "scan3"]
KILLS = 2
SAVES_PER_KILL = 50


def write_label(file: Path, number: int) -> bytes:
    """A label of which every voxel says which one it is, as large as a save takes time for."""
    save(file, np.random.default_rng(number).integers(0, 2, SHAPE, np.uint8))
    return file.read_bytes()


def watch(folder: Path, labels: list[bytes], stop: threading.Event) -> None:
    """Check that every file is whole at any moment, as a kill at that moment would leave it."""
    while not stop.is_set():
        for scan in SCANS:
            file = folder / "labels" / "final" / f"{scan}.nii"
            assert not file.is_file() or file.read_bytes() in labels
        json.loads((folder / "datastore_v2.json").read_text())


@pytest.mark.slow
def test_a_killed_server_has_every_acknowledged_label_whole(tmp_path):
    copy_app(tmp_path)
    (tmp_path / "studies").mkdir()
    for scan in SCANS:
        save(tmp_path / "studies" / f"{scan}.nii", np.zeros(SHAPE, np.int16))
    labels = [write_label(tmp_path / f"{number}.nii", number) for number in range(20)]
    sent: dict[str, list[int]] = {scan: [] for scan in SCANS}
    acknowledged: dict[str, int] = {}
    saves: list[str] = []
    draw = random.Random(0)

    def annotate(url: str, scan: str, stop: threading.Event, seed: int) -> None:
        numbers = random.Random(seed)
        while not stop.is_set():
            number = numbers.randrange(len(labels))
            sent[scan].append(number)
            try:
                answer = requests.put(
                    f"{url}/datastore/label?image={scan}",
                    files={"label": ("label.nii", labels[number])},
                    data={"params": '{"label_info": [{"name": "liver", "idx": 1}]}'},
                    timeout=60,
                )
            except requests.RequestException:
                break
            assert answer.status_code == 200, answer.text
            acknowledged[scan] = len(sent[scan]) - 1
            saves.append(scan)

    for kill in range(KILLS):
        with serve(tmp_path) as server, ThreadPoolExecutor(len(SCANS) + 1) as threads:
            stop = threading.Event()
            running = [
                threads.submit(annotate, server.url, scan, stop, 100 * kill + number)
                for number, scan in enumerate(SCANS)
            ]
            watching = threads.submit(watch, tmp_path / "studies", labels, stop)
            try:
                wait_until(lambda wanted=SAVES_PER_KILL * (kill + 1): len(saves) >= wanted)
                stop.wait(draw.uniform(0, 0.3))
                server.process.kill()
                server.process.wait(SECONDS)
            finally:
                stop.set()
            watching.result()
            for one in running:
                one.result()

    with serve(tmp_path) as server:
        client = MONAILabelClient(server.url, str(tmp_path))
        objects = client.datastore()["objects"]
        for scan in SCANS:
            assert "final" in objects[scan]["labels"]
            file = Path(client.download_label(scan, "final"))
            possible = sent[scan][acknowledged[scan] :]
            assert file.read_bytes() in [labels[number] for number in possible], scan
            assert np.array_equal(nib.load(file).affine, AFFINE)
