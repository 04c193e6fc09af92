from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.losses import LevelRampLoss


def label_at(label, factor):
    """The maximum over each factor x factor square, by loops."""
    height, width = (math.ceil(n / factor) for n in label.shape[2:])
    small = np.zeros((*label.shape[:2], height, width))
    for row in range(height):
        for column in range(width):
            square = label[
                :, :, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor
            ]
            small[:, :, row, column] = square.max((2, 3))
    return small


def by_hand(sides, label):
    last = len(sides) + 1
    total = 0.0
    for level, logits in zip(range(last, 1, -1), sides, strict=True):
        y = label_at(label, 2 ** (last - level))
        p = 1 / (1 + np.exp(-logits))
        bce = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        total += (last - level) * bce + level * dice
    return total / last


def random_batch(size=(21, 34), levels=4):
    generator = np.random.default_rng(0)
    label = (generator.random((2, 1, *size)) > 0.97).astype(np.float64)
    factors = [2**k for k in range(levels)]
    sides = [generator.normal(0, 2, (2, 1, *(math.ceil(n / f) for n in size))) for f in factors]
    return sides, label


@pytest.mark.parametrize("size", [(32, 48), (21, 34), (5, 3)])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_equals_the_formula_in_float64(size, levels):
    sides, label = random_batch(size, levels)
    found = LevelRampLoss()([torch.tensor(side) for side in sides], torch.tensor(label))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(by_hand(sides, label), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_labels_of_any_type(dtype):
    sides, label = random_batch()
    found = LevelRampLoss()(
        [torch.tensor(side).float() for side in sides], torch.tensor(label).to(dtype)
    )
    assert float(found) == pytest.approx(by_hand(sides, label), abs=1e-5)


def test_without_levels_and_for_one_output_it_is_the_last_term():
    sides, label = random_batch()
    tensors, target = [torch.tensor(side) for side in sides], torch.tensor(label)
    p = 1 / (1 + np.exp(-sides[0]))
    dice = 1 - (2 * (p * label).sum() + 1) / (p.sum() + label.sum() + 1)
    for found in (
        LevelRampLoss(levels=False)(tensors, target),
        LevelRampLoss()(tensors[0], target),
    ):
        assert float(found) == pytest.approx(dice, abs=1e-12)


def test_a_lesion_of_one_pixel_is_in_every_level():
    label = torch.zeros(1, 1, 32, 32)
    label[0, 0, 13, 22] = 1
    perfect = []
    for factor in (1, 2, 4, 8):
        side = torch.full((1, 1, 32 // factor, 32 // factor), -30.0)
        side[0, 0, 13 // factor, 22 // factor] = 30
        perfect.append(side)
    assert float(LevelRampLoss()(perfect, label)) < 1e-6
    for level in range(4):
        missed = [*perfect]
        missed[level] = torch.full_like(perfect[level], -30.0)
        assert float(LevelRampLoss()(missed, label)) > 0.1


def test_huge_logits_give_a_finite_loss_and_gradient():
    sides = [torch.full((1, 1, n, n), 1e4, requires_grad=True) for n in (4, 2)]
    loss = LevelRampLoss()(sides, torch.zeros(1, 1, 4, 4))
    loss.backward()
    # All wrong: BCE of a logit of 1e4 is 1e4, once among N = 3; Dice is 1 - 1/5 and 1 - 1/17.
    assert loss.item() == pytest.approx((1e4 + 2 * (4 / 5) + 3 * (16 / 17)) / 3)
    assert all(torch.isfinite(side.grad).all() for side in sides)


def test_bfloat16_logits_are_summed_in_float32():
    sides, label = random_batch((64, 64))
    halves = [torch.tensor(side).bfloat16() for side in sides]
    found = LevelRampLoss()(halves, torch.tensor(label))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(
        by_hand([half.double().numpy() for half in halves], label), abs=1e-5
    )


def test_it_falls_when_descended():
    sides, label = random_batch()
    parameters = [torch.tensor(side, requires_grad=True) for side in sides]
    optimiser, loss, values = torch.optim.Adam(parameters, 0.5), LevelRampLoss(), []
    for _ in range(60):
        optimiser.zero_grad()
        values.append(loss(parameters, torch.tensor(label)))
        values[-1].backward()
        optimiser.step()
    assert values[-1] < 0.05 < values[0]


def test_side_outputs_of_other_shapes_are_refused():
    sides, label = random_batch()
    tensors, target = [torch.tensor(side) for side in sides], torch.tensor(label)
    with pytest.raises(InputError, match="side output 1 of 4"):
        LevelRampLoss()(tensors[::-1], target)
    with pytest.raises(InputError, match="side output 1 of 1"):
        LevelRampLoss()(torch.zeros(2, 2, 21, 34), target)


def test_other_classes_are_refused():
    with pytest.raises(InputError, match="values from 0 to 2"):
        LevelRampLoss()(torch.zeros(1, 1, 2, 2), torch.tensor([[[[0, 1], [2, 0]]]]))
