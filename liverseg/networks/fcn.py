"""FCN-8s on VGG-16."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from liverseg.networks.blocks import crop, initialise_he, pad_to_multiple
from liverseg.networks.encoders import VGGEncoder, load_imagenet_weights


class FCN8s(nn.Module):
    """FCN-8s on VGG-16, for 2-D images of any size.

    Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, in the form of
    MATLAB's ``fcnLayers`` (51 layers): fc6 and fc7 as convolutions with ReLU and dropout 0.5, a 1x1
    convolution each for the scores of fc7, of the fourth and of the third pooling; the coarse
    scores are up-sampled by 2 and added to the next finer ones twice, then up-sampled by 8.

    Two things differ, and neither has a parameter. MATLAB pads the image by 100 so that fc6 without
    padding reaches its border, and crops every map to match; here fc6 has the same padding, so that
    maps lie on each other as they are and nothing is computed outside the image. And the
    up-sampling is bilinear interpolation where MATLAB has transposed convolutions with fixed
    bilinear kernels: the values are equal but for the border, where the kernels fade into zeros
    (which MATLAB's cropping cuts off), and there are no kernels to keep in the weights file.

    The image is padded below and on the right to a multiple of 32 with its edge pixels, and the
    logits are cropped back.

    Args:
        in_channels: channels of the input: 1, or 3 or 5 neighbouring slices.
        num_classes: channels of the output, background included.
        fc_channels: output channels of fc6 and fc7. With VGG-16's 4096 they hold nine
            tenths of the weights.
        encoder_weights: path or URL of torchvision's ``vgg16`` state dict; None starts from random
            weights. Its fc6 and fc7 are left out if ``fc_channels`` is not 4096.
        encoder_weights_sha256: SHA-256 of that file, needed with it. For torchvision's
            ``vgg16-397923af.pth`` it is
            397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0.

    Raises:
        InputError: the encoder weights cannot be used.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        *,
        fc_channels: int = 4096,
        encoder_weights: str | Path | None = None,
        encoder_weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = VGGEncoder(in_channels, fc_channels=fc_channels)
        self.score_fc7 = nn.Conv2d(fc_channels, num_classes, 1)
        self.score_pool4 = nn.Conv2d(512, num_classes, 1)
        self.score_pool3 = nn.Conv2d(256, num_classes, 1)
        initialise_he(self)
        if encoder_weights is not None:
            load_imagenet_weights(self.encoder, encoder_weights, encoder_weights_sha256)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, num_classes, H, W)."""
        height, width = x.shape[-2], x.shape[-1]
        ends, pooled = self.encoder(pad_to_multiple(x, 32))
        y = _upsample(self.score_fc7(ends[-1]), 2) + self.score_pool4(pooled[3])
        y = _upsample(y, 2) + self.score_pool3(pooled[2])
        return crop(_upsample(y, 8), height, width)


def _upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
