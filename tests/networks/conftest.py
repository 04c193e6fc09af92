"""What every segmentation network must do, as one function that each network's tests call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from liverseg.networks import load_weights

Build = Callable[[], nn.Module]


@pytest.fixture(scope="session")
def randomise_batch_norms() -> Callable[[nn.Module], None]:
    """Return a function that fills batch norms with values that matter, as after training."""

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
    """Return ``check(build, in_channels, num_classes, stride)``; ``build()`` makes a network."""

    def check(build: Build, in_channels: int, num_classes: int, stride: int) -> None:
        torch.manual_seed(0)
        network = build().eval()
        randomise_batch_norms(network)
        shapes = ((1, 64, 80), (2, 61, 67), (1, 33, 40))
        images = [torch.randn(batch, in_channels, height, width) for batch, height, width in shapes]
        with torch.no_grad():
            logits = [network(image) for image in images]
        for image, y in zip(images, logits, strict=True):
            assert y.shape == (len(image), num_classes, *image.shape[2:])
            assert y.dtype == torch.float32
            assert y.isfinite().all()
            assert y.std() > 0

        _check_sizes(network, images[1], logits[1], stride)
        _check_state_dict(network, build, images[1], logits[1], tmp_path / "model.pt")
        _check_exports(network, images, logits)
        _check_number_formats(network, images[1], logits[1])
        _check_gradients(build(), images[0])

    return check


@pytest.fixture(scope="session")
def count_operations() -> Callable[[nn.Module], Counter[str]]:
    """Return a function that counts a network's operations by name, but those without effect."""

    def count(network: nn.Module) -> Counter[str]:
        image = torch.zeros(1, 1, 64, 64, device=next(network.parameters()).device)
        nodes = torch.export.export(network.eval(), (image,)).graph.nodes
        calls = [node for node in nodes if node.op == "call_function"]
        return Counter(
            node.target.overloadpacket.__name__.rstrip("_")
            for node in calls
            if not _no_effect(node)
        )

    return count


def _no_effect(node: torch.fx.Node) -> bool:
    name = node.target.overloadpacket.__name__
    return (name == "pad" and not any(node.args[1])) or (
        name.startswith("dropout") and node.args[1] == 0
    )


def _check_sizes(
    network: nn.Module, image: torch.Tensor, logits: torch.Tensor, stride: int
) -> None:
    height, width = image.shape[2:]
    by_hand = np.pad(
        image, ((0, 0), (0, 0), (0, -height % stride), (0, -width % stride)), mode="edge"
    )
    with torch.no_grad():
        torch.testing.assert_close(
            network(torch.from_numpy(by_hand))[:, :, :height, :width], logits
        )
        for size in ((1, 1), (1, 200), (15, 17)):
            assert network(image[:1, :, :1, :1].expand(-1, -1, *size)).shape == (
                1,
                logits.shape[1],
                *size,
            )


def _check_state_dict(
    network: nn.Module, build: Build, image: torch.Tensor, logits: torch.Tensor, path: Path
) -> None:
    state = network.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    torch.save(state, path)
    with torch.no_grad():
        assert torch.equal(load_weights(build(), path).eval()(image), logits)


def _check_exports(
    network: nn.Module, images: list[torch.Tensor], logits: list[torch.Tensor]
) -> None:
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(network, (images[1],), dynamic_shapes=(dims,)).module()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for image, y in zip(images, logits, strict=True):
            torch.testing.assert_close(scripted(image), y)
            torch.testing.assert_close(program(image), y)


def _check_number_formats(network: nn.Module, image: torch.Tensor, logits: torch.Tensor) -> None:
    scale = logits.std()
    with torch.no_grad():
        channels_last = network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            channels_last(image), logits, rtol=1e-4, atol=1e-4 * float(scale)
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = channels_last(image)
    # bfloat16 keeps 8 bits, so a value is off by up to 0.4 %; some twenty layers add up to a few
    # per cent.
    assert ((half.float() - logits).square().mean().sqrt() / scale) < 0.05


def _check_gradients(network: nn.Module, image: torch.Tensor) -> None:
    outputs = network.train()(image)
    outputs = (
        outputs if isinstance(outputs, list) else [outputs]
    )  # with deep supervision, one a level
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
