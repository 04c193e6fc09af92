from __future__ import annotations

import numpy as np
import pytest
import torch

from liverseg.networks.blocks import MixedPool2d, two_class_logits


def windows(x: torch.Tensor) -> np.ndarray:
    """The four values of each 2x2 window: (B, C, H / 2, W / 2, 4)."""
    b, c, h, w = x.shape
    blocks = (
        x.double().numpy()[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2)
    )
    return blocks.transpose(0, 1, 2, 4, 3, 5).reshape(b, c, h // 2, w // 2, 4)


def test_at_test_it_is_the_mean_of_both_poolings():
    x = torch.randn(2, 3, 7, 8)
    pooled = MixedPool2d(2).eval()(x)
    assert np.allclose(pooled, (windows(x).max(-1) + windows(x).mean(-1)) / 2, atol=1e-6)


def test_in_training_each_feature_map_of_each_image_is_pooled_in_one_way():
    torch.manual_seed(0)
    x = torch.randn(40, 50, 6, 4)
    pooled = MixedPool2d(2).train()(x).numpy()
    highest, average = windows(x).max(-1), windows(x).mean(-1)
    is_max = np.isclose(pooled, highest, atol=1e-6).all((2, 3))
    assert np.allclose(pooled, np.where(is_max[..., None, None], highest, average), atol=1e-6)
    # At equal odds, and independent over images and feature maps: 2000 draws, four standard errors
    # of each mean.
    assert abs(is_max.mean() - 0.5) < 4 * 0.5 / 2000**0.5
    assert abs(is_max.mean(0) - 0.5).max() < 4 * 0.5 / 40**0.5
    assert abs(is_max.mean(1) - 0.5).max() < 4 * 0.5 / 50**0.5
    assert is_max.mean(0).std() < 2 * 0.5 / 40**0.5


def test_the_mean_over_training_is_what_is_used_at_test():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4)
    pool = MixedPool2d(2)
    draws = pool.train()(x.expand(20_000, -1, -1, -1)).mean(0, keepdim=True)
    assert torch.allclose(draws, pool.eval()(x), atol=0.03)


def test_gradients_take_the_way_that_was_drawn():
    torch.manual_seed(0)
    x = torch.randn(1, 20, 2, 2, requires_grad=True)
    MixedPool2d(2).train()(x).sum().backward()
    largest = x.grad.amax((2, 3))[0]
    assert torch.equal(x.grad.sum((2, 3)), torch.ones(1, 20))
    assert set(largest.tolist()) == {0.25, 1.0}


def test_torchs_seed_decides_and_passes_differ():
    x, pool = torch.randn(2, 8, 4, 4), MixedPool2d(2).train()
    torch.manual_seed(3)
    first, second = pool(x), pool(x)
    torch.manual_seed(3)
    assert torch.equal(pool(x), first)
    assert not torch.equal(first, second)


def test_a_scripted_one_still_draws_in_training():
    x = torch.randn(2, 8, 4, 4)
    scripted = torch.jit.script(MixedPool2d(2))
    torch.manual_seed(3)
    expected = MixedPool2d(2).train()(x)
    torch.manual_seed(3)
    assert torch.equal(scripted.train()(x), expected)
    assert torch.equal(scripted.eval()(x), MixedPool2d(2).eval()(x))


def test_an_exported_one_takes_images_of_any_size():
    dims = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    pool = MixedPool2d(2).eval()
    exported = torch.export.export(pool, (torch.randn(2, 3, 12, 18),), dynamic_shapes=dims).module()
    for shape in ((2, 3, 12, 18), (1, 3, 20, 16)):
        x = torch.randn(shape)
        assert torch.equal(exported(x), pool(x))


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (1, 1, 3, 4, 5)])
def test_two_class_logits_have_the_sigmoid_as_their_softmax(shape):
    torch.manual_seed(0)
    logits = 4 * torch.randn(shape, dtype=torch.float64)
    both = two_class_logits(logits)
    assert both.shape == (shape[0], 2, *shape[2:])
    foreground = 1 / (1 + np.exp(-logits.numpy()))
    np.testing.assert_allclose(
        both.softmax(1).numpy(), np.concatenate([1 - foreground, foreground], 1), atol=1e-15
    )


@pytest.mark.parametrize("channels", [2, 3])
def test_two_class_logits_leave_several_classes_as_they_are(channels):
    logits = torch.randn(1, channels, 4, 4)
    assert two_class_logits(logits) is logits
