"""Every loss of the bundle's train.json against its formula, written out in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

CONFIG = Path(__file__).resolve().parents[2] / "bundles" / "deeplabv3_liver" / "configs" / "train.json"
WEIGHTS = torch.tensor([0.4, 1.6])
EPSILON = 1e-5  # MONAI adds it to numerator and denominator.


def probabilities(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def sums(logits, target):
    """TP, FP, FN of each class over the whole batch, with probabilities for the prediction."""
    p, g = probabilities(logits), np.eye(2)[target[:, 0]].transpose(0, 3, 1, 2)
    axes = (0, 2, 3)
    return (p * g).sum(axes), (p * (1 - g)).sum(axes), ((1 - p) * g).sum(axes), g.sum(axes), p.sum(axes)


def dice(logits, target):
    tp, fp, fn, _, _ = sums(logits, target)
    return (2 * tp + EPSILON) / (2 * tp + fp + fn + EPSILON)


def tversky(logits, target, alpha, beta):
    tp, fp, fn, _, _ = sums(logits, target)
    return (tp + EPSILON) / (tp + alpha * fp + beta * fn + EPSILON)


def cross_entropy(logits, target, weights):
    p = np.take_along_axis(probabilities(logits), target, 1)
    w = np.asarray(weights, np.float64)[target]
    return (-w * np.log(p)).sum() / w.sum()


def generalized_dice(logits, target, weight):
    tp, _, _, g, p = sums(logits, target)
    w = weight(g)
    return 1 - (2 * (w * tp).sum() + EPSILON) / ((w * (g + p)).sum() + EPSILON)


FORMULAS = {
    "dice_ce": lambda x, y: 1 - dice(x, y).mean() + cross_entropy(x, y, [1, 1]),
    "dice": lambda x, y: 1 - dice(x, y).mean(),
    "dice_no_background": lambda x, y: 1 - dice(x, y)[1],
    "iou": lambda x, y: 1 - tversky(x, y, 1, 1).mean(),
    "iou_xy": lambda x, y: 1 - tversky(x, y, 0.5, 1.5).mean(),
    "iou_15_05": lambda x, y: 1 - tversky(x, y, 1.5, 0.5).mean(),
    "iou_10_10": lambda x, y: 1 - tversky(x, y, 1, 1).mean(),
    "iou_05_15": lambda x, y: 1 - tversky(x, y, 0.5, 1.5).mean(),
    "tversky": lambda x, y: 1 - tversky(x, y, 0.3, 0.7).mean(),
    "focal_tversky": lambda x, y: ((1 - tversky(x, y, 0.3, 0.7)) ** 0.75).mean(),
    "cross_entropy": lambda x, y: cross_entropy(x, y, WEIGHTS),
    "generalized_dice_uniform": lambda x, y: generalized_dice(x, y, np.ones_like),
    "generalized_dice_simple": lambda x, y: generalized_dice(x, y, lambda g: 1 / g),
    "generalized_dice_square": lambda x, y: generalized_dice(x, y, lambda g: 1 / g**2),
}


def build(name, **override):
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser["bundle_root"] = str(CONFIG.parents[1])
    parser["losses#cross_entropy#weight"] = "$torch.tensor([0.4, 1.6], dtype=torch.float64)"
    for key, value in override.items():
        parser[key] = value
    return parser.get_parsed_content(f"losses#{name}")


def batch():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (3, 2, 9, 7))
    target = (generator.random((3, 1, 9, 7)) < 0.2).astype(np.int64)
    return logits, target


def test_every_loss_of_the_config_has_a_formula_here():
    assert set(json.loads(CONFIG.read_text())["losses"]) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_equals_its_formula(name):
    logits, target = batch()
    value = build(name)(torch.tensor(logits), torch.tensor(target))
    assert float(value) == pytest.approx(FORMULAS[name](logits, target), abs=1e-7)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_perfect_prediction_has_almost_no_loss_and_a_wrong_one_much(name):
    _, target = batch()
    onehot = torch.nn.functional.one_hot(torch.tensor(target[:, 0]), 2).movedim(-1, 1).double()
    loss = build(name)
    assert float(loss(40 * onehot, torch.tensor(target))) < 1e-4
    assert float(loss(-40 * onehot, torch.tensor(target))) > 0.9


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_are_finite_where_a_class_is_missing(name):
    logits = torch.zeros(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    build(name)(logits, torch.zeros(2, 1, 5, 5, dtype=torch.uint8)).backward()
    assert torch.isfinite(logits.grad).all()


def test_iou_xy_takes_alpha_with_alpha_plus_beta_two():
    logits, target = batch()
    value = build("iou_xy", iou_xy_alpha=1.3)(torch.tensor(logits), torch.tensor(target))
    assert float(value) == pytest.approx(1 - tversky(logits, target, 1.3, 0.7).mean(), abs=1e-7)
