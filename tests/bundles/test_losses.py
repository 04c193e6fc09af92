"""Every loss of the bundles' train.json against its formula, written out in float64, for 2, 5 and 8 classes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
NUM_CLASSES = {"deeplabv3_liver": 2, "deeplabv3_abdomen_mr": 5, "unet3d_abdomen": 8}
WEIGHTS = [0.4, 1.6, 1.1, 0.7, 1.2, 0.9, 1.4, 1.3]
EPSILON = 1e-5  # MONAI adds it to numerator and denominator.


def probabilities(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def sums(logits, target):
    """TP, FP, FN of each class over the whole batch, with probabilities for the prediction."""
    p, g = probabilities(logits), np.eye(logits.shape[1])[target[:, 0]].transpose(0, 3, 1, 2)
    axes = (0, 2, 3)
    return (p * g).sum(axes), (p * (1 - g)).sum(axes), ((1 - p) * g).sum(axes), g.sum(axes), p.sum(axes)


def dice(logits, target):
    tp, fp, fn, _, _ = sums(logits, target)
    return (2 * tp + EPSILON) / (2 * tp + fp + fn + EPSILON)


def jaccard(logits, target):
    tp, fp, fn, _, _ = sums(logits, target)
    return (2 * tp + EPSILON) / (2 * (tp + fp + fn) + EPSILON)


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
    "dice_ce": lambda x, y: 1 - dice(x, y).mean() + cross_entropy(x, y, np.ones(8)),
    "dice": lambda x, y: 1 - dice(x, y).mean(),
    "dice_no_background": lambda x, y: 1 - dice(x, y)[1:].mean(),
    "iou": lambda x, y: 1 - jaccard(x, y).mean(),
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
    "dice_uniform": lambda x, y: 1 - dice(x, y).mean(),
    "dice_simple": lambda x, y: (WEIGHTS[: x.shape[1]] * (1 - dice(x, y))).mean(),
    "dice_square": lambda x, y: (WEIGHTS[: x.shape[1]] * (1 - dice(x, y))).mean(),
    "per_organ": lambda x, y: 1 - np.append(tversky(x, y, 0.5, 1.5)[1:], tversky(x, y, 1, 1)[0]).mean(),
}


def config(bundle):
    return BUNDLES / bundle / "configs" / "train.json"


def losses(bundle):
    return json.loads(config(bundle).read_text())["losses"]


each_loss = pytest.mark.parametrize(("bundle", "name"), [(b, n) for b in NUM_CLASSES for n in losses(b)])


def build(bundle, name, **override):
    parser = ConfigParser()
    parser.read_config(config(bundle))
    parser["bundle_root"] = str(BUNDLES / bundle)
    weights = WEIGHTS[: NUM_CLASSES[bundle]]
    for loss, content in losses(bundle).items():
        if "weight" in content:
            parser[f"losses#{loss}#weight"] = f"$torch.tensor({weights}, dtype=torch.float64)"
    for key, value in override.items():
        parser[key] = value
    return parser.get_parsed_content(f"losses#{name}")


def batch(bundle):
    generator = np.random.default_rng(0)
    num_classes = NUM_CLASSES[bundle]
    logits = generator.normal(0, 2, (3, num_classes, 9, 7))
    shares = [0.8, *[0.2 / (num_classes - 1)] * (num_classes - 1)]
    return logits, generator.choice(num_classes, (3, 1, 9, 7), p=shares)


def test_every_loss_of_the_configs_has_a_formula_here():
    assert {name for bundle in NUM_CLASSES for name in losses(bundle)} == set(FORMULAS)


@each_loss
def test_loss_equals_its_formula(bundle, name):
    logits, target = batch(bundle)
    value = build(bundle, name)(torch.tensor(logits), torch.tensor(target))
    assert float(value) == pytest.approx(FORMULAS[name](logits, target), abs=1e-7)


@each_loss
def test_a_perfect_prediction_has_almost_no_loss_and_a_wrong_one_much(bundle, name):
    _, target = batch(bundle)
    onehot = torch.nn.functional.one_hot(torch.tensor(target[:, 0]), NUM_CLASSES[bundle]).movedim(-1, 1).double()
    loss = build(bundle, name)
    assert float(loss(40 * onehot, torch.tensor(target))) < 1e-4
    assert float(loss(-40 * onehot, torch.tensor(target))) > 0.9


@each_loss
def test_gradients_are_finite_where_a_class_is_missing(bundle, name):
    logits = torch.zeros(2, NUM_CLASSES[bundle], 5, 5, dtype=torch.float64, requires_grad=True)
    build(bundle, name)(logits, torch.zeros(2, 1, 5, 5, dtype=torch.uint8)).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("bundle", [bundle for bundle in NUM_CLASSES if "iou_xy" in losses(bundle)])
def test_iou_xy_takes_alpha_with_alpha_plus_beta_two(bundle):
    logits, target = batch(bundle)
    value = build(bundle, "iou_xy", iou_xy_alpha=1.3)(torch.tensor(logits), torch.tensor(target))
    assert float(value) == pytest.approx(1 - tversky(logits, target, 1.3, 0.7).mean(), abs=1e-7)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("name", "power"), [("dice_simple", 1), ("dice_square", 2)])
def test_global_weights_are_those_of_the_training_sets_voxels(dataset, name, power, normalize):
    """From the labels of fold 1 to 3 at the network's spacing, counted by hand: paper D, eqs. 4 to 6."""
    parser = ConfigParser()
    parser.read_config(config("unet3d_abdomen"))
    classes = {"background": [0], "liver": [1], "spleen": [2]}
    settings = {"dataset_dir": str(dataset), "classes": classes, "spacing": [12.0, 12.0, -1]}
    for key, value in {**settings, "normalize_weights": normalize}.items():
        parser[key] = value
    loss = parser.get_parsed_content(f"losses#{name}")
    items = [item for item in json.loads((dataset / "dataset.json").read_text())["training"] if item["fold"] != 0]
    labels = [np.asarray(nib.load(dataset / item["label"]).dataobj) for item in items]
    n = sum(np.bincount(label.ravel(), minlength=3) for label in labels) / 4
    w = n.sum() / (3 * n**power + 1)
    w = w / w.mean() if normalize else w

    generator = np.random.default_rng(0)
    logits, target = generator.normal(0, 2, (3, 3, 9, 7)), generator.choice(3, (3, 1, 9, 7), p=[0.8, 0.1, 0.1])
    expected = (w * (1 - dice(logits, target))).mean()
    assert float(loss(torch.tensor(logits), torch.tensor(target))) == pytest.approx(expected, rel=1e-6)
    single = loss(torch.tensor(logits).float(), torch.tensor(target))
    assert float(single) == pytest.approx(expected, rel=1e-5)
