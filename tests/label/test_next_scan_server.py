"""The choice of the next scan through MONAI Label's client, while scores are computed."""

from __future__ import annotations

import numpy as np
import pytest
import requests
from helpers.bundle_runs import make_scan, save
from helpers.label_bundles import copy_app, serve, tiny_bundle, write_weights
from helpers.waiting import wait_until

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from monailabel.client import MONAILabelClient

# A run that waits as long as there is a file.
GATE = [
    "$[time.sleep(0.05) for _ in iter(lambda: os.path.exists({closed!r}), False)]",
    "$@evaluator.run()",
]
IMPORTS = [
    "$import inspect",
    "$import os",
    "$import sys",
    "$import time",
    "$from pkgutil import resolve_name",
]
SIMPLE = {
    "network_def": "@networks#simple",
    "spacing": [-1, -1, -1],
    "amp": False,
    "imports": IMPORTS,
}


@pytest.fixture
def root(tmp_path):
    copy_app(tmp_path)
    gate = [line.format(closed=str(tmp_path / "closed")) for line in GATE]
    for seed, name in enumerate(("one", "other")):
        write_weights(
            tiny_bundle(tmp_path / "bundles" / name, "fcn_liver", **SIMPLE, run=gate), seed
        )
    (tmp_path / "studies").mkdir()
    for number, name in enumerate("abcd"):
        save(tmp_path / "studies" / f"{name}.nii.gz", make_scan(number)[0])
    (tmp_path / "closed").touch()
    yield tmp_path
    (tmp_path / "closed").unlink(missing_ok=True)


def scores(client, name):
    objects = client.datastore()["objects"]
    return {image: item["image"]["info"].get(name, {}) for image, item in objects.items()}


def assert_only_this_page_is_let_in(url, page):
    asks = {"Access-Control-Request-Method": "POST", "Sec-Fetch-Site": "cross-site"}
    for method, more in (("OPTIONS", asks), ("GET", {"Sec-Fetch-Site": "cross-site"})):
        answer = requests.request(
            method, f"{url}/info/", headers={"Origin": page, **more}, timeout=60
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
        answer = requests.request(
            method, f"{url}/info/", headers={"Origin": f"{page}.evil", **more}, timeout=60
        )
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_scores_in_the_background_choose_the_next_scan(root, tmp_path):
    allowed = ("--conf", "origins", "https://viewer.example/")
    with serve(root, "--conf", "score_model", "other", *allowed) as server:
        assert_only_this_page_is_let_in(server.url, "https://viewer.example")
        one, two = (
            MONAILabelClient(server.url, str(tmp_path), client_id=name) for name in ("one", "two")
        )

        def task():
            return requests.get(f"{server.url}/scoring/", timeout=60).json()

        def methods():
            tasks = requests.get(f"{server.url}/scoring/?all=true", timeout=60).json()
            return [task["request"]["method"] for task in tasks]

        # The scores of the start wait at the gate, and nobody waits for them.
        wait_until(lambda: task()["status"] == "RUNNING")
        assert sorted(one.info()["strategies"]) == ["disagreement", "first", "random", "uncertain"]
        skipped = one.next_sample("uncertain", {})
        assert skipped["score"] is None
        first = two.next_sample("first", {})
        assert first["id"] != skipped["id"]
        assert task()["status"] == "RUNNING"
        assert methods() == ["uncertainty"]
        assert scores(one, "uncertainty") == {name: {} for name in "abcd"}

        (root / "closed").unlink()
        wait_until(lambda: task()["status"] == "DONE")
        values = {image: score["value"] for image, score in scores(one, "uncertainty").items()}
        assert len(set(values.values())) == 4
        three = MONAILabelClient(server.url, str(tmp_path), client_id="three")
        # Two scans are taken; the less sure of the other two goes to who asks first.
        free = sorted(values.keys() - {skipped["id"], first["id"]}, key=values.get, reverse=True)
        for client, image in zip((three, one), free, strict=True):
            item = client.next_sample("uncertain", {})
            assert (item["id"], item["score"]) == (image, values[image])

        # A label starts the Dice of the model against it.
        save(tmp_path / "label.nii.gz", np.minimum(make_scan("abcd".index(image))[1], 1))
        one.save_label(image, str(tmp_path / "label.nii.gz"))
        wait_until(lambda: scores(one, "dice")[image])
        assert 0 <= scores(one, "dice")[image]["dice"]["liver"] <= 1
        assert one.next_sample("uncertain", {})["id"] == skipped["id"]
        wait_until(lambda: task()["status"] == "DONE")
        assert methods() == ["uncertainty", "dice"]

        # With new weights, what is known holds no longer, and is computed anew.
        (root / "closed").touch()
        write_weights(root / "bundles" / "other", 5)
        assert one.next_sample("uncertain", {})["score"] is None
        assert methods()[2:] == ["uncertainty", "dice"]
        assert requests.delete(f"{server.url}/scoring/", timeout=60).status_code == 200
