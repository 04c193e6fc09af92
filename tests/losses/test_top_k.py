from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from scipy.special import log_softmax

from liverseg.errors import InputError
from liverseg.losses import DiceTopKLoss, TopKLoss


def random_pair(shape, num_classes=3):
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, num_classes, *shape)), rng.integers(
        0, num_classes, (2, 1, *shape)
    )


@pytest.mark.parametrize("shape", [(9, 7), (5, 4, 6)])
@pytest.mark.parametrize("k", [0.1, 10, 33.3, 100])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_equals_the_mean_over_the_worst_voxels_in_float64(shape, k, dtype):
    logits, target = random_pair(shape)
    voxels = -np.take_along_axis(log_softmax(logits, axis=1), target, axis=1).ravel()
    kept = max(1, int(np.ceil(k / 100 * voxels.size)))
    found = TopKLoss(k)(torch.tensor(logits), torch.tensor(target).to(dtype))
    assert float(found) == pytest.approx(np.sort(voxels)[::-1][:kept].mean(), rel=1e-12)


def test_all_voxels_are_plain_cross_entropy():
    logits, target = map(torch.tensor, random_pair((8, 8)))
    assert TopKLoss(100)(logits, target).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, target[:, 0]).item()
    )


def test_only_the_worst_voxels_are_trained():
    logits, target = map(torch.tensor, random_pair((10, 10)))
    logits.requires_grad_()
    TopKLoss(10)(logits, target).backward()
    assert int((logits.grad != 0).any(dim=1).sum()) == 20


def test_with_dice_it_is_the_weighted_sum():
    logits, target = map(torch.tensor, random_pair((6, 5, 4)))
    dice = DiceLoss(softmax=True, to_onehot_y=True, batch=True, include_background=False)
    expected = 0.7 * dice(logits, target) + 2 * TopKLoss(20)(logits, target)
    loss = DiceTopKLoss(20, lambda_dice=0.7, lambda_top_k=2, batch=True, include_background=False)
    assert loss(logits, target).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("k", [7, 100])
def test_one_channel_is_the_logit_of_the_foreground(k):
    logits, _ = random_pair((9, 7), num_classes=1)
    target = np.random.default_rng(1).integers(0, 2, logits.shape)
    p = 1 / (1 + np.exp(-logits))
    voxels = -np.log(np.where(target == 1, p, 1 - p)).ravel()
    top_k = np.sort(voxels)[::-1][: int(np.ceil(k / 100 * voxels.size))].mean()
    tensors = torch.tensor(logits), torch.tensor(target)
    assert float(TopKLoss(k)(*tensors)) == pytest.approx(top_k, rel=1e-12)

    # Dice of background and foreground; MONAI adds 1e-5 to numerator and denominator.
    both, dice = [(1 - p, target == 0), (p, target == 1)], []
    for q, g in both:
        dice.append(1 - (2 * (q * g).sum() + 1e-5) / (q.sum() + g.sum() + 1e-5))
    assert float(DiceTopKLoss(k, batch=True)(*tensors)) == pytest.approx(
        np.mean(dice) + top_k, rel=1e-9
    )


@pytest.mark.parametrize("k", [0, -5, 101])
def test_a_share_that_is_none_is_refused(k):
    with pytest.raises(InputError, match=f"k is {k}, expected a percentage"):
        TopKLoss(k)
