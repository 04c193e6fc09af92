"""Encoders with the parameter names of torchvision's networks, so that their ImageNet weights load."""

from __future__ import annotations

import torch
from torch import nn

from liverseg.errors import InputError
from liverseg.networks.weights import fetch, load_state_dict, read_state_dict


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut: He et al., "Deep residual learning", CVPR 2016, figure 5 left.

    Args:
        in_channels: input channels.
        channels: output channels.
        stride: of the first convolution.
        dilations: of the first and the second convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=first, dilation=first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Identity()
            if in_channels == channels
            else nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) → (B, channels, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18Encoder(nn.Module):
    """ResNet-18 without its classifier, with dilation in place of the last strides.

    A stage whose stride is taken away keeps the previous dilation in its first convolution and doubles it from there
    on, so every kernel still looks at what it was trained on: Chen et al., "Rethinking atrous convolution for semantic
    image segmentation", 2017, section 3.

    Args:
        in_channels: image channels.
        output_stride: input size divided by the size of the last features: 16 or 8.
        weights: path or URL of torchvision's `resnet18` state dict. The first convolution is adapted to `in_channels`.
        weights_sha256: the file's sha256.

    Raises:
        InputError: for another output stride, or weights that do not fit.
    """

    low_channels = 64
    high_channels = 512

    def __init__(
        self,
        in_channels: int = 1,
        output_stride: int = 16,
        weights: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise InputError(f"output_stride is {output_stride}, expected 16 or 8: set it to one of these.")
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, stride=1, dilations=(1, 1))
        self.layer2 = _stage(64, 128, stride=2, dilations=(1, 1))
        self.layer3 = _stage(128, 256, *((1, (1, 2)) if output_stride == 8 else (2, (1, 1))))
        self.layer4 = _stage(256, 512, 1, (2, 4) if output_stride == 8 else (1, 2))
        if weights is not None:
            path = fetch(weights, weights_sha256)
            state = {key: value for key, value in read_state_dict(path).items() if not key.startswith("fc.")}
            if "conv1.weight" in state:
                state["conv1.weight"] = adapt_first_convolution(state["conv1.weight"], in_channels)
            load_state_dict(self, state, str(path))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, in_channels, H, W) → features (B, 64, H/4, W/4) and (B, 512, H/output_stride, W/output_stride)."""
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return low, self.layer4(self.layer3(self.layer2(low)))


def _stage(in_channels: int, channels: int, stride: int, dilations: tuple[int, int]) -> nn.Sequential:
    before, after = dilations
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride, (before, after)), BasicBlock(channels, channels, 1, (after, after))
    )


def adapt_first_convolution(weight: torch.Tensor, in_channels: int) -> torch.Tensor:
    """Turn a convolution for RGB, (N, 3, h, w), into one for `in_channels`: (N, in_channels, h, w).

    Each channel gets the sum over RGB divided by `in_channels`, so that a grey image repeated over the channels gives
    what it gave as RGB.
    """
    return weight.sum(1, keepdim=True).div(in_channels).repeat(1, in_channels, 1, 1)
