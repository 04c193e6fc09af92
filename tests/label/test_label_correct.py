"""Strokes and cleaning on the label that an annotator holds."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import requests
from bundle_runs import save
from scipy import ndimage

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from monailabel.client import MONAILabelClient

from lib.scribbles import LIKELIHOODS, PRIORS, cut, region_of

SPACING_MM = (1.0, 0.75, 2.5)
INFO = [{"name": name, "id": number} for number, name in enumerate(("liver", "background_scribbles", "lesion"), 1)]


def dice(one, other) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.fixture(scope="module")
def leak():
    """An organ, a mask of it that leaks into a darker neighbour, and where the voxels are in mm."""
    shape = (120, 150, 40)
    mm = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING_MM, strict=True)), indexing="ij"))
    organ, neighbour = (
        np.linalg.norm(mm - np.array(centre_mm)[:, None, None, None], axis=0) < radius_mm
        for centre_mm, radius_mm in (((45, 55, 50), 22), ((80, 55, 50), 16))
    )
    neighbour &= ~organ
    noise = np.random.default_rng(0).normal(0, 15, shape)
    image = (np.where(organ, 100, np.where(neighbour, 60, -20)) + noise).astype(np.float32)
    return image, organ, organ | neighbour


def line(shape, start, stop):
    stroke = np.zeros(shape, bool)
    stroke[start:stop, 73, 20] = True
    return stroke


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_stroke_in_a_leak_removes_it(leak, prior, likelihood):
    image, organ, mask = leak
    strokes = line(mask.shape, 30, 50), line(mask.shape, 74, 90)
    assert dice(mask, organ) < 0.86
    region = region_of(strokes[0] | strokes[1], SPACING_MM, 30)
    found = cut(image[region], mask[region], *(stroke[region] for stroke in strokes), SPACING_MM, prior, likelihood)
    assert dice(found, organ[region]) > 0.97
    assert found[strokes[0][region]].all() and not found[strokes[1][region]].any()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_kind_of_strokes_is_enough(leak, likelihood):
    image, organ, mask = leak
    stroke, none = line(mask.shape, 74, 90), np.zeros(mask.shape, bool)
    found = cut(image, mask, none, stroke, SPACING_MM, likelihood=likelihood)
    assert dice(found, organ) > 0.97
    # And what was missed is found, without a word on the background.
    missing = organ & (np.arange(mask.shape[0])[:, None, None] > 40)
    found = cut(image, missing, line(mask.shape, 30, 38), none, SPACING_MM, likelihood=likelihood)
    assert dice(found, organ) > 0.97


def test_far_from_strokes_the_label_stays(leak):
    image, _, mask = leak
    # A second error that no stroke is near.
    other = np.zeros(mask.shape, bool)
    other[5:12, 5:12, 2:6] = True
    stroke = line(mask.shape, 74, 90)
    found = cut(image, mask | other, np.zeros(mask.shape, bool), stroke, SPACING_MM)
    assert dice(found[:20, :20, :10], other[:20, :20, :10]) > 0.85


@pytest.mark.parametrize("corner", [(0, 0, 0), (119, 149, 39)])
def test_the_region_has_its_margin_and_ends_with_the_volume(corner):
    strokes = np.zeros((120, 150, 40), bool)
    strokes[corner] = True
    for part, length, mm, at in zip(region_of(strokes, SPACING_MM, 7), strokes.shape, SPACING_MM, corner, strict=True):
        assert part == slice(max(at - int(np.ceil(7 / mm)), 0), min(at + 1 + int(np.ceil(7 / mm)), length))


# --- through the server


@pytest.fixture
def client(server, tmp_path):
    return MONAILabelClient(server.url, str(tmp_path))


@pytest.fixture
def held(root, tmp_path):
    """What the annotator holds of the scan `oblique`: a labelmap, and the file that the client sends."""
    scan = nib.load(root / "studies" / "oblique.nii")
    labels = np.zeros(scan.shape, np.uint8)
    labels[10:28, 12:30, 1:6] = 1
    labels[34:37, 40:44, 2:4] = 1
    labels[15:20, 15:20, 2:4] = 3
    labels[24:27, 20, 3] = 2
    save(tmp_path / "held.nii.gz", labels, scan.affine)
    return scan, labels, str(tmp_path / "held.nii.gz")


def params(**more):
    return {"label_info": INFO, "selected_label_name": "liver", "roi": [], **more}


def test_strokes_correct_the_segment_around_them_on_the_scans_grid(client, held):
    scan, labels, file = held
    result, answer = client.infer("scribbles", "oblique", params(region_mm="15"), label_in=file)
    mask = nib.load(result)
    assert mask.get_data_dtype() == np.uint8
    assert np.allclose(mask.affine, scan.affine, atol=1e-4)
    assert answer["label_names"] == {"liver": 1}
    found = np.asanyarray(mask.dataobj)
    assert set(np.unique(found)) == {0, 1}
    assert not found[labels == 2].any()
    spacing_mm = nib.affines.voxel_sizes(scan.affine)
    region = region_of(labels == 2, spacing_mm, 15)
    inside = np.zeros(labels.shape, bool)
    inside[region] = True
    assert not inside.all()
    assert np.array_equal(found[~inside], (labels == 1)[~inside])


def test_clean_up_is_algorithm_1_on_the_selected_segment(client, held):
    _, labels, file = held
    result, _ = client.infer("clean_up", "oblique", params(radius="1"), label_in=file)
    ball = ndimage.generate_binary_structure(3, 1)
    eroded = ndimage.binary_erosion(labels == 1, ball, border_value=1)
    parts, _ = ndimage.label(eroded, np.ones((3, 3, 3)))
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    expected = ndimage.binary_dilation(largest, ball)
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(labels == 1)
    assert np.array_equal(np.asanyarray(nib.load(result).dataobj) > 0, expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"selected_label_name": "spleen"}, "found 'spleen', expected one of liver, background_scribbles, lesion"),
        ({"label_info": None}, "found no label_info"),
        ({"label_info": ["liver"]}, 'expected a list of {"name"'),
        ({"prior": "wish"}, "option prior: found 'wish', expected one of 'label', 'none'"),
    ],
)
def test_says_what_is_wrong_with_a_request(server, held, changed, words):
    with open(held[2], "rb") as file:
        answer = requests.post(
            f"{server.url}/infer/scribbles?image=oblique",
            data={"params": json.dumps(params(**changed))},
            files={"label": ("held.nii.gz", file)},
            timeout=60,
        )
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_a_label_of_another_grid_is_refused_with_both(server, held, tmp_path):
    save(tmp_path / "other.nii.gz", held[1][:-1], held[0].affine)
    with open(tmp_path / "other.nii.gz", "rb") as file:
        answer = requests.post(
            f"{server.url}/infer/scribbles?image=oblique",
            data={"params": json.dumps(params())},
            files={"label": ("other.nii.gz", file)},
            timeout=60,
        )
    assert answer.status_code == 400
    assert "40×48×7" in answer.json()["detail"] and "39×48×7" in answer.json()["detail"]
