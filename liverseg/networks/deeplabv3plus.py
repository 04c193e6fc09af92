"""DeepLab v3+ on ResNet-18."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liverseg.networks.blocks import ASPP, conv_bn_relu, crop, pad_to_multiple
from liverseg.networks.encoders import ResNet18Encoder, load_imagenet_weights


class DeepLabV3Plus(nn.Module):
    """DeepLab v3+ on a dilated ResNet-18, for 2-D images of any size.

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, in the form of MATLAB's ``deeplabv3plusLayers`` with ``resnet18``:
    ASPP, 1x1 to 256, up-sampled to stride 4, joined with the low-level features through 1x1 to
    48, two 3x3 to 256, classifier, up-sampled by 4. Every convolution but the classifier has
    batch norm and ReLU.

    The image is padded below and on the right to a multiple of ``output_stride`` with its edge
    pixels, and the logits are cropped back.

    Args:
        in_channels: channels of the input: 1, or 3 or 5 neighbouring slices.
        num_classes: channels of the output, background included.
        output_stride: 16 or 8, input pixels per pixel of the high-level features; 8 takes
            about twice the time.
        aspp_rates: dilation of each ASPP branch; rate 1 is a 1x1 convolution. With output stride 8,
            (1, 12, 24, 36) reaches as far as the default does with 16.
        image_pooling: add the ASPP branch that averages over the whole image.
        dropout: probability with which a value of the ASPP output is dropped in training.
        encoder_weights: path or URL of torchvision's ``resnet18`` state dict; None starts
            from random weights.
        encoder_weights_sha256: SHA-256 of that file, needed with it. For torchvision's
            ``resnet18-f37072fd.pth`` it is
            f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec.

    Raises:
        InputError: ``output_stride`` is neither 16 nor 8, or the encoder weights cannot be used.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        *,
        output_stride: int = 16,
        aspp_rates: Sequence[int] = (1, 6, 12, 18),
        image_pooling: bool = False,
        dropout: float = 0.0,
        encoder_weights: str | Path | None = None,
        encoder_weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.encoder = ResNet18Encoder(in_channels, output_stride)
        self.aspp = ASPP(512, aspp_rates, image_pooling)
        self.dropout = nn.Dropout(dropout)
        self.skip = conv_bn_relu(64, 48, 1)
        self.decoder = nn.Sequential(conv_bn_relu(256 + 48, 256, 3), conv_bn_relu(256, 256, 3))
        self.classifier = nn.Conv2d(256, num_classes, 1)
        if encoder_weights is not None:
            load_imagenet_weights(self.encoder, encoder_weights, encoder_weights_sha256)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, num_classes, H, W)."""
        height, width = x.shape[-2], x.shape[-1]
        x = pad_to_multiple(x, self.output_stride)
        low, high = self.encoder(x)
        high = self.dropout(self.aspp(high))
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.classifier(self.decoder(torch.cat([high, self.skip(low)], dim=1)))
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return crop(y, height, width)
