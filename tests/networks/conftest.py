from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def check_segmentation_network() -> Callable[..., None]:
    """What every 2-D segmentation network must do, whatever it is made of."""

    def check(build: Callable[..., nn.Module], in_channels: int, num_classes: int) -> None:
        torch.manual_seed(0)
        network = build(in_channels=in_channels, num_classes=num_classes)
        for height, width in ((64, 64), (33, 50), (17, 16)):
            logits = network.eval()(torch.randn(2, in_channels, height, width))
            assert logits.shape == (2, num_classes, height, width)
        x = torch.randn(2, in_channels, 48, 40)
        with torch.no_grad():
            expected = network(x)
            assert torch.allclose(torch.jit.script(network)(x), expected, atol=1e-5)
            exported = torch.export.export(network, (x,)).module()
            assert torch.allclose(exported(x), expected, atol=1e-5)
            last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
            assert torch.allclose(last, expected, atol=1e-4)
            with torch.autocast("cpu", torch.bfloat16):
                assert (network(x).float() - expected).abs().max() < 0.1 * expected.abs().max()
        network.train()(x).square().sum().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []
        assert all(isinstance(value, torch.Tensor) for value in network.state_dict().values())

    return check
