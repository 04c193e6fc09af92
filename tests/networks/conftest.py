"""What every segmentation network must do, as one function that each network's tests call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from liverseg.networks import load_weights

Build = Callable[[], nn.Module]


@pytest.fixture(scope="session")
def randomise_batch_norms() -> Callable[[nn.Module], None]:
    """Return a function that makes statistics, weights and biases of batch norms matter, as they do after training."""

    def randomise(network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)

    return randomise


@pytest.fixture
def check_segmentation_network(
    tmp_path: Path, randomise_batch_norms: Callable[[nn.Module], None]
) -> Callable[..., None]:
    """Return ``check(build, in_channels, num_classes)``; ``build()`` makes a new network with random weights."""

    def check(build: Build, in_channels: int, num_classes: int) -> None:
        torch.manual_seed(0)
        network = build().eval()
        randomise_batch_norms(network)
        images = [torch.randn(2, in_channels, *size) for size in ((64, 96), (61, 83), (33, 40))]
        with torch.no_grad():
            logits = [network(image) for image in images]
        for image, y in zip(images, logits, strict=True):
            assert y.shape == (2, num_classes, *image.shape[2:])
            assert y.dtype == torch.float32
            assert y.isfinite().all()
            assert y.std() > 0

        _check_state_dict(network, build, images[1], logits[1], tmp_path / "model.pt")
        _check_exports(network, images, logits)
        _check_number_formats(network, images[1], logits[1])
        _check_gradients(build(), images[0])

    return check


def _check_state_dict(network: nn.Module, build: Build, image: torch.Tensor, logits: torch.Tensor, path: Path) -> None:
    state = network.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    torch.save(state, path)
    with torch.no_grad():
        assert torch.equal(load_weights(build(), path).eval()(image), logits)


def _check_exports(network: nn.Module, images: list[torch.Tensor], logits: list[torch.Tensor]) -> None:
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(network, (images[1],), dynamic_shapes=(dims,)).module()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for image, y in zip(images, logits, strict=True):
            torch.testing.assert_close(scripted(image), y)
            torch.testing.assert_close(program(image), y)
        torch.testing.assert_close(program(images[1][:1]), logits[1][:1])


def _check_number_formats(network: nn.Module, image: torch.Tensor, logits: torch.Tensor) -> None:
    scale = logits.std()
    with torch.no_grad():
        channels_last = network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(channels_last(image), logits, rtol=1e-4, atol=1e-4 * float(scale))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = channels_last(image)
    # bfloat16 keeps 8 bits, so a value is off by up to 0.4 %; some twenty layers add up to a few per cent.
    assert ((half.float() - logits).square().mean().sqrt() / scale) < 0.05


def _check_gradients(network: nn.Module, image: torch.Tensor) -> None:
    network.train()(image).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
