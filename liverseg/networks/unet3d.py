"""3-D U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet3D(nn.Module):
    """Segment with the 3-D U-Net of Çiçek et al., with convolutions that keep the size.

    "3D U-Net: learning dense volumetric segmentation from sparse annotation", MICCAI 2016. For 3
    channels in and 3 classes it has the 19,069,955 parameters named there, and batch norm's 2,336
    scales.

    Four resolutions. Each stage of the encoder is two 3x3x3 convolutions with batch norm and ReLU,
    of which the second doubles the width, before a 2x2x2 max pooling; each stage of the decoder a
    2x2x2 up-convolution that keeps the width, the encoder's features beside it, and two
    convolutions. MONAI's `BasicUNet` is another network: five resolutions, the width doubled by the
    first convolution and halved by the up-convolution.

    Args:
        in_channels: channels of the volume.
        num_classes: channels of the logits, background included.
        width: of the first convolution, 32 in the paper; all others grow with it.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 2, *, width: int = 32) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 16)]
        stages = zip([in_channels, *widths[1:4]], widths[:4], widths[1:], strict=True)
        self.encoder = nn.ModuleList(_two_convolutions(*stage) for stage in stages)
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(n, n, 2, stride=2, bias=False) for n in reversed(widths[2:])
        )
        self.decoder = nn.ModuleList(
            _two_convolutions(n + n // 2, n // 2, n // 2) for n in reversed(widths[2:])
        )
        self.classifier = nn.Conv3d(widths[1], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map volumes (B, in_channels, H, W, D) to logits (B, num_classes, H, W, D).

        Sizes that are no multiple of 8 are padded to one by repeating the border, and the
        padding is taken off again.
        """
        height, width, depth = x.shape[-3], x.shape[-2], x.shape[-1]
        y = F.pad(x, (0, -depth % 8, 0, -width % 8, 0, -height % 8), mode="replicate")
        skips: list[Tensor] = []
        for stage in self.encoder:
            if skips:
                y = F.max_pool3d(y, 2)
            y = stage(y)
            skips.append(y)
        y = skips.pop()
        for up, stage in zip(self.up, self.decoder, strict=True):
            y = stage(torch.cat([up(y), skips.pop()], dim=1))
        return self.classifier(y)[..., :height, :width, :depth]


def _two_convolutions(in_channels: int, middle: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((in_channels, middle), (middle, out_channels)):
        convolution = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
