"""U-Net of 58 layers, plain or on VGG-16."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks.blocks import crop, initialise_he, pad_to_multiple
from liverseg.networks.encoders import VGG16_STAGES, VGGEncoder, load_imagenet_weights

ENCODERS = ("plain", "vgg16")


class UNet(nn.Module):
    """U-Net with four halvings and 64 first filters, for 2-D images of any size.

    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI
    2015, in the form of MATLAB's ``unetLayers`` (58 layers): two 3x3 convolutions with ReLU per
    stage, 2x2 max pooling between stages; after the fifth stage, the bridge, four times a 2x2
    up-convolution with ReLU, joined with the map at the end of the encoder's stage of the same
    size, and two 3x3 convolutions with ReLU; a 1x1 classifier. The 3x3 convolutions keep the size
    (same padding), none has batch norm, and all start from He's weights. Dropout is at the end of
    the fourth stage, before skip and pooling, and at the end of the bridge.

    The papers on losses and networks for liver and abdominal organs say that the encoder is VGG-16,
    while their layer counts (22 encoder, 5 bridge, 28 decoder, 3 output) are those of the plain
    network. ``encoder="vgg16"`` is what their text describes: the five groups of VGG-16's 13
    convolutions take the place of the five stages, the last group that of the bridge, so that
    depth, skips (before each of the four poolings) and decoder stay as they are. VGG-16's fifth
    pooling, after which nothing would follow, is left out.

    With ``pooling="mixed"`` it is the network of Mixed U-Net n.d.: nine levels of two 3x3
    convolutions with ReLU, dropout 0.5, and mixed pooling in the place of max pooling. What that
    paper calls "upsampling", with no more detail, is read as the U-Net's up-convolution. Its
    sigmoid belongs to the loss: two logits whose softmax is the sigmoid of their difference.

    The image is padded below and on the right to a multiple of 16 with its edge pixels, and the
    logits are cropped back.

    Args:
        in_channels: channels of the input: 1, or 3 or 5 neighbouring slices.
        num_classes: channels of the output, background included.
        encoder: "plain" or "vgg16".
        pooling: "max" or "mixed" (`MixedPool2d`). The weights of one fit the other.
        dropout: probability with which a value is dropped in training at the end of the fourth
            stage and the bridge.
        dropout_everywhere: drop values after the first convolution of every stage of encoder and
            decoder instead, as IJIES 2022 says of its localisation network (section 3.3): "many
            blocks, a combination of convolutional, dropout, max-pooling layers". The weights of
            one fit the other.
        first_filters: of the first stage of the plain encoder; they double from stage to stage.
        encoder_weights: path or URL of torchvision's ``vgg16`` state dict; None starts
            from random weights.
        encoder_weights_sha256: SHA-256 of that file, needed with it. For torchvision's
            ``vgg16-397923af.pth`` it is
            397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0.

    Raises:
        InputError: ``encoder`` or ``pooling`` is neither of its two, ``first_filters`` is not
            VGG-16's, or the encoder weights cannot be used.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        *,
        encoder: str = "plain",
        pooling: str = "max",
        dropout: float = 0.5,
        dropout_everywhere: bool = False,
        first_filters: int = 64,
        encoder_weights: str | Path | None = None,
        encoder_weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise InputError(
                f"encoder is {encoder!r}; expected 'plain' or 'vgg16': set one of the two."
            )
        if encoder_weights is not None and encoder != "vgg16":
            found = f"encoder_weights is {str(encoder_weights)!r} with encoder {encoder!r}"
            raise InputError(
                f"{found}; expected weights with 'vgg16' only: set encoder to "
                "'vgg16' or leave them out."
            )
        if encoder == "vgg16" and first_filters != 64:
            raise InputError(
                f"first_filters is {first_filters}; expected 64 with encoder 'vgg16': leave it out."
            )
        widths = [first_filters * 2**stage for stage in range(5)]
        stages = VGG16_STAGES if encoder == "vgg16" else [(width, width) for width in widths]
        self.encoder = VGGEncoder(
            in_channels,
            stages,
            dropout=dropout,
            dropout_everywhere=dropout_everywhere,
            pooling=pooling,
        )
        self.decoder = nn.ModuleList()
        channels = stages[-1][-1]
        for width in widths[3::-1]:
            self.decoder.append(_UpStage(channels, width, dropout if dropout_everywhere else 0))
            channels = width
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise_he(self)
        if encoder_weights is not None:
            load_imagenet_weights(self.encoder, encoder_weights, encoder_weights_sha256)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, num_classes, H, W)."""
        height, width = x.shape[-2], x.shape[-1]
        skips, _ = self.encoder(pad_to_multiple(x, 16))
        y = skips.pop()
        for stage in self.decoder:
            y = stage(y, skips.pop())
        return crop(self.classifier(y), height, width)


class _UpStage(nn.Module):
    """Up-convolve (B, in_channels, H, W), join the skip (B, width, 2H, 2W), and convolve twice.

    Between the two convolutions values are dropped in training.
    """

    def __init__(self, in_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(in_channels, width, 2, stride=2), nn.ReLU(inplace=True)
        )
        layers: dict[str, nn.Module] = {
            "0": nn.Conv2d(2 * width, width, 3, padding=1),
            "1": nn.ReLU(inplace=True),
        }
        if dropout > 0:  # under a name, so that the weights keep theirs
            layers["dropout"] = nn.Dropout(dropout)
        layers |= {"2": nn.Conv2d(width, width, 3, padding=1), "3": nn.ReLU(inplace=True)}
        self.convolutions = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolutions(torch.cat([self.up(x), skip], dim=1))
