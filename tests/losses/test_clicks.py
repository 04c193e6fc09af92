"""What clicked voxels count in a loss."""

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from liverseg.errors import InputError
from liverseg.losses import ClickLoss, label_and_clicks


class Nothing(torch.nn.Module):
    def forward(self, logits, label):
        return logits.sum() * 0


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(3, (2, 1, 4, 5, 6), generator=generator)
    image = torch.zeros(2, 4, 4, 5, 6)
    image[:, 0] = torch.rand(2, 4, 5, 6, generator=generator)
    return logits, label, image


def test_clicked_voxels_count_by_how_much_of_a_click_they_show():
    logits, label, image = batch()
    image[0, 1, 1, 2, 3], image[0, 2, 1, 2, 3], image[1, 3, 0, 0, 5] = 0.25, 0.5, 1.0
    base = DiceCELoss(to_onehot_y=True, softmax=True)
    shown, target = label_and_clicks({"image": image, "label": label})
    assert torch.equal(shown, image)

    log_softmax = logits - logits.exp().sum(1, keepdim=True).log()
    wrong = [
        -log_softmax[b, label[b, 0, x, y, z], x, y, z]
        for b, x, y, z in ((0, 1, 2, 3), (1, 0, 0, 5))
    ]
    expected = base(logits, label) + 0.7 * (0.5 * wrong[0] + 1.0 * wrong[1]) / 1.5
    assert ClickLoss(base, 0.7)(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("clicked", "weight"), [(False, 1.0), (True, 0)])
def test_without_clicks_or_weight_the_loss_is_what_it_was(clicked, weight):
    logits, label, image = batch(1)
    image[1, 2, 3, 3, 3] = clicked
    base = DiceCELoss(to_onehot_y=True, softmax=True)
    target = label_and_clicks({"image": image, "label": label})[1]
    assert ClickLoss(base, weight)(logits, target).item() == base(logits, label).item()


def test_the_gradient_is_that_of_what_was_clicked():
    logits, label, image = batch(2)
    image[0, 1 + int(label[0, 0, 1, 1, 1]), 1, 1, 1] = 1.0
    logits.requires_grad_()
    ClickLoss(Nothing(), 1.0)(
        logits, label_and_clicks({"image": image, "label": label})[1]
    ).backward()
    assert {tuple(voxel) for voxel in np.argwhere(logits.grad.numpy())[:, [0, 2, 3, 4]]} == {
        (0, 1, 1, 1)
    }
    assert logits.grad[0, int(label[0, 0, 1, 1, 1]), 1, 1, 1] < 0


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match="click_weight is -1"):
        ClickLoss(torch.nn.Identity(), -1)
