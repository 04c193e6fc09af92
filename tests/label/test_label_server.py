"""The app as 3D Slicer meets it: through MONAI Label's own client."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import requests
from bundle_runs import AFFINE, make_scan, save
from label_bundles import run_bundle, write_weights

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import nrrd
from monailabel.client import MONAILabelClient

FOLDERS = {
    "two_d": "bundles/two_d",
    "three_d": "monailabel_app/model/three_d",
    "untrained": "bundles/untrained",
}
FILES = {"plain": "plain.nii.gz", "oblique": "oblique.nii"}


@pytest.fixture
def client(server, tmp_path):
    return MONAILabelClient(server.url, str(tmp_path))


@pytest.fixture(scope="session")
def expected(root, tmp_path_factory):
    """The mask of a bundle for a scan, by the bundle's own inference."""
    known = {}

    def mask(bundle: str, image: str, **settings):
        key = (bundle, image, str(settings))
        if key not in known:
            scan = root / "studies" / FILES[image]
            known[key] = nib.load(run_bundle(root / FOLDERS[bundle], scan, tmp_path_factory.mktemp("m"), **settings))
        return known[key]

    return mask


def assert_same(file: str, mask: nib.Nifti1Image) -> None:
    found = nib.load(file)
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(mask.dataobj))
    assert np.array_equal(found.affine, mask.affine)


# --- start


def test_takes_what_is_a_bundle_and_says_why_the_rest_is_none(client, server):
    info = client.info()
    assert sorted(info["models"]) == ["three_d", "two_d", "untrained", "waits"]
    log = server.log.read_text()
    for name, reason in {
        "damaged": "no JSON",
        "of_the_future": "expected 9.1",
        "with_code": "code of its own (scripts/network.py)",
    }.items():
        (line,) = (line for line in log.splitlines() if f"Not taken: bundles/{name}" in line)
        assert reason in line
        assert name in info["description"]


def test_starts_and_runs_without_network(client, root):
    client.infer("two_d", "plain", {})
    assert not (root / "connections").exists()


def test_models_say_their_labels_options_and_state(client):
    models = client.info()["models"]
    assert models["two_d"]["labels"] == {"liver": 1, "lesion": 2}
    assert models["three_d"]["labels"]["portal vein"] == 2
    assert {name: model["state"] == "ready" for name, model in models.items()} == {
        "two_d": True,
        "three_d": True,
        "waits": True,
        "untrained": False,
    }
    assert all(model["type"] == "segmentation" and model["dimension"] == 3 for model in models.values())
    options = models["two_d"]["config"]
    assert options["mask_cleaning"][0] == "none"
    assert options["version"] == ["in use"]
    # 3D Slicer shows lists of text only.
    assert all(isinstance(value, str) for values in options.values() for value in values)


# --- segment


@pytest.mark.parametrize("image", ["plain", "oblique"])
@pytest.mark.parametrize("model", ["two_d", "three_d"])
def test_is_the_bundles_own_inference_voxel_for_voxel(client, root, expected, model, image):
    file, result = client.infer(model, image, {})
    assert_same(file, expected(model, image))
    values = np.asanyarray(expected(model, image).dataobj)
    assert len(np.unique(values)) > 1
    assert sorted(result["label_names"].values()) == sorted(set(np.unique(values)) - {0})
    scan = nib.load(root / "studies" / FILES[image])
    assert nib.load(file).shape == scan.shape
    assert np.allclose(nib.load(file).affine, scan.affine, atol=1e-5)
