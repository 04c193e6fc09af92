"""Tiles and the body's window, with networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from liverseg.inferers import BodyWindowInferer, ContextTileInferer
from liverseg.networks import PreactivationUNet3D


class Above(nn.Module):
    """Find what is above 0.2 in windows with a context of 6 voxels; keep the inputs."""

    context = (6, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def window(self, size):
        return tuple(length + 6 for length in size)

    def forward(self, x, padded=True):
        assert not padded
        self.seen.append(x)
        logits = (x[..., 3:-3, 3:-3, 3:-3] - 0.2) * 100
        return torch.cat([torch.zeros_like(logits), logits], 1)


def volume(shape, spacing_mm=1.0) -> MetaTensor:
    torch.manual_seed(0)
    return MetaTensor(
        torch.rand(1, 1, *shape) - 0.5, affine=torch.eye(4) * torch.tensor([*[spacing_mm] * 3, 1.0])
    )


@pytest.mark.parametrize("shape", [(20, 17, 9), (8, 8, 4), (3, 2, 1)])
@pytest.mark.parametrize("flips", [[], [[0], [1, 2]]])
def test_tiles_give_what_the_whole_would(shape, flips):
    x = volume(shape)
    found = ContextTileInferer((8, 8, 4), (1, 1, 1), flips=flips, amp=False)(x, Above())
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))


def test_tiles_see_their_context_and_0_beyond_the_volume():
    x, network = volume((16, 8, 4)), Above()
    ContextTileInferer((8, 8, 4), (1, 1, 1), amp=False)(x, network)
    expected = np.pad(x[0, 0].numpy(), 3)
    np.testing.assert_array_equal(network.seen[0][0, 0], expected[:14])
    np.testing.assert_array_equal(network.seen[1][0, 0], expected[8:22])


def test_a_lower_threshold_finds_more():
    x = volume((8, 8, 4))
    found = [
        ContextTileInferer((8, 8, 4), (1, 1, 1), threshold, amp=False)(x, Above()).sum()
        for threshold in (0.5, 0.01)
    ]
    assert found[0] < found[1]


def test_tiles_of_the_real_network_are_those_of_one_window():
    torch.manual_seed(1)
    network = PreactivationUNet3D(width=1, valid=True).eval()
    inferer = ContextTileInferer((12, 12, 8), (1, 1, 1), amp=False)
    x = volume((12, 12, 8))
    _, found = inferer.segment(x, network, probabilities=True)
    with torch.no_grad():
        window = network.window((12, 12, 8))
        seen = torch.zeros(1, 1, *window)
        seen[..., 44:56, 44:56, 22:30] = x.as_tensor()
        expected = network(seen, padded=False).softmax(1)[0, 1, :12, :12, :8]
    np.testing.assert_allclose(found[0, 0].numpy() / 255, expected.numpy(), atol=0.003)


def body(shape=(40, 30, 50)) -> MetaTensor:
    """Air, a body that is not in the middle, and a liver in its upper half."""
    x = torch.full(shape, -0.5)
    x[4:24, 6:26] = 0.0
    x[6:14, 8:20, 30:42] = 0.4
    return MetaTensor(x[None, None], affine=torch.eye(4) * torch.tensor([3.0, 3.0, 3.0, 1.0]))


def test_the_window_is_around_the_body_with_0_beyond_the_volume():
    x, network = body(), Above()
    found = BodyWindowInferer((30, 30, 60), least_mm=0, focus_mm=None, amp=False)(x, network)
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))
    (seen,) = network.seen
    assert seen.shape[2:] == (36, 36, 66)
    # 20 × 20 × 50 voxels of the body's box in the middle, and nothing of the air around it.
    expected = torch.zeros(36, 36, 66)
    expected[8:28, 8:28, 8:58] = x.as_tensor()[0, 0, 4:24, 6:26]
    assert torch.equal(seen[0, 0], expected)


def test_the_second_pass_looks_at_the_slices_around_the_liver():
    x, network = body(), Above()
    found = BodyWindowInferer((30, 30, 60), least_mm=0, focus_mm=60, amp=False)(x, network)
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))
    first, second = (int((seen[0, 0] != 0).any(0).any(0).sum()) for seen in network.seen)
    assert (first, second) == (12, 12)
    assert not torch.equal(network.seen[0], network.seen[1])


def test_few_slices_are_mirrored():
    x, network = body()[..., 30:36], Above()
    found = BodyWindowInferer((30, 30, 60), least_mm=48, focus_mm=None, amp=False)(x, network)
    assert found.shape == x.shape
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))
    assert int((network.seen[0][0, 0] != 0).any(0).any(0).sum()) == 16


def test_nothing_but_air_is_no_liver():
    x, network = MetaTensor(torch.full((1, 1, 8, 8, 8), -0.5), affine=torch.eye(4)), Above()
    assert BodyWindowInferer(amp=False)(x, network).sum() == 0
    assert not network.seen
