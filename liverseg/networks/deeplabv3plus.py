"""DeepLab v3+ on ResNet-18."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from liverseg.networks.blocks import conv_bn_relu
from liverseg.networks.encoders import ResNet18Encoder


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel dilated convolutions, joined by a 1×1 convolution.

    Chen et al., "Rethinking atrous convolution for semantic image segmentation", 2017, figure 5. A rate of 1 is a 1×1
    convolution, as there.

    Args:
        in_channels: input channels.
        rates: dilation of each branch.
        image_pooling: add a branch with the mean over the image.
        channels: channels of each branch and of the output.
    """

    def __init__(self, in_channels: int, rates: Sequence[int], image_pooling: bool, channels: int = 256) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            conv_bn_relu(in_channels, channels, 1 if rate == 1 else 3, dilation=rate) for rate in rates
        )
        # No batch norm on the pooled 1×1 features: over a batch of one it has nothing to compute statistics from.
        self.pooling = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True)
        ) if image_pooling else None
        self.project = conv_bn_relu(channels * (len(rates) + int(image_pooling)), channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) → (B, channels, H, W)."""
        features = [branch(x) for branch in self.branches]
        if self.pooling is not None:
            features.append(self.pooling(x).expand(-1, -1, x.shape[2], x.shape[3]))
        return self.project(torch.cat(features, 1))


class DeepLabV3Plus(nn.Module):
    """DeepLab v3+ with a ResNet-18 encoder, as papers A and B used it: MATLAB's 100 layers.

    Chen et al., "Encoder-decoder with atrous separable convolution for semantic image segmentation", ECCV 2018, here
    with plain convolutions. Takes images of any size: they are padded at the bottom and right to a multiple of the
    output stride by repeating the edge, which unlike zeros puts no new contour there, and the logits are cropped back.

    Args:
        in_channels: 1 for a slice, 3 or 5 for a slice with its neighbours (2.5-D).
        num_classes: output channels, background included.
        output_stride: input size divided by the size of the deepest features: 16, or 8 for finer ones.
        aspp_rates: dilations of the spatial pyramid at output stride 16; they double at 8.
        image_pooling: add the image-wide mean to the pyramid.
        dropout: probability before the decoder and before the classifier.
        encoder_weights: path or URL of torchvision's `resnet18` file; `None` starts from random weights.
        encoder_weights_sha256: sha256 of that file.

    Raises:
        InputError: for another output stride, or weights that do not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        output_stride: int = 16,
        aspp_rates: Sequence[int] = (1, 6, 12, 18),
        image_pooling: bool = False,
        dropout: float = 0.0,
        encoder_weights: str | None = None,
        encoder_weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.encoder = ResNet18Encoder(in_channels, output_stride, encoder_weights, encoder_weights_sha256)
        rates = [rate if rate == 1 else rate * 16 // output_stride for rate in aspp_rates]
        self.aspp = ASPP(self.encoder.high_channels, rates, image_pooling)
        self.dropout = nn.Dropout(dropout)
        self.low_level = conv_bn_relu(self.encoder.low_channels, 48, 1)
        self.decoder = nn.Sequential(conv_bn_relu(256 + 48, 256, 3), conv_bn_relu(256, 256, 3))
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) → logits (B, num_classes, H, W)."""
        height, width = x.shape[2], x.shape[3]
        stride = self.output_stride
        padded = F.pad(x, [0, -width % stride, 0, -height % stride], mode="replicate")
        low, high = self.encoder(padded)
        low = self.low_level(low)
        high = _upsample(self.dropout(self.aspp(high)), low.shape[2], low.shape[3])
        features = self.dropout(self.decoder(torch.cat([high, low], 1)))
        logits = _upsample(self.classifier(features), padded.shape[2], padded.shape[3])
        return logits[:, :, :height, :width]


def _upsample(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(x, size=[height, width], mode="bilinear", align_corners=False)
