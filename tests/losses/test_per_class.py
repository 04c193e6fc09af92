from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss

from liverseg.errors import InputError
from liverseg.losses import FocalTverskyLoss, PerClassLoss

EPSILON = 1e-5  # MONAI adds it to numerator and denominator.
CLASSES = ("background", "liver", "spleen")


def batch(size=(9, 7)):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (2, len(CLASSES), *size))
    return logits, generator.integers(0, len(CLASSES), (2, 1, *size))


def probability_and_mask(logits, target, index):
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(1, keepdims=True))[:, index], (
        target[:, 0] == index
    ).astype(np.float64)


def tversky(p, g, alpha, beta):
    tp, fp, fn = (p * g).sum(), (p * (1 - g)).sum(), ((1 - p) * g).sum()
    return 1 - (tp + EPSILON) / (tp + alpha * fp + beta * fn + EPSILON)


def dice_of_each_image(p, g):
    axes = tuple(range(1, p.ndim))
    tp, sizes = (p * g).sum(axes), p.sum(axes) + g.sum(axes)
    return (1 - (2 * tp + EPSILON) / (sizes + EPSILON)).mean()


def cross_entropy(p, g):
    return -(g * np.log(p) + (1 - g) * np.log(1 - p)).mean()


@pytest.mark.parametrize("size", [(9, 7), (5, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_mixed_losses_and_weights_equal_the_formula_in_float64(size, dtype):
    logits, target = batch(size)
    losses = {
        "background": torch.nn.BCELoss(),
        "liver": TverskyLoss(alpha=0.4, beta=1.6, batch=True),
        "spleen": DiceLoss(),
    }
    formulas = [cross_entropy, lambda p, g: tversky(p, g, 0.4, 1.6), dice_of_each_image]
    values = [f(*probability_and_mask(logits, target, index)) for index, f in enumerate(formulas)]
    found = PerClassLoss(losses, {"liver": 3, "background": 0.5})(
        torch.tensor(logits), torch.tensor(target).to(dtype)
    )
    assert found.shape == ()
    assert float(found) == pytest.approx(
        (0.5 * values[0] + 3 * values[1] + values[2]) / 4.5, abs=1e-9
    )


def test_equal_losses_are_the_loss_of_all_classes():
    logits, target = map(torch.tensor, batch())
    arguments = {"alpha": 0.5, "beta": 1.5, "batch": True}
    one_for_all = TverskyLoss(**arguments, softmax=True, to_onehot_y=True)(logits, target)
    found = PerClassLoss({name: TverskyLoss(**arguments) for name in CLASSES})(logits, target)
    torch.testing.assert_close(found, one_for_all)


def test_a_class_without_loss_is_left_out():
    logits, target = map(torch.tensor, batch())
    without = DiceLoss(include_background=False, batch=True, softmax=True, to_onehot_y=True)(
        logits, target
    )
    losses = {"background": None, "liver": DiceLoss(batch=True), "spleen": DiceLoss(batch=True)}
    torch.testing.assert_close(PerClassLoss(losses)(logits, target), without)


@pytest.mark.parametrize(
    "loss",
    [
        TverskyLoss(alpha=1, beta=1, batch=True),
        DiceLoss(jaccard=True, batch=True),
        GeneralizedDiceLoss(batch=True),
        FocalTverskyLoss(batch=True),
        torch.nn.BCELoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_the_gradient_is_finite_where_a_class_is_absent_or_a_prediction_certain(loss):
    logits = torch.zeros(2, 3, 5, 5)
    logits[0, 0], logits[0, 2] = 200, -200
    logits.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PerClassLoss(dict.fromkeys(CLASSES, loss))(
            logits, torch.ones(2, 1, 5, 5, dtype=torch.uint8)
        ).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1, 1] < 0).all()


def test_a_config_names_the_losses_and_the_command_line_changes_one():
    parser = ConfigParser(
        {
            "loss": "@losses#per_class",
            "losses": {
                "per_class": {
                    "_target_": "liverseg.losses.PerClassLoss",
                    "losses": {
                        "background": None,
                        "liver": {"_target_": "TverskyLoss", "alpha": 1, "beta": 1, "batch": True},
                        "spleen": {"_target_": "DiceLoss", "batch": True},
                    },
                    "weights": {"liver": 2.0},
                }
            },
        }
    )
    parser.update(
        {"losses#per_class#losses#liver#alpha": 1.5, "losses#per_class#weights#liver": 4.0}
    )
    loss = parser.get_parsed_content("loss").to("cpu")
    logits, target = batch()
    liver = tversky(*probability_and_mask(logits, target, 1), 1.5, 1)
    spleen = tversky(*probability_and_mask(logits, target, 2), 0.5, 0.5)
    assert float(loss(torch.tensor(logits), torch.tensor(target))) == pytest.approx(
        (4 * liver + spleen) / 5, abs=1e-5
    )


def test_buffers_of_the_losses_move_with_it():
    loss = PerClassLoss({"background": None, "liver": torch.nn.BCELoss(weight=torch.ones(1))}).to(
        torch.float64
    )
    assert [buffer.dtype for buffer in loss.buffers()] == [torch.float64]


@pytest.mark.parametrize(
    ("losses", "weights", "words"),
    [
        ({"liver": DiceLoss()}, {"lever": 2}, "'lever' has no loss, expected one of liver"),
        ({"background": None, "liver": DiceLoss()}, {"background": 2}, "'background' has no loss"),
        ({"liver": DiceLoss()}, {"liver": -1}, "expected 0 or more"),
        ({"liver": DiceLoss()}, {"liver": 0}, "some above 0"),
        ({"background": None}, None, "give a class a loss"),
        ({"liver": FocalLoss()}, None, "FocalLoss of liver"),
        ({"liver": DiceCELoss()}, None, "DiceCELoss of liver"),
        ({"liver": TverskyLoss(sigmoid=True)}, None, "TverskyLoss of liver"),
        ({"liver": torch.nn.BCEWithLogitsLoss()}, None, "BCEWithLogitsLoss of liver"),
        ({"liver": torch.nn.CrossEntropyLoss()}, None, "CrossEntropyLoss of liver"),
        ({"liver": DiceLoss(reduction="none")}, None, "DiceLoss of liver"),
    ],
)
def test_what_cannot_be_right_is_refused(losses, weights, words):
    with pytest.raises(InputError, match=words):
        PerClassLoss(losses, weights)


def test_another_number_of_classes_is_refused():
    logits, target = map(torch.tensor, batch())
    with pytest.raises(InputError, match=r"found 2 classes \(background, liver\), expected 3"):
        PerClassLoss({"background": None, "liver": DiceLoss()})(logits, target)
