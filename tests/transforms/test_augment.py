"""Synthetic lesions, thick slices and cut-off scans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from liverseg.transforms import RandCutOffd, RandSliceThicknessd, RandSyntheticLesionsd

SPACING = [2.0, 2.0, 3.0]


def organ(shape=(40, 40, 30)):
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[(0, *(slice(6, n - 6) for n in shape))] = 1
    return {"image": torch.full((1, *shape), 0.5), "label": label}


def draw(seed, shape=(40, 40, 30), **options):
    before = organ(shape)
    transform = RandSyntheticLesionsd("image", "label", SPACING, prob=1, **options)
    transform.set_random_state(seed)
    return before, transform({key: value.clone() for key, value in before.items()})


@pytest.mark.parametrize("shape", [(40, 40, 30), (40, 40)])
@pytest.mark.parametrize("seed", range(4))
def test_lesions_are_in_the_organ_and_nowhere_else(shape, seed):
    before, after = draw(seed, shape, lesion=2)
    changed = after["image"] != before["image"]
    assert changed.any()
    assert not (changed & (before["label"] == 0)).any()
    assert torch.equal(after["label"] == 0, before["label"] == 0)
    lesion = after["label"] == 2
    assert lesion.any()
    # Where a voxel is called lesion, there is something to see.
    assert (after["image"] - before["image"]).abs()[lesion].median() > 0.02


def test_without_a_class_of_their_own_they_are_part_of_the_organ():
    before, after = draw(0)
    assert torch.equal(after["label"], before["label"])
    assert not torch.equal(after["image"], before["image"])


@pytest.mark.parametrize(("darker", "sign"), [(1.0, -1), (0.0, 1)])
def test_darker_or_brighter_by_the_contrast(darker, sign):
    before, after = draw(1, darker=darker, max_lesions=1, contrast=(0.2, 0.2), radius_mm=(12, 12))
    change = sign * (after["image"] - before["image"])
    assert change.max() == pytest.approx(0.2, abs=0.02)


def test_their_size_is_in_mm():
    volumes = []
    for seed in range(30):
        _, after = draw(seed, (60, 60, 40), max_lesions=1, radius_mm=(10, 10), lesion=2)
        inside = (after["label"][0] == 2).numpy()
        # What the organ's border cuts off says nothing.
        if not (ndimage.binary_dilation(inside) & (after["label"][0] == 0).numpy()).any():
            volumes.append(inside.sum() * np.prod(SPACING) / 1000)
    # A ball of 10 mm is 4.19 ml; axes of 0.75 to 1.33 times that, and an uneven border.
    assert len(volumes) > 5
    assert 0.5 * 4.19 < np.median(volumes) < 1.6 * 4.19


def test_no_organ_no_lesion():
    empty = {
        "image": torch.full((1, 8, 8, 8), 0.5),
        "label": torch.zeros(1, 8, 8, 8, dtype=torch.uint8),
    }
    after = RandSyntheticLesionsd("image", "label", SPACING, prob=1)(dict(empty))
    assert torch.equal(after["image"], torch.full((1, 8, 8, 8), 0.5))


def test_thick_slices_are_means_of_thin_ones():
    image = torch.rand(1, 4, 4, 12)
    transform = RandSliceThicknessd("image", [1, 1, 2.0], prob=1, thickness_mm=(8, 8))
    after = transform({"image": image.clone()})["image"]
    assert after.shape == image.shape
    # 12 slices of 2 mm are 3 of 8 mm, with lines between their centres.
    means = image.reshape(16, 3, 4).mean(-1).numpy()
    expected = np.stack([np.interp(np.arange(12), [1.5, 5.5, 9.5], column) for column in means])
    np.testing.assert_allclose(after.reshape(16, 12).numpy(), expected, atol=1e-6)
    assert after.std() < image.std()


def test_slices_that_are_thick_already_stay():
    image = torch.rand(1, 4, 4, 12)
    transform = RandSliceThicknessd("image", [1, 1, 5.0], prob=1, thickness_mm=(1, 4.9))
    assert torch.equal(transform({"image": image.clone()})["image"], image)


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_is_in_the_organ_and_nothing_is_beyond_it(seed):
    before = organ()
    transform = RandCutOffd(["image", "label"], "label", prob=1)
    transform.set_random_state(seed)
    after = transform({key: value.clone() for key, value in before.items()})
    left = np.flatnonzero((after["image"][0] != 0).any(0).any(0))
    assert len(left) < 30
    assert (left[0] == 0) != (left[-1] == 29)
    end = left[0] if left[-1] == 29 else left[-1]
    assert 6 <= end < 24
    assert torch.equal(after["label"][..., left], before["label"][..., left])
    assert (np.diff(left) == 1).all()
    assert (after["label"].sum((0, 1, 2)) > 0).nonzero().numel() <= len(left)
