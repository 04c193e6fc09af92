from __future__ import annotations

import pytest
import torch
from torch import nn

from liverseg.networks import UNet3D


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNet3D(1, 8, width=4).eval()


def test_has_the_parameters_of_the_publication():
    network = UNet3D(3, 3)
    scales = sum(
        module.weight.numel() for module in network.modules() if isinstance(module, nn.BatchNorm3d)
    )
    assert sum(p.numel() for p in network.parameters()) - scales == 19_069_955


def test_logits_have_the_shape_of_the_volume(network):
    for shape in ((64, 64, 64), (17, 24, 33), (1, 9, 8)):
        assert network(torch.rand(1, 1, *shape)).shape == (1, 8, *shape)


def test_sizes_that_are_padded_see_the_border_repeated(network):
    x = torch.rand(1, 1, 13, 16, 10)
    padded = torch.nn.functional.pad(x, (0, 6, 0, 0, 0, 3), mode="replicate")
    assert torch.allclose(network(x), network(padded)[..., :13, :, :10], atol=1e-6)


def test_a_voxel_is_seen_as_far_as_four_resolutions_reach(network):
    """Two convolutions a stage: 2·(1 + 2 + 4 + 8) voxels down, 2·(4 + 2 + 1) up, and pooling."""
    x = torch.rand(1, 1, 128, 8, 8, requires_grad=True)
    network(x)[0, 0, 64, 4, 4].backward()
    reached = x.grad[0, 0].abs().amax((1, 2)).nonzero()
    assert 34 <= 64 - int(reached.min()) <= 52
    assert 34 <= int(reached.max()) - 64 <= 52


def test_every_parameter_learns():
    torch.manual_seed(0)
    network = UNet3D(1, 3, width=4)
    network(torch.rand(2, 1, 16, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_scripted_it_computes_the_same(network):
    x = torch.rand(1, 1, 12, 16, 9)
    assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-6)
