"""An annotator's clicks, as 3D Slicer and OHIF send them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from helpers.label_bundles import run_bundle

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import nrrd

from lib.bundle import read_bundle
from lib.infer.clicks import ClickSegmentation
from lib.infer.probabilities import ProbabilityStore

CLICKS = {"background": [[24, 20, 3]], "liver": [[5, 6, 1], [36, 30, 5]], "lesion": [[30, 9, 4]]}
FILES = {"plain": "plain.nii.gz", "oblique": "oblique.nii"}


def of_slicer(client, clicks) -> dict:
    """What 3D Slicer sends: clicks for all labels of the app, the chosen segment, its settings."""
    info = client.info()
    options = {name: values[0] for name, values in info["models"]["clicks"]["config"].items()}
    points = {name: clicks.get(name, []) for name in info["labels"]}
    asked = {
        **points,
        "label": "liver",
        **options,
        "reset_state": True,
        "result_extension": ".nrrd",
    }
    return {**asked, "result_dtype": "uint8"}


def of_ohif(client, clicks) -> dict:
    """What OHIF sends: clicks for the labels that were clicked."""
    asked = {"background": [], **clicks, "result_extension": ".nrrd", "result_dtype": "uint8"}
    return {**asked, "result_compress": False, "restore_label_idx": False}


@pytest.mark.parametrize("params_of", [of_slicer, of_ohif])
@pytest.mark.parametrize("image", FILES)
def test_clicks_are_those_of_the_bundles_own_inference_voxel_for_voxel(
    client, root, tmp_path, image, params_of
):
    file, result = client.infer("clicks", image, params_of(client, CLICKS))
    found, _ = nrrd.read(file)
    own = run_bundle(
        root / "bundles" / "clicks",
        root / "studies" / FILES[image],
        tmp_path / "own",
        clicks=CLICKS,
    )
    assert np.array_equal(found, np.asanyarray(nib.load(own).dataobj))
    for value, positions in enumerate(CLICKS.values()):
        assert [found[tuple(position)] for position in positions] == [value] * len(positions)
    assert result["label_names"] == {"liver": 1, "lesion": 2}


@pytest.mark.parametrize("image", FILES)
def test_without_clicks_it_is_the_automatic_mask(client, root, tmp_path, image):
    own = run_bundle(root / "bundles" / "clicks", root / "studies" / FILES[image], tmp_path / "own")
    automatic = np.asanyarray(nib.load(own).dataobj)
    assert set(np.unique(automatic)) == {0, 1}
    for model, params in {
        "clicks": of_slicer(client, {}),
        "clicks_seg": {"result_extension": ".nrrd"},
    }.items():
        assert np.array_equal(nrrd.read(client.infer(model, image, params)[0])[0], automatic)


def test_strokes_start_from_what_the_clicks_made(root, tmp_path):
    """After new weights, for which the bundle runs again, too."""
    folder, scan = root / "bundles" / "clicks", str(root / "studies" / "plain.nii.gz")
    task = ClickSegmentation(read_bundle(folder), ProbabilityStore(tmp_path / "probabilities"))
    Path(task({"image": scan, **CLICKS})[0]).unlink()
    for _ in range(2):
        lesion = task.probabilities(scan).regions(
            ["lesion"], [tuple(slice(0, size) for size in (48, 40, 8))]
        )[0]
        assert lesion[tuple(CLICKS["lesion"][0])] > 0.5
        assert (lesion > 0.5).mean() < 0.05
        (folder / "models" / "model.pt").touch()


def test_clients_find_both_modes(client):
    """They list by type; 3D Slicer takes clicks for the labels of the app."""
    info = client.info()
    assert {name: info["models"][name]["type"] for name in ("clicks", "clicks_seg")} == {
        "clicks": "deepedit",
        "clicks_seg": "segmentation",
    }
    assert info["models"]["clicks"]["labels"] == {"background": 0, "liver": 1, "lesion": 2}
    assert info["models"]["clicks_seg"]["labels"] == {"liver": 1, "lesion": 2}
    assert {"background", "liver", "lesion", "spleen"} <= set(info["labels"])


@pytest.mark.parametrize(
    ("model", "params", "words"),
    [
        ("clicks", {"spleen": [[1, 2, 3]]}, ["clicks", "'spleen'", "background, liver, lesion"]),
        ("clicks", {"foreground": [[1, 2, 3]]}, ["clicks", "'foreground'", "liver"]),
        (
            "clicks",
            {"liver": [[1, 2, 8]]},
            ["clicks", "plain.nii.gz", "[1.0, 2.0, 8.0]", "liver", "[47, 39, 7]"],
        ),
        ("clicks", {"liver": [[1, 2]]}, ["clicks", "for liver", "[1, 2]", "three numbers"]),
        ("clicks", {"liver": [1, 2, 3]}, ["clicks", "for liver", "1", "three numbers"]),
        ("clicks", {"liver": "all"}, ["clicks", "for liver", "'all'", "three numbers"]),
        ("clicks", {"liver": [[float("nan"), 2, 3]]}, ["clicks", "liver", "three numbers"]),
        ("clicks", {"image": []}, ["image"]),
        ("clicks_seg", {"liver": [[1, 2, 3]]}, ["clicks_seg", "'liver'"]),
        ("two_d", {"liver": [[1, 2, 3]]}, ["two_d", "'liver'"]),
        ("two_d", {"label": "liver"}, ["label"]),
    ],
)
def test_wrong_clicks_get_a_message(server, model, params, words):
    answer = requests.post(
        f"{server.url}/infer/{model}?image=plain", data={"params": json.dumps(params)}, timeout=60
    )
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["detail"] for word in words), answer.text


def test_no_click_is_run_as_code(server, tmp_path):
    code = f"$open({str(tmp_path / 'run')!r}, 'w')"
    for clicks in (code, [code], [[code, 1, 2]], {"a": code}):
        body = {"params": json.dumps({"liver": clicks})}
        answer = requests.post(f"{server.url}/infer/clicks?image=plain", data=body, timeout=60)
        assert answer.status_code == 400, answer.text
    assert not (tmp_path / "run").exists()
