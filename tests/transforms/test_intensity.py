from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRanged
from scipy.ndimage import median_filter

from liverseg.errors import InputError
from liverseg.transforms import EqualizeHistogramd, MedianSlicesd, ScaleWindowd


def test_equals_monais_and_keeps_the_affine():
    image = MetaTensor(
        torch.randn(1, 5, 6, 7) * 300, affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    )
    expected = ScaleIntensityRanged("image", -160, 240, 0.0, 1.0, clip=True)(
        {"image": image.clone()}
    )["image"]
    scaled = ScaleWindowd("image", [-160, 240])({"image": image})["image"]
    assert torch.allclose(scaled, expected, atol=1e-6)
    assert torch.equal(scaled.affine, expected.affine)
    assert scaled.data_ptr() == image.data_ptr()


def test_an_empty_window_is_refused():
    with pytest.raises(InputError, match=r"hu_window is \[240, -160\]"):
        ScaleWindowd("image", [240, -160])


def by_formula(section: np.ndarray) -> np.ndarray:
    """round((cdf(x) − cdf_min) / (LW − cdf_min) · 255) / 255, in exact fractions, x in 0…255."""
    cdf = {x: int((section <= x).sum()) for x in np.unique(section)}
    lowest = min(cdf.values())
    h = {x: round(Fraction(n - lowest, section.size - lowest) * 255) for x, n in cdf.items()}
    return np.vectorize(h.get)(section) / 255


def equalize(volume: np.ndarray) -> np.ndarray:
    image = MetaTensor(torch.tensor(volume, dtype=torch.float32)[None])
    return EqualizeHistogramd("image")({"image": image})["image"].numpy()[0]


def test_equalisation_is_the_formula_slice_by_slice():
    generator = np.random.default_rng(0)
    # More slices than are worked on at a time, each with a histogram of its own; much air, as in a
    # CT.
    levels = np.round(
        np.clip(
            generator.normal(np.linspace(20, 230, 37), np.linspace(1, 60, 37), (19, 23, 37)), 0, 255
        )
    )
    levels[:6] = 0
    expected = np.stack([by_formula(levels[..., k]) for k in range(37)], -1)
    assert len(np.unique(expected)) > 200
    between = generator.uniform(-0.4, 0.4, levels.shape)  # to be rounded off
    assert np.allclose(equalize(np.clip(levels + between, 0, 255) / 255), expected, atol=1e-6)


def test_equalisation_of_a_slice_worked_out_by_hand():
    # Levels 10, 20, 20, 200 of 4 pixels: cdf 1, 3, 4, so 0, 2/3 and 1 of 255.
    volume = np.array([[10, 20], [20, 200]])[..., None] / 255
    assert np.allclose(equalize(volume)[..., 0], [[0, 170 / 255], [170 / 255, 1]])


def test_equalised_grey_levels_are_spread_evenly():
    generator = np.random.default_rng(0)
    equal = equalize(generator.beta(2, 8, (128, 128, 1)))
    quartiles = np.quantile(equal, [0.25, 0.5, 0.75])
    assert np.allclose(quartiles, [0.25, 0.5, 0.75], atol=0.02)


@pytest.mark.parametrize("value", [0.0, 1.0, 100 / 255])
def test_a_slice_of_one_grey_level_keeps_it(value):
    volume = np.random.default_rng(0).uniform(0, 1, (8, 9, 3))
    volume[..., 1] = value
    assert np.allclose(equalize(volume)[..., 1], value)


def test_equalisation_is_in_place_keeps_the_affine_and_takes_any_memory_order():
    volume = torch.rand(1, 20, 21, 33)
    expected = EqualizeHistogramd("image")({"image": volume.clone()})["image"]
    image = MetaTensor(
        volume.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1), affine=torch.eye(4) * 2
    )
    equal = EqualizeHistogramd("image")({"image": image})["image"]
    assert equal.data_ptr() == image.data_ptr()
    assert torch.equal(equal.as_tensor(), expected)
    assert torch.equal(equal.affine, image.affine)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_intensities_that_were_not_scaled_are_refused(value):
    volume = torch.full((1, 4, 4, 2), 0.5)
    volume[0, 1, 1, 1] = value
    with pytest.raises(InputError, match=r"image: found intensities from .* expected 0 to 1"):
        EqualizeHistogramd("image")({"image": volume})


@pytest.mark.parametrize("shape", [(13, 17, 40), (64, 5, 16), (1, 9, 2)])
def test_the_median_is_that_of_scipy_in_each_slice(shape):
    volume = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)
    image = MetaTensor(torch.tensor(volume)[None], affine=torch.eye(4) * 2)
    filtered = MedianSlicesd("image")({"image": image})["image"]
    assert np.array_equal(
        filtered.numpy()[0], median_filter(volume, size=(3, 3, 1), mode="nearest")
    )
    assert filtered.data_ptr() == image.data_ptr()
    assert torch.equal(filtered.affine, image.affine)


def test_the_median_takes_any_memory_order_and_leaves_other_keys_alone():
    volume = torch.rand(1, 20, 21, 33)
    expected = MedianSlicesd("image")({"image": volume.clone()})["image"]
    turned = volume.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    item = MedianSlicesd(["image", "other"], allow_missing_keys=True)(
        {"image": turned, "label": volume}
    )
    assert torch.equal(item["image"], expected)
    assert item["label"] is volume
