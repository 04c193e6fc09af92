from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import set_determinism

from liverseg.errors import InputError
from liverseg.transforms import AddClicksd, SimulateClickd, draw_clicks, find_error

CLASSES = ["background", "liver", "lesion"]


@pytest.fixture(autouse=True)
def fixed_chance():
    set_determinism(0)
    yield
    set_determinism(None)


def cube(shape, centre, radius) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return np.abs(grid - centre).max(-1) <= radius


def errors() -> tuple[torch.Tensor, torch.Tensor]:
    """Cubes: a missed liver around (5, 6, 7), a smaller lesion around (15, 4, 4), a false liver."""
    label, found = np.zeros((20, 21, 22), np.uint8), np.zeros((20, 21, 22), np.uint8)
    label[cube(label.shape, (5, 6, 7), 2)] = 1
    label[cube(label.shape, (15, 4, 4), 1)] = 2
    found[cube(found.shape, (13, 14, 15), 4)] = 2
    return torch.from_numpy(label), torch.from_numpy(found)


def test_the_deepest_error_is_clicked_first():
    label, found = errors()
    for index, centre in enumerate([(13, 14, 15), (5, 6, 7), (15, 4, 4)]):
        assert find_error(label, found, 3) == (index, centre)
        corrected = torch.from_numpy(cube(label.shape, centre, 5))
        found[corrected] = label[corrected]
    assert find_error(label, found, 3) is None


def test_clicks_that_are_drawn_lie_deep_in_errors_of_every_class():
    label, found = errors()
    drawn = [find_error(label, found, 3, draw=True) for _ in range(180)]
    errors_of = {0: ((13, 14, 15), 4), 1: ((5, 6, 7), 2), 2: ((15, 4, 4), 1)}
    for index, (centre, radius) in errors_of.items():
        voxels = np.array([voxel for known, voxel in drawn if known == index])
        assert len(voxels) > 40
        assert all(label[tuple(voxel)] == index != found[tuple(voxel)] for voxel in voxels)
        # The cubes' shells, from the centre to the edge, their voxels and the odds of each.
        shells = np.arange(radius + 1)
        voxels_of = np.where(shells == 0, 1, (2 * shells + 1) ** 3 - (2 * shells - 1) ** 3)
        odds = voxels_of * (np.exp(radius + 1 - shells) - 1)
        expected = (odds * shells).sum() / odds.sum()
        assert np.abs(voxels - centre).max(1).mean() == pytest.approx(expected, abs=0.3)


def test_a_volume_that_is_wrong_all_over_is_clicked_in_the_middle():
    label, found = torch.ones(7, 9, 11, dtype=torch.uint8), torch.zeros(7, 9, 11, dtype=torch.uint8)
    index, voxel = find_error(label, found, 2)
    assert (index, voxel[0]) == (1, 3)
    assert find_error(label, found, 2, draw=True)[0] == 1


def test_clicks_are_gaussians_of_which_the_larger_counts():
    channels = torch.zeros(3, 14, 15, 16)
    voxels = np.array([[4.0, 5.5, 6.25], [6.0, 5.0, 6.0], [0.0, 14.0, 15.0]])
    draw_clicks(channels, torch.from_numpy(voxels), [1, 1, 2], sigma=1.5)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in channels.shape[1:]), indexing="ij"), -1)
    expected = []
    for voxel in voxels:
        offset = np.abs(grid - voxel)
        expected.append(
            np.where(offset.max(-1) <= 4.5, np.exp(-(offset**2).sum(-1) / (2 * 1.5**2)), 0)
        )
    assert np.allclose(channels[1], np.maximum(*expected[:2]), atol=1e-6)
    assert np.allclose(channels[2], expected[2], atol=1e-6)
    assert channels[2, 0, 14, 15] == 1
    assert not channels[0].any()


@pytest.mark.parametrize("probability", [1.0, 0.0])
def test_a_simulated_click_is_drawn_into_the_channel_of_its_class(probability):
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    label[0, 4:11, 4:11, 4:11] = 2
    image = torch.rand(4, 16, 16, 16)
    image[1:] = 0
    before = image.clone()
    logits = torch.zeros(3, 16, 16, 16)
    logits[0] = 1
    simulate = SimulateClickd(keys=["image", "label"], sigma=1.0)
    data = simulate({"image": image, "label": label, "pred": logits, "probability": probability})
    assert "pred" not in data
    assert torch.equal(data["image"][:3], before[:3])
    assert float(data["image"][3].max()) == probability
    if probability:
        peak = np.unravel_index(int(data["image"][3].argmax()), label.shape[1:])
        assert label[0][peak] == 2


def test_some_clicks_are_put_where_nothing_is_wrong():
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    label[0, 4:8, 4:8, 4:8] = 1
    right = torch.stack([label[0] == 0, label[0] == 1]).float()
    clicked = []
    for anywhere in (0.0, 1.0):
        simulate = SimulateClickd(keys=["image", "label"], sigma=1.0, anywhere=anywhere)
        for _ in range(20):
            image = torch.zeros(3, 16, 16, 16)
            simulate({"image": image, "label": label, "pred": right, "probability": 1.0})
            clicked += [
                (anywhere, index, (image[1 + index] == 1).nonzero())
                for index in (0, 1)
                if image[1 + index].any()
            ]
    assert len(clicked) == 20
    assert {(anywhere, index) for anywhere, index, _ in clicked} == {(1.0, 0), (1.0, 1)}
    assert all(label[0][tuple(voxel[0])] == index for _, index, voxel in clicked)
    assert len({str(voxel) for _, _, voxel in clicked}) > 15


def scan() -> MetaTensor:
    affine = torch.tensor(
        [[0.0, 2, 0, 5], [-3, 0, 0, 7], [0, 0, 4, -9], [0, 0, 0, 1]], dtype=torch.float64
    )
    return MetaTensor(
        torch.zeros(1, 10, 12, 8), affine=affine, meta={"filename_or_obj": "scan.nii"}
    )


def test_clicks_are_kept_in_mm_with_their_class():
    add = AddClicksd(
        keys="image", clicks={"lesion": [[1, 2, 3]], "background": [[0, 0, 0.5]]}, classes=CLASSES
    )
    clicks = add({"image": scan()})["image"].meta["clicks"]
    assert torch.allclose(
        clicks, torch.tensor([[9.0, 4, 3, 2], [5, 7, -7, 0]], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("clicks", "words"),
    [
        ({"spleen": [[1, 2, 3]]}, ["'spleen'", "background, liver, lesion"]),
        ({"liver": [[1, 2]]}, ["[1, 2]", "liver", "three numbers"]),
        ({"liver": [1, 2, 3]}, ["liver", "three numbers"]),
        ({"liver": [["a", 2, 3]]}, ["liver", "three numbers"]),
        ({"liver": [[1, 2, float("nan")]]}, ["liver", "three numbers"]),
        (
            {"lesion": [[9, 11, 7], [1, 12, 3]]},
            ["scan.nii", "[1.0, 12.0, 3.0]", "lesion", "[9, 11, 7]"],
        ),
        ({"lesion": [[1, -1, 3]]}, ["scan.nii", "[1.0, -1.0, 3.0]"]),
        ("liver", ["'liver'", "positions by class"]),
    ],
)
def test_clicks_that_mean_nothing_are_refused_in_a_message(clicks, words):
    with pytest.raises(InputError) as error:
        AddClicksd(keys="image", clicks=clicks, classes=CLASSES)({"image": scan()})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_clicks_belong_to_one_scan():
    with pytest.raises(InputError, match="2 scans"):
        AddClicksd(keys="image", clicks={"liver": [[1, 2, 3]]}, classes=CLASSES, scans=["a", "b"])
    AddClicksd(keys="image", clicks={"liver": []}, classes=CLASSES, scans=["a", "b"])
