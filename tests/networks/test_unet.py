from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liverseg.errors import InputError
from liverseg.networks import UNet
from liverseg.networks.encoders import VGGEncoder

STAGES = {
    "plain": [(64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024)],
    "vgg16": [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)],
}


@pytest.mark.parametrize(
    ("in_channels", "num_classes", "encoder"), [(1, 2, "plain"), (5, 3, "vgg16")]
)
def test_is_a_segmentation_network(
    check_segmentation_network, in_channels, num_classes, encoder
) -> None:
    check_segmentation_network(
        lambda: UNet(in_channels, num_classes, encoder=encoder), in_channels, num_classes, stride=16
    )


def test_layers_are_the_58_of_the_papers(count_operations) -> None:
    with torch.device("meta"):
        counts = count_operations(UNet())
    assert counts == {
        "conv2d": 19,
        "relu": 22,
        "max_pool2d": 4,
        "dropout": 2,
        "conv_transpose2d": 4,
        "cat": 4,
    }
    # MATLAB's list also has the input, the softmax and the pixel classification.
    assert counts.total() + 3 == 58


def test_layers_on_vgg16_are_three_convolutions_more(count_operations) -> None:
    with torch.device("meta"):
        counts = count_operations(UNet(encoder="vgg16"))
    assert counts == {
        "conv2d": 22,
        "relu": 25,
        "max_pool2d": 4,
        "dropout": 2,
        "conv_transpose2d": 4,
        "cat": 4,
    }


@pytest.mark.parametrize(
    ("encoder", "first_filters"), [("plain", 64), ("plain", 12), ("vgg16", 64)]
)
def test_number_of_parameters(encoder: str, first_filters: int) -> None:
    def convolution(inputs: int, outputs: int, size: int) -> int:
        return (inputs * size * size + 1) * outputs

    widths = [width * first_filters // 64 for stage in STAGES[encoder] for width in stage]
    expected = sum(convolution(*pair, 3) for pair in zip([3, *widths], widths, strict=False))
    below = widths[-1]
    for width in (8 * first_filters, 4 * first_filters, 2 * first_filters, first_filters):
        expected += (
            convolution(below, width, 2)
            + convolution(2 * width, width, 3)
            + convolution(width, width, 3)
        )
        below = width
    expected += convolution(first_filters, 5, 1)
    with torch.device("meta"):
        network = UNet(3, 5, encoder=encoder, first_filters=first_filters)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_mixed_unet_has_both_poolings_and_the_weights_of_the_other(count_operations) -> None:
    with torch.device("meta"):
        mixed, plain = UNet(pooling="mixed"), UNet()
        counts = count_operations(mixed)
        torch.jit.script(mixed)
    assert counts["max_pool2d"] == counts["avg_pool2d"] == 4
    assert [(k, v.shape) for k, v in mixed.state_dict().items()] == [
        (k, v.shape) for k, v in plain.state_dict().items()
    ]


@pytest.mark.parametrize("encoder", ["plain", "vgg16"])
def test_dropout_everywhere_keeps_the_names_of_the_weights(count_operations, encoder: str) -> None:
    with torch.device("meta"):
        network, usual = UNet(encoder=encoder, dropout_everywhere=True), UNet(encoder=encoder)
        assert count_operations(network)["dropout"] == 9
        torch.jit.script(network)
    assert [(k, v.shape) for k, v in network.state_dict().items()] == [
        (k, v.shape) for k, v in usual.state_dict().items()
    ]
    # What Grad-CAM looks at is the end of the bridge in both.
    end = {"plain": "encoder.features.23", "vgg16": "encoder.features.29"}[encoder]
    for one in (network, usual):
        layers = [name for name, _ in one.named_modules() if name.startswith("encoder.features.")]
        assert [name for name in layers if "dropout" not in name][-1] == end


def pool_by_hand(x: torch.Tensor, pooling: str, training: bool) -> torch.Tensor:
    highest, average = F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
    if pooling == "max":
        return highest
    share = (torch.rand(*x.shape[:2], 1, 1) < 0.5).double() if training else 0.5
    return share * highest + (1 - share) * average


def unet_by_hand(
    network: UNet, x: torch.Tensor, encoder: str, pooling: str, training: bool, everywhere: bool
) -> torch.Tensor:
    """The 58 layers one after the other, with the network's parameters in their order."""
    dropout = 0.5 if training else 0.0
    parameters = iter(network.parameters())

    def convolve_relu(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, next(parameters), next(parameters), padding=1).clamp(min=0)

    skips = []
    for number, stage in enumerate(STAGES[encoder]):
        if skips:
            x = pool_by_hand(skips[-1], pooling, training)
        for convolution in range(len(stage)):
            x = convolve_relu(x)
            if everywhere and convolution == 0:
                x = F.dropout(x, dropout)
        if number >= 3 and not everywhere:
            x = F.dropout(x, dropout)
        skips.append(x)
    for skip in skips[-2::-1]:
        up = F.conv_transpose2d(x, next(parameters), next(parameters), stride=2).clamp(min=0)
        x = convolve_relu(torch.cat([up, skip], 1))
        x = convolve_relu(F.dropout(x, dropout) if everywhere else x)
    return F.conv2d(x, next(parameters), next(parameters))


@pytest.mark.parametrize(
    ("encoder", "pooling", "everywhere"),
    [
        ("plain", "max", False),
        ("vgg16", "max", False),
        ("plain", "mixed", False),
        ("plain", "max", True),
        ("vgg16", "max", True),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_layers_written_out(
    encoder: str, pooling: str, everywhere: bool, training: bool
) -> None:
    torch.manual_seed(0)
    network = UNet(3, 4, encoder=encoder, pooling=pooling, dropout_everywhere=everywhere)
    network = network.double().train(training)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(1)
        y = network(x)
        torch.manual_seed(1)
        expected = unet_by_hand(network, x, encoder, pooling, training, everywhere)
    torch.testing.assert_close(y, expected)


def test_first_weights_are_those_of_he() -> None:
    torch.manual_seed(0)
    network = UNet()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            n = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            tolerance = 4 / (2 * module.weight.numel()) ** 0.5  # four standard errors
            assert module.weight.std().item() == pytest.approx((2 / n) ** 0.5, rel=tolerance)
            assert not module.bias.any()


def test_dropout_is_a_setting() -> None:
    torch.manual_seed(0)
    network = UNet(dropout=0.0).train()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))


def test_encoder_weights_reach_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = VGGEncoder(3)
    path = tmp_path / "vgg16.pth"
    torch.save(source.state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    network = UNet(3, encoder="vgg16", encoder_weights=path, encoder_weights_sha256=sha256)
    assert all(
        torch.equal(value, source.state_dict()[key])
        for key, value in network.encoder.state_dict().items()
    )
    with pytest.raises(InputError, match="SHA-256"):
        UNet(3, encoder="vgg16", encoder_weights=path, encoder_weights_sha256="0" * 64)
    with pytest.raises(
        InputError, match=r"vgg16.pth' with encoder 'plain'; expected weights with 'vgg16' only"
    ):
        UNet(3, encoder_weights=path, encoder_weights_sha256=sha256)


def test_other_encoders_are_refused() -> None:
    with pytest.raises(InputError, match="encoder is 'resnet18'; expected 'plain' or 'vgg16'"):
        UNet(encoder="resnet18")


def test_vgg16_has_its_own_widths() -> None:
    with pytest.raises(InputError, match="first_filters is 32; expected 64 with encoder 'vgg16'"):
        UNet(encoder="vgg16", first_filters=32)


def test_other_poolings_are_refused() -> None:
    with pytest.raises(InputError, match="pooling is 'average'; expected 'max' or 'mixed'"):
        UNet(pooling="average")
