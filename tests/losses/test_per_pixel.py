from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from liverseg.losses import PerPixelCrossEntropyLoss


def by_hand(logits, target, weight):
    """Pixel by pixel, as MATLAB's documentation of pixelClassificationLayer has it."""
    total = 0.0
    for scan, labels in zip(logits, target[:, 0], strict=True):
        for at in np.ndindex(labels.shape):
            of_classes = np.exp(scan[(slice(None), *at)])
            label = labels[at]
            total -= weight[label] * np.log(of_classes[label] / of_classes.sum())
    return total / target.size


def batch(shape=(2, 4, 7, 6)):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, shape)
    target = generator.choice(shape[1], (shape[0], 1, *shape[2:]), p=[0.7, 0.15, 0.1, 0.05])
    return logits, target


@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (2, 4, 5, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_sum_over_pixels_divided_by_their_number(shape, dtype):
    logits, target = batch(shape)
    weight = [0.3, 2.0, 5.5, 9.0]
    loss = PerPixelCrossEntropyLoss(torch.tensor(weight, dtype=dtype))
    for of_target in (torch.uint8, torch.int64, torch.float32):
        found = loss(torch.tensor(logits, dtype=dtype), torch.tensor(target).to(of_target))
        assert float(found) == pytest.approx(by_hand(logits, target, weight), rel=1e-6)


def test_without_weights_it_is_the_mean():
    logits, target = batch()
    found = PerPixelCrossEntropyLoss()(torch.tensor(logits), torch.tensor(target))
    assert float(found) == pytest.approx(by_hand(logits, target, np.ones(4)), rel=1e-12)


def test_with_inverse_frequencies_it_is_the_weighted_mean_times_the_number_of_classes():
    logits, target = batch()
    weight = torch.tensor(target.size / np.bincount(target.ravel()))
    pair = torch.tensor(logits), torch.tensor(target)
    mean = DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=0, weight=weight)(*pair)
    assert float(PerPixelCrossEntropyLoss(weight)(*pair)) == pytest.approx(4 * float(mean))


def test_the_weights_go_where_the_loss_goes():
    loss = PerPixelCrossEntropyLoss([1.0, 2.0]).to(torch.float64)
    assert loss.weight.dtype == torch.float64
    assert list(loss.state_dict()) == ["weight"]
