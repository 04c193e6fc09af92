from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate
from torch import nn

from liverseg.errors import InputError
from liverseg.networks import DeepLabV3Plus
from liverseg.networks.deeplabv3plus import ASPP
from liverseg.networks.encoders import ResNet18Encoder


@pytest.mark.parametrize(
    ("in_channels", "num_classes", "options"),
    [
        (1, 2, {}),
        (3, 5, {"output_stride": 8, "aspp_rates": [1, 12, 24, 36], "dropout": 0.5}),
        (5, 3, {"image_pooling": True}),
    ],
)
def test_is_a_segmentation_network(
    check_segmentation_network, in_channels, num_classes, options
) -> None:
    def build() -> DeepLabV3Plus:
        return DeepLabV3Plus(in_channels=in_channels, num_classes=num_classes, **options)

    check_segmentation_network(
        build, in_channels, num_classes, stride=options.get("output_stride", 16)
    )


def test_layers_are_the_100_of_the_papers(count_operations) -> None:
    with torch.device("meta"):
        counts = count_operations(DeepLabV3Plus())
    resnet18 = {"conv2d": 20, "batch_norm": 20, "relu": 17, "add": 8, "max_pool2d": 1}
    head = {"conv2d": 9, "batch_norm": 8, "relu": 8, "cat": 2, "upsample_bilinear2d": 2}
    assert counts == Counter(resnet18) + Counter(head)
    # MATLAB's list also has the input, the crops after the two up-samplings, the softmax and the
    # pixel classification.
    assert counts.total() + 5 == 100


@pytest.mark.parametrize("output_stride", [16, 8])
def test_strides_of_the_features(output_stride: int) -> None:
    with torch.no_grad():
        low, high = DeepLabV3Plus(output_stride=output_stride).encoder(torch.zeros(1, 1, 128, 256))
    assert low.shape == (1, 64, 32, 64)
    assert high.shape == (1, 512, 128 // output_stride, 256 // output_stride)


def test_head_equals_the_description_written_out(randomise_batch_norms) -> None:
    torch.manual_seed(0)
    network = DeepLabV3Plus(num_classes=3).double().eval()
    randomise_batch_norms(network)
    p = {key: value.double() for key, value in network.state_dict().items()}

    def conv_bn_relu(x: torch.Tensor, name: str, rate: int = 1) -> torch.Tensor:
        kernel = p[f"{name}.0.weight"]
        y = F.conv2d(x, kernel, padding=rate * (kernel.shape[-1] // 2), dilation=rate)
        mean, variance = p[f"{name}.1.running_mean"], p[f"{name}.1.running_var"]
        y = (y - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return (
            y * p[f"{name}.1.weight"][:, None, None] + p[f"{name}.1.bias"][:, None, None]
        ).clamp(min=0)

    def up4(x: torch.Tensor) -> torch.Tensor:
        return nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)(x)

    x = torch.randn(1, 1, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        low, high = network.encoder(x)
        pyramid = [
            conv_bn_relu(high, f"aspp.branches.{i}", rate) for i, rate in enumerate((1, 6, 12, 18))
        ]
        assert [p[f"aspp.branches.{i}.0.weight"].shape[-1] for i in range(4)] == [1, 3, 3, 3]
        assert [y.shape[1] for y in pyramid] == [256] * 4
        high = up4(conv_bn_relu(torch.cat(pyramid, 1), "aspp.project"))
        skip = conv_bn_relu(low, "skip")
        assert skip.shape[1] == 48
        y = conv_bn_relu(conv_bn_relu(torch.cat([high, skip], 1), "decoder.0"), "decoder.1")
        assert high.shape[1] == y.shape[1] == p["decoder.0.0.weight"].shape[0] == 256
        expected = up4(F.conv2d(y, p["classifier.weight"], p["classifier.bias"]))
        torch.testing.assert_close(network(x), expected)


def aspp_by_hand(aspp: ASPP, x: np.ndarray, rates: list[int], image_pooling: bool) -> np.ndarray:
    """ASPP of one image (C, H, W) by definition: scipy's correlation with spread kernels."""
    p = {key: value.double().numpy() for key, value in aspp.state_dict().items()}

    def convolve(image: np.ndarray, kernel: np.ndarray, rate: int) -> np.ndarray:
        size = rate * (kernel.shape[-1] - 1) + 1
        spread = np.zeros((*kernel.shape[:2], size, size))
        spread[:, :, ::rate, ::rate] = kernel
        # The kernel of scipy has as many dimensions as the image; at the middle channel it covers
        # all channels once.
        channels = len(image)
        padded = np.pad(image, ((0, 1 - channels % 2), (0, 0), (0, 0)))
        spread = np.pad(spread, ((0, 0), (0, 1 - channels % 2), (0, 0), (0, 0)))
        return np.stack([correlate(padded, k, mode="constant")[len(padded) // 2] for k in spread])

    def norm_relu(y: np.ndarray, name: str) -> np.ndarray:
        weight, bias, mean, variance = (
            p[f"{name}.1.{v}"][:, None, None]
            for v in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((y - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)

    branches = [
        norm_relu(convolve(x, p[f"branches.{i}.0.weight"], rate), f"branches.{i}")
        for i, rate in enumerate(rates)
    ]
    if image_pooling:
        pooled = (
            p["image_pooling.1.weight"][:, :, 0, 0] @ x.mean(axis=(1, 2))
            + p["image_pooling.1.bias"]
        )
        branches.append(np.broadcast_to(np.maximum(pooled, 0)[:, None, None], branches[0].shape))
    joined = np.concatenate(branches)
    return norm_relu(np.einsum("oc,chw->ohw", p["project.0.weight"][:, :, 0, 0], joined), "project")


@pytest.mark.parametrize(("rates", "image_pooling"), [([1, 6, 12], False), ([1, 2, 3], True)])
def test_aspp_equals_its_definition(
    randomise_batch_norms, rates: list[int], image_pooling: bool
) -> None:
    torch.manual_seed(0)
    aspp = ASPP(3, rates, image_pooling).double().eval()
    randomise_batch_norms(aspp)
    x = torch.randn(1, 3, 14, 17, dtype=torch.float64)
    with torch.no_grad():
        y = aspp(x)[0].numpy()
    np.testing.assert_allclose(
        y, aspp_by_hand(aspp, x[0].numpy(), rates, image_pooling), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("rates", [(1, 6, 12, 18), (1, 12, 24, 36), (2, 4)])
def test_aspp_rates_are_the_dilations(rates: tuple[int, ...]) -> None:
    convolutions = [branch[0] for branch in DeepLabV3Plus(aspp_rates=rates).aspp.branches]
    assert [c.dilation for c in convolutions] == [(rate, rate) for rate in rates]
    assert [c.kernel_size for c in convolutions] == [
        (1, 1) if rate == 1 else (3, 3) for rate in rates
    ]


def test_image_pooling_trains_with_one_image() -> None:
    network = DeepLabV3Plus(image_pooling=True).train()
    network(torch.randn(1, 1, 64, 64)).mean().backward()
    assert network.aspp.image_pooling[1].weight.grad.any()


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network = DeepLabV3Plus(dropout=0.5)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_encoder_weights_reach_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = ResNet18Encoder(3)
    path = tmp_path / "resnet18.pth"
    torch.save(source.state_dict(), path)
    network = DeepLabV3Plus(
        3,
        encoder_weights=str(path),
        encoder_weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    assert all(
        torch.equal(value, source.state_dict()[key])
        for key, value in network.encoder.state_dict().items()
    )
    with pytest.raises(InputError, match="SHA-256"):
        DeepLabV3Plus(3, encoder_weights=str(path), encoder_weights_sha256="0" * 64)
