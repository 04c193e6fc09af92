"""The choice of the next scan through MONAI Label's client, while scores are computed."""

from __future__ import annotations

import shutil
import time

import pytest
import requests
from bundle_runs import make_scan, save
from label_bundles import copy_app, serve, tiny_bundle, write_weights

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from monailabel.client import MONAILabelClient

# A run that waits as long as there is a file.
GATE = ["$[time.sleep(0.05) for _ in iter(lambda: os.path.exists({closed!r}), False)]", "$@evaluator.run()"]
IMPORTS = ["$import os", "$import sys", "$import time", "$from pkgutil import resolve_name"]
SIMPLE = {"network_def": "@networks#simple", "spacing": [-1, -1, -1], "amp": False, "imports": IMPORTS}


@pytest.fixture
def root(tmp_path):
    copy_app(tmp_path)
    gate = [line.format(closed=str(tmp_path / "closed")) for line in GATE]
    for seed, name in enumerate(("one", "other")):
        write_weights(tiny_bundle(tmp_path / "bundles" / name, "fcn_liver", **SIMPLE, run=gate), seed)
    (tmp_path / "studies").mkdir()
    for number, name in enumerate("abc"):
        save(tmp_path / "studies" / f"{name}.nii.gz", make_scan(number)[0])
    shutil.copy(tmp_path / "studies" / "a.nii.gz", tmp_path / "closed")
    return tmp_path


def scores(client, name):
    objects = client.datastore()["objects"]
    return {image: item["image"]["info"].get(name, {}) for image, item in objects.items()}


def wait(found):
    for _ in range(600):
        if found():
            return
        time.sleep(0.1)
    raise AssertionError("nothing came of it in a minute")


def test_scores_in_the_background_choose_the_next_scan(root, tmp_path):
    with serve(root, "--conf", "score_model", "other") as server:
        one, two = (MONAILabelClient(server.url, str(tmp_path), client_id=name) for name in ("one", "two"))

        def task():
            return requests.get(f"{server.url}/scoring/", timeout=60).json()

        # The scores of the start wait at the gate, and nobody waits for them.
        wait(
            lambda: (
                task()["status"] == "RUNNING"
                and any("Segmenting" in line for line in task()["details"] or ["Segmenting"])
            )
        )
        assert sorted(one.info()["strategies"]) == ["disagreement", "first", "random", "uncertain"]
        answer = one.next_sample("uncertain", {})
        assert answer["score"] is None
        assert two.next_sample("first", {})["id"] != answer["id"]
        assert task()["status"] == "RUNNING"
        assert len(requests.get(f"{server.url}/scoring/?all=true", timeout=60).json()) == 1
        assert scores(one, "uncertainty") == {name: {} for name in "abc"}

        (root / "closed").unlink()
        wait(lambda: task()["status"] == "DONE")
        values = {image: score["value"] for image, score in scores(one, "uncertainty").items()}
        assert all(0 < value < 1 for value in values.values())
        by_score = sorted(values, key=values.get, reverse=True)
        anyone = MONAILabelClient(server.url, str(tmp_path), client_id="two")
        asked = [anyone.next_sample("uncertain", {}) for _ in range(2)]
        assert all(item["score"] == values[item["id"]] for item in asked)
        free = [image for image in by_score if image != answer["id"]]
        # The last of it was theirs already, by `first`.
        assert {item["id"] for item in asked} == set(free)

        # A label starts the Dice of the model against it, and ends the turn of the scan.
        save(tmp_path / "label.nii.gz", make_scan("abc".index(answer["id"]))[1] > 0)
        one.save_label(answer["id"], str(tmp_path / "label.nii.gz"))
        wait(lambda: scores(one, "dice")[answer["id"]])
        assert 0 <= scores(one, "dice")[answer["id"]]["dice"]["liver"] <= 1
        assert one.next_sample("uncertain", {})["id"] != answer["id"]

        # New weights: what is known holds no longer, and is computed anew.
        write_weights(root / "bundles" / "other", 5)
        assert one.next_sample("uncertain", {})["score"] is None
        rest = [image for image in "abc" if image != answer["id"]]
        wait(lambda: all(scores(one, "uncertainty")[image]["value"] != values[image] for image in rest))

        assert one.next_sample("disagreement", {})["score"] is None
        wait(lambda: all(scores(one, "disagreement")[image] for image in rest))
        item = one.next_sample("disagreement", {})
        assert item["score"] == scores(one, "disagreement")[item["id"]]["value"]
