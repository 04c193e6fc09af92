from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liverseg.networks import FCN8s
from liverseg.networks.encoders import VGGEncoder


def test_is_a_segmentation_network(check_segmentation_network) -> None:
    check_segmentation_network(lambda: FCN8s(5, 3, fc_channels=64), 5, 3, stride=32)


def test_layers_are_the_51_of_the_papers(count_operations) -> None:
    with torch.device("meta"):
        counts = count_operations(FCN8s())
    assert counts == {
        "conv2d": 18,
        "relu": 15,
        "max_pool2d": 5,
        "dropout": 2,
        "upsample_bilinear2d": 3,
        "add": 2,
    }
    # MATLAB's list also has the input, a crop of each of the two skips and of the result, the
    # softmax and the pixel classification.
    assert counts.total() + 6 == 51


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        network = FCN8s(in_channels=3, num_classes=1000)
    # 138,357,544 is what torchvision states for vgg16; its last layer, 1000 classes, is score_fc7
    # here.
    assert (
        sum(p.numel() for p in network.parameters())
        == 138_357_544 + (512 + 1) * 1000 + (256 + 1) * 1000
    )


def bilinear(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Interpolate linearly between pixel centres; values are constant beyond the outermost."""

    def matrix(n: int) -> torch.Tensor:
        centres = (np.arange(n * factor) + 0.5) / factor - 0.5
        return torch.from_numpy(
            np.stack([np.interp(centres, np.arange(n), unit) for unit in np.eye(n)], axis=1)
        )

    return matrix(x.shape[-2]) @ x @ matrix(x.shape[-1]).T


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_layers_written_out(training: bool) -> None:
    torch.manual_seed(0)
    network = FCN8s(3, 4, fc_channels=24).double().train(training)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    p = network.state_dict()

    def convolve(x: torch.Tensor, name: str) -> torch.Tensor:
        kernel = p[f"{name}.weight"]
        return F.conv2d(x, kernel, p[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    torch.manual_seed(1)
    pools = [image]
    convolutions = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    for number in (2, 2, 3, 3, 3):
        x = pools[-1]
        for _ in range(number):
            x = convolve(x, f"encoder.features.{next(convolutions)}").clamp(min=0)
        batch, channels, height, width = x.shape
        pools.append(x.reshape(batch, channels, height // 2, 2, width // 2, 2).amax(dim=(3, 5)))
    x = F.dropout(convolve(pools[5], "encoder.classifier.0").clamp(min=0), 0.5, training)
    x = F.dropout(convolve(x, "encoder.classifier.3").clamp(min=0), 0.5, training)
    assert p["encoder.classifier.0.weight"].shape == (24, 512, 7, 7)
    x = bilinear(convolve(x, "score_fc7"), 2) + convolve(pools[4], "score_pool4")
    x = bilinear(x, 2) + convolve(pools[3], "score_pool3")
    expected = bilinear(x, 8)

    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize(
    ("scores", "factors"),
    [("score_fc7", (2, 2, 8)), ("score_pool4", (2, 8)), ("score_pool3", (8,))],
)
def test_upsampling_is_the_fixed_bilinear_up_convolution_but_for_the_border(
    scores: str, factors: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = FCN8s(num_classes=1, fc_channels=16).double().eval()
    for name in {"score_fc7", "score_pool4", "score_pool3"} - {scores}:
        for parameter in network.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    seen: list[torch.Tensor] = []
    network.get_submodule(scores).register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        y = network(torch.randn(1, 1, 192, 224, dtype=torch.float64))
    expected = seen[0]
    for factor in factors:
        # The kernel of Long et al., of size 2 f and stride f: 1 - |distance to its centre| / f.
        line = 1 - (torch.arange(2 * factor, dtype=torch.float64) - (factor - 0.5)).abs() / factor
        kernel = torch.outer(line, line)[None, None]
        expected = F.conv_transpose2d(expected, kernel, stride=factor, padding=factor // 2)
    assert y.shape == expected.shape
    # Half a pixel of the scores, and of each map between.
    border = sum(math.prod(factors[step:]) // 2 for step in range(len(factors)))
    inside = (..., slice(border, -border), slice(border, -border))
    torch.testing.assert_close(y[inside], expected[inside])


def test_no_map_is_shifted_against_another() -> None:
    """Were one shifted, mirroring image and kernels would not mirror the scores."""
    torch.manual_seed(0)
    network = FCN8s(fc_channels=16).eval()
    x = torch.randn(1, 1, 96, 96)
    with torch.no_grad():
        mirrored = network(x.flip(3)).flip(3)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.flip(3))
        torch.testing.assert_close(network(x), mirrored, rtol=1e-4, atol=1e-4)


def test_encoder_weights_reach_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = VGGEncoder(3, fc_channels=16)
    path = tmp_path / "vgg16.pth"
    torch.save(source.state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    network = FCN8s(3, fc_channels=16, encoder_weights=path, encoder_weights_sha256=sha256)
    assert all(
        torch.equal(value, source.state_dict()[key])
        for key, value in network.encoder.state_dict().items()
    )
