"""The postprocessings that bundles offer, on label maps, against the literal algorithms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import literal_postprocessing as literal
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy import ndimage

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
CONFIGS = sorted(
    path for name in ("train", "inference") for path in BUNDLES.glob(f"*/configs/{name}.json")
)
CHAIN = "clean_volume_and_slices"


def contents(path):
    return json.loads(path.read_text())


def of(paths):
    return pytest.mark.parametrize(
        "path", paths, ids=[f"{path.parents[1].name}-{path.stem}" for path in paths]
    )


def group_of_chain(path):
    groups = ("postprocessings", "liver_postprocessings")
    return next((group for group in groups if CHAIN in contents(path).get(group, {})), None)


WITH_LESIONS = [
    path
    for path in CONFIGS
    if "lesion" in contents(path.with_name("metadata.json"))["label_classes"]
]
WITH_CHAIN = [path for path in CONFIGS if group_of_chain(path)]


def build(path, name, **settings):
    parser = ConfigParser()
    parser.read_config(path)
    for key, value in settings.items():
        parser[key] = value
    return parser.get_parsed_content(name)


def noisy(shape=(36, 34, 30)):
    """One organ, with another part and specks around it and holes in it."""
    generator = np.random.default_rng(4)
    distance = np.linalg.norm(
        np.indices(shape) - np.array([16, 15, 14])[:, None, None, None], axis=0
    )
    mask = distance + ndimage.gaussian_filter(generator.normal(size=shape), 2) * 12 < 13
    mask[-6:, -6:, -6:] = True
    return mask ^ (generator.random(shape) < 0.004)


def test_four_bundles_have_lesions_and_all_but_the_one_for_clicks_the_chain():
    assert len(WITH_LESIONS) == 2 * 4
    without = {path.parents[1].name for path in CONFIGS if path not in WITH_CHAIN}
    assert without == {"deepedit_liver"}


def check_cleaned(path, labels, expected):
    for name, cleaned in expected.items():
        found = build(path, f"postprocessings#{name}")({"pred": MetaTensor(torch.tensor(labels))})
        assert torch.equal(found["pred"].as_tensor(), torch.tensor(cleaned)), name


@of(CONFIGS)
def test_every_bundle_keeps_the_largest_part_and_fills_holes(path):
    labels = np.zeros((1, 20, 20, 20), np.uint8)
    labels[0, 2:13, 2:13, 2:13] = 1
    labels[0, 7, 7, 7] = 0
    labels[0, 16:18, 16:18, 16:18] = 1
    largest = labels.copy()
    largest[0, 15:] = 0
    filled = labels.copy()
    filled[0, 7, 7, 7] = 1
    check_cleaned(path, labels, {"keep_largest": largest, "fill_holes": filled})


@of(WITH_LESIONS)
def test_lesions_stay_in_a_liver_that_is_cleaned(path):
    labels = np.zeros((1, 24, 24, 24), np.uint8)
    labels[0, 2:18, 2:18, 2:18] = 1
    labels[0, 4:9, 4:9, 4:9] = 2
    labels[0, 12:14, 12:14, 12:14] = 2  # not the largest lesion
    labels[0, 16, 10, 10] = 0
    labels[0, 20:22, 20:22, 20:22] = 2  # not in the largest part
    largest = labels.copy()
    largest[0, 19:] = 0
    filled = labels.copy()
    filled[0, 16, 10, 10] = 1
    check_cleaned(path, labels, {"keep_largest": largest, "fill_holes": filled})


@pytest.mark.parametrize(
    ("radius", "element"), [(3, "disk"), (3, "matlab_disk"), (2, "disk")], ids=str
)
@of(WITH_CHAIN)
def test_the_chain_is_algorithm_2_on_the_result_of_algorithm_1(path, radius, element):
    group = group_of_chain(path)
    mask = noisy()
    of_slices = literal.matlab_disk(radius) if element == "matlab_disk" else None
    first = literal.algorithm_1(mask, radius)
    expected = literal.algorithm_2(first, radius, element=of_slices)
    assert expected.any()
    assert not np.array_equal(expected, literal.algorithm_2(mask, radius, element=of_slices))
    # The settings of the two hold in the chain as well.
    chain = build(
        path,
        f"{group}#{CHAIN}",
        **{
            f"{group}#erode_keep_largest_dilate#radius": radius,
            f"{group}#clean_slices#radius": radius,
            f"{group}#clean_slices#element": element,
        },
    )
    pred = MetaTensor(torch.tensor(mask[None].astype(np.uint8)), affine=2 * torch.eye(4))
    found = chain({"pred": pred})["pred"] if group == "postprocessings" else chain(pred)
    assert torch.equal(found.as_tensor(), torch.tensor(expected[None].astype(np.uint8)))
    assert torch.equal(found.affine, pred.affine)
    assert found.applied_operations == pred.applied_operations
