"""The simple baseline that papers compare their networks with."""

from __future__ import annotations

from torch import Tensor, nn

from liverseg.networks.blocks import crop, initialise_he, pad_to_multiple


class SimpleNet(nn.Module):
    """Down and up once: the "Simple" baseline, for 2-D images of any size.

    The paper on liver segmentation from CT and MRI that compares its networks with "Simple"
    never defines it. This is our reading: the ten-layer network of MATLAB's introduction to
    semantic segmentation, as the paper's other networks are MATLAB's. 3x3 convolution with ReLU,
    2x2 max pooling, 3x3 convolution with ReLU, 4x4 up-convolution of stride 2, 1x1 classifier;
    64 filters everywhere.

    The image is padded below and on the right to even sizes with its edge pixels, and the
    logits are cropped back.

    Args:
        in_channels: channels of the input: 1, or 3 or 5 neighbouring slices.
        num_classes: channels of the output, background included.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1),
            nn.Conv2d(64, num_classes, 1),
        )
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, num_classes, H, W)."""
        return crop(self.layers(pad_to_multiple(x, 2)), x.shape[-2], x.shape[-1])
