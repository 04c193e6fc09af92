"""Every loss of the bundles against its formula in float64, for 2, 5 and 8 classes."""

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
    return (
        (p * g).sum(axes),
        (p * (1 - g)).sum(axes),
        ((1 - p) * g).sum(axes),
        g.sum(axes),
        p.sum(axes),
    )


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
    "tversky": lambda x, y: 1 - tversky(x, y, 0.3, 0.7).mean(),
    "focal_tversky": lambda x, y: ((1 - tversky(x, y, 0.3, 0.7)) ** 0.75).mean(),
    "cross_entropy": lambda x, y: cross_entropy(x, y, WEIGHTS),
    "cross_entropy_per_pixel": lambda x, y: (
        cross_entropy(x, y, WEIGHTS) * np.asarray(WEIGHTS)[y].sum() / y.size
    ),
    "generalized_dice_uniform": lambda x, y: generalized_dice(x, y, np.ones_like),
    "generalized_dice_simple": lambda x, y: generalized_dice(x, y, lambda g: 1 / g),
    "generalized_dice_square": lambda x, y: generalized_dice(x, y, lambda g: 1 / g**2),
    "dice_simple": lambda x, y: (WEIGHTS[: x.shape[1]] * (1 - dice(x, y))).mean(),
    "dice_square": lambda x, y: (WEIGHTS[: x.shape[1]] * (1 - dice(x, y))).mean(),
    "per_organ": lambda x, y: (
        1 - np.append(tversky(x, y, 0.5, 1.5)[1:], tversky(x, y, 1, 1)[0]).mean()
    ),
}


def config(bundle):
    return BUNDLES / bundle / "configs" / "train.json"


def losses(bundle):
    return json.loads(config(bundle).read_text())["losses"]


each_loss = pytest.mark.parametrize(
    ("bundle", "name"), [(b, n) for b in NUM_CLASSES for n in losses(b)]
)


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
    onehot = (
        torch.nn.functional.one_hot(torch.tensor(target[:, 0]), NUM_CLASSES[bundle])
        .movedim(-1, 1)
        .double()
    )
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
    """Count the labels of folds 1 to 3 at the network's spacing: Shen et al. 2018, eqs. 4 to 6."""
    parser = ConfigParser()
    parser.read_config(config("unet3d_abdomen"))
    classes = {"background": [0], "liver": [1], "spleen": [2]}
    settings = {"dataset_dir": str(dataset), "classes": classes, "spacing": [12.0, 12.0, -1]}
    for key, value in {**settings, "normalize_weights": normalize}.items():
        parser[key] = value
    loss = parser.get_parsed_content(f"losses#{name}")
    items = [
        item
        for item in json.loads((dataset / "dataset.json").read_text())["training"]
        if item["fold"] != 0
    ]
    labels = [np.asarray(nib.load(dataset / item["label"]).dataobj) for item in items]
    n = sum(np.bincount(label.ravel(), minlength=3) for label in labels) / 4
    w = n.sum() / (3 * n**power + 1)
    w = w / w.mean() if normalize else w

    generator = np.random.default_rng(0)
    logits, target = (
        generator.normal(0, 2, (3, 3, 9, 7)),
        generator.choice(3, (3, 1, 9, 7), p=[0.8, 0.1, 0.1]),
    )
    expected = (w * (1 - dice(logits, target))).mean()
    assert float(loss(torch.tensor(logits), torch.tensor(target))) == pytest.approx(
        expected, rel=1e-6
    )
    single = loss(torch.tensor(logits).float(), torch.tensor(target))
    assert float(single) == pytest.approx(expected, rel=1e-5)


# cascade_lits: the logit of one target, and in training a list of side outputs from full resolution
# to 1/8. MONAI's deep supervision sums in float32.
CASCADE = BUNDLES / "cascade_lits" / "configs" / "train.json"


def two_logits(x):
    return np.concatenate([np.zeros_like(x), x], 1)


def top_k(x, y, percent):
    voxels = np.sort(-np.log(np.take_along_axis(probabilities(two_logits(x)), y, 1)).ravel())[::-1]
    return voxels[: int(np.ceil(percent / 100 * voxels.size))].mean()


def tversky_of_target(x, y, alpha, beta):
    return tversky(two_logits(x), y, alpha, beta)[1]


def binary_cross_entropy(x, y):
    return cross_entropy(two_logits(x), y, np.ones(2))


ONE_OUTPUT = {
    "dice_ce": lambda x, y: 1 - dice(two_logits(x), y)[1] + binary_cross_entropy(x, y),
    "dice": lambda x, y: 1 - dice(two_logits(x), y)[1],
    "iou": lambda x, y: 1 - tversky_of_target(x, y, 1, 1),
    "iou_xy": lambda x, y: 1 - tversky_of_target(x, y, 0.5, 1.5),
    "tversky": lambda x, y: 1 - tversky_of_target(x, y, 0.3, 0.7),
    "focal_tversky": lambda x, y: (1 - tversky_of_target(x, y, 0.3, 0.7)) ** 0.75,
    "dice_top_k": lambda x, y: 1 - dice(two_logits(x), y).mean() + top_k(x, y, 10),
    "generalized_dice_uniform": lambda x, y: generalized_dice(two_logits(x), y, np.ones_like),
    "generalized_dice_simple": lambda x, y: generalized_dice(two_logits(x), y, lambda g: 1 / g),
    "generalized_dice_square": lambda x, y: generalized_dice(two_logits(x), y, lambda g: 1 / g**2),
    "cross_entropy": binary_cross_entropy,
}


def deep_supervision(formula):
    """Half the resolution has half the weight; its labels are the nearest pixels of the label."""

    def of(sides, target):
        labels = [
            target[:, :, 2**level // 2 :: 2**level, 2**level // 2 :: 2**level]
            for level in range(len(sides))
        ]
        return sum(
            formula(x, y) / 2**level for level, (x, y) in enumerate(zip(sides, labels, strict=True))
        )

    return of


def level_ramp(sides, target):
    """((N − i) · BCE_i + i · Dice_i) / N over i = N … 2, on the largest label in a pixel."""
    total, last = 0.0, len(sides) + 1
    for level, x in zip(range(last, 1, -1), sides, strict=True):
        (height, width), f = x.shape[2:], 2 ** (last - level)
        y = target.reshape(-1, 1, height, f, width, f).max((3, 5))
        p = probabilities(two_logits(x))[:, 1:]
        smooth_dice = (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        total += (last - level) * binary_cross_entropy(x, y) + level * (1 - smooth_dice)
    return total / last


CASCADE_FORMULAS = {
    "level_ramp": level_ramp,
    **{name: deep_supervision(f) for name, f in ONE_OUTPUT.items()},
}


def cascade_loss(name, **settings):
    parser = ConfigParser()
    parser.read_config(CASCADE)
    parser["bundle_root"] = str(CASCADE.parents[1])
    for key, value in settings.items():
        parser[key] = value
    return parser.get_parsed_content(name)


def sides_and_target():
    generator = np.random.default_rng(0)
    sides = [generator.normal(0, 2, (2, 1, 24 // 2**level, 32 // 2**level)) for level in range(4)]
    return sides, (generator.random((2, 1, 24, 32)) > 0.8).astype(np.int64)


def value_of(loss, sides, target):
    outputs = (
        [torch.tensor(side) for side in sides] if isinstance(sides, list) else torch.tensor(sides)
    )
    return float(loss(outputs, torch.tensor(target, dtype=torch.float64)))


def test_every_loss_of_the_cascade_has_a_formula_here():
    assert set(json.loads(CASCADE.read_text())["losses"]) == set(CASCADE_FORMULAS)


@pytest.mark.parametrize("name", CASCADE_FORMULAS)
def test_loss_of_the_cascade_equals_its_formula(name):
    sides, target = sides_and_target()
    loss = cascade_loss(f"losses#{name}")
    assert value_of(loss, sides, target) == pytest.approx(
        CASCADE_FORMULAS[name](sides, target), rel=1e-6
    )
    # A localisation network gives one output.
    assert value_of(loss, sides[0], target) == pytest.approx(
        CASCADE_FORMULAS[name](sides[:1], target), rel=1e-6
    )


@pytest.mark.parametrize("name", CASCADE_FORMULAS)
def test_gradients_of_the_cascades_losses_are_finite_without_target_and_where_all_is_right(name):
    loss = cascade_loss(f"losses#{name}")
    for value in (0, 1):
        sides = [
            torch.full((2, 1, 16 // f, 16 // f), 40.0 * (2 * value - 1), requires_grad=True)
            for f in (1, 2, 4, 8)
        ]
        found = loss(sides, torch.full((2, 1, 16, 16), float(value)))
        found.backward()
        assert all(torch.isfinite(side.grad).all() for side in sides)
        assert value == 0 or found.item() < 1e-3


def test_each_stage_of_the_cascade_has_its_loss_and_both_can_be_chosen():
    sides, target = sides_and_target()
    for settings, name in (
        ({"stage": "localise"}, "dice_ce"),
        ({"stage": "tune"}, "level_ramp"),
        ({"stage": "tune", "tune_loss": "@losses#focal_tversky"}, "focal_tversky"),
        ({"stage": "localise", "localise_loss": "@losses#iou_xy"}, "iou_xy"),
        ({"stage": "localise", "loss": "@losses#dice_top_k"}, "dice_top_k"),
    ):
        outputs = sides if settings["stage"] == "tune" else sides[:1]
        expected = CASCADE_FORMULAS[name](outputs, target)
        assert value_of(cascade_loss("loss", **settings), outputs, target) == pytest.approx(
            expected, rel=1e-6
        )


def test_the_cascades_loss_without_levels_is_the_dice_of_the_last_output():
    sides, target = sides_and_target()
    loss = cascade_loss("losses#level_ramp", loss_levels=False)
    assert value_of(loss, sides, target) == pytest.approx(level_ramp(sides[:1], target), rel=1e-6)


def test_iou_xy_of_the_cascade_takes_alpha_with_alpha_plus_beta_two():
    sides, target = sides_and_target()
    expected = deep_supervision(lambda x, y: 1 - tversky_of_target(x, y, 1.3, 0.7))(sides, target)
    assert value_of(
        cascade_loss("losses#iou_xy", iou_xy_alpha=1.3), sides, target
    ) == pytest.approx(expected, rel=1e-6)
