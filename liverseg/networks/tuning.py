"""Tune a segmentation: patches of the image in the encoder, a location map on every skip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks.blocks import ASPP, crop, initialise_he, pad_to_multiple

DILATIONS = (1, 2, 4, 8)
ASPP_RATES = (1, 6, 12, 18)


class TuningNet(nn.Module):
    """Refine the segmentation of one target, given the image and a prior of where the target is.

    Any image size.

    The tuning network of IJIES 2022 (sections 3.4, 3.5 and 3.7). The paper gives its parts and its
    number of parameters, 38,059,141, of which 3,072 are not trained; widths and layers are in
    figures without numbers. With the defaults this reading has 38,057,992, of which 3,072 are the
    running statistics of six batch norms of 256:

    - five encoder levels of 64 to 1024 filters with 2x2 max pooling between them, as in U-Net. The
      first starts with four parallel 3x3 convolutions of 16 filters and dilations 1, 2, 4, 8. Each
      level is a residual block: two 3x3 convolutions, and the input added, through a 1x1
      convolution where the widths differ.
    - at 1/2, 1/4 and 1/8, patches of the image, stacked as channels, pass a 1x1 convolution to as
      many channels as the pooled map has and are joined with it, so that the block keeps its width.
    - ASPP as in DeepLab v3: 1x1, 3x3 at rates 6, 12, 18, and image pooling, each with
      batch norm; 1x1 to 256.
    - decoder: up-sampling without parameters (nearest), the skip, two 3x3
      convolutions, as in U-Net.
    - ConvBox, one a level: the prior max-pooled to the level's size, 3x3 convolutions to 64, 64 and
      1 channels, a sigmoid. This location map multiplies the skip.
    - a 1x1 side output at each decoder level; that at full resolution is the network's output.
    - dropout between the two convolutions of every block.

    The image is padded below and on the right to a multiple of 16 with its edge pixels, and the
    logits are cropped back. Batch norm needs more than one value a channel, so training needs
    images larger than 16 x 16.

    Args:
        in_channels: channels of the image, without the prior.
        first_filters: filters of the first level, a multiple of four; they double
            from level to level.
        dropout: probability with which a value is dropped in training.
        patches: "tiles" cuts the image into f x f non-overlapping tiles, as the paper
            says; "unshuffle" takes every f-th pixel, so that a channel shows the whole
            image and stays aligned with the map it is joined with; None leaves them out.
            Both stack f² channels at 1/f.
        patch_levels: the f at which patches are joined, any of 2, 4, 8 (at 512 x 512:
            256, 128 and 64 pixels).
        use_prior: False leaves the ConvBoxes out; the input keeps its prior channel,
            which is then ignored.

    Raises:
        InputError: ``patches``, ``patch_levels`` or ``first_filters`` is none of these.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        first_filters: int = 64,
        dropout: float = 0.2,
        patches: str | None = "tiles",
        patch_levels: Sequence[int] = (2, 4, 8),
        use_prior: bool = True,
    ) -> None:
        super().__init__()
        if patches not in ("tiles", "unshuffle", None):
            raise InputError(
                f"patches is {patches!r}; expected 'tiles', 'unshuffle' or "
                "null: set one of the three."
            )
        if not set(patch_levels) <= {2, 4, 8}:
            raise InputError(
                f"patch_levels is {list(patch_levels)}; expected some of 2, "
                "4 and 8: leave others out."
            )
        if first_filters < 4 or first_filters % 4:
            raise InputError(
                f"first_filters is {first_filters}; expected a multiple of "
                "4: 64 is the paper's size."
            )
        self.in_channels = in_channels
        widths = [first_filters * 2**level for level in range(5)]
        self.first = _DilatedConvolutions(in_channels, first_filters)
        self.first_block = _ResidualBlock(first_filters, first_filters, dropout)
        self.encoder = nn.ModuleList()
        for level in range(1, 5):
            factor, below = 2**level, widths[level - 1]
            joined = None
            if patches is not None and factor in patch_levels:
                joined = _Patches(in_channels, below, factor, unshuffle=patches == "unshuffle")
            self.encoder.append(_EncoderStage(below, widths[level], joined, dropout))
        self.aspp = ASPP(widths[-1], ASPP_RATES, image_pooling=True, image_pooling_norm=True)
        self.boxes = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.outputs = nn.ModuleList()
        channels = 256
        for level in (3, 2, 1, 0):
            width = widths[level]
            self.boxes.append(ConvBox(first_filters, 2**level) if use_prior else _Ones())
            self.decoder.append(_DecoderStage(channels, width, dropout))
            self.outputs.append(nn.Conv2d(width, 1, 1))
            channels = width
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, with the prior as last channel, to logits of the target.

        Their sigmoid is its probability.

        Args:
            x: (B, in_channels + 1, H, W), the prior from 0 to 1.

        Returns:
            In eval mode (B, 1, H, W). In training mode, but not in TorchScript, a list of the side
            outputs from full resolution to 1/8, (B, 1, H, W), …, (B, 1, H / 8, W / 8) with sizes
            rounded up, for `LevelRampLoss` or MONAI's `DeepSupervisionLoss`.
        """
        height, width = x.shape[-2], x.shape[-1]
        image, prior = pad_to_multiple(x, 16).split([self.in_channels, 1], dim=1)
        y = self.first_block(self.first(image))
        skips = [y]
        for stage in self.encoder:
            y = stage(y, image)
            skips.append(y)
        y = self.aspp(skips.pop())
        sides = []
        for box, stage, output in zip(self.boxes, self.decoder, self.outputs, strict=True):
            y = stage(y, skips.pop() * box(prior))
            sides.append(output(y))
        if not torch.jit.is_scripting() and self.training:
            factors = (1, 2, 4, 8)
            return [  # type: ignore[return-value]
                crop(side, -(-height // f), -(-width // f))
                for side, f in zip(sides[::-1], factors, strict=True)
            ]
        return crop(sides[-1], height, width)


class ConvBox(nn.Module):
    """Location map of the prior: max pooling and three convolutions (section 3.8, figure 12).

    Args:
        filters: of the first two convolutions.
        factor: the map has 1 / ``factor`` of the prior's size.
    """

    def __init__(self, filters: int, factor: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.MaxPool2d(factor),
            nn.Conv2d(1, filters, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(filters, filters, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(filters, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, prior: Tensor) -> Tensor:
        """Map (B, 1, H, W) to (B, 1, H / factor, W / factor), from 0 to 1."""
        return self.layers(prior)


class _Ones(nn.Module):
    """The location map that changes nothing."""

    def forward(self, prior: Tensor) -> Tensor:
        return torch.ones_like(prior[:, :, :1, :1])


class _DilatedConvolutions(nn.Module):
    """Parallel 3x3 convolutions of different dilation with ReLU, joined."""

    def __init__(self, in_channels: int, filters: int) -> None:
        super().__init__()
        each = filters // len(DILATIONS)
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, each, 3, padding=d, dilation=d) for d in DILATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([branch(x) for branch in self.branches], dim=1))


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added (section 3.7, figure 11)."""

    def __init__(self, in_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.shortcut = nn.Identity() if in_channels == width else nn.Conv2d(in_channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolutions(x) + self.shortcut(x))


class _Patches(nn.Module):
    """Stack patches of the image (B, C, H, W) as C · factor² channels at 1 / factor; convolve 1x1.

    ReLU follows.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, unshuffle: bool) -> None:
        super().__init__()
        self.factor = factor
        self.unshuffle = unshuffle
        self.convolution = nn.Conv2d(in_channels * factor**2, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        f = self.factor
        if self.unshuffle:
            x = F.pixel_unshuffle(image, f)
        else:
            b, c, height, width = image.shape
            tiles = image.reshape(b, c, f, height // f, f, width // f).transpose(3, 4)
            x = tiles.reshape(b, c * f * f, height // f, width // f)
        return F.relu(self.convolution(x))


class _EncoderStage(nn.Module):
    """Pool (B, in_channels, H, W) 2x2, join patches of the image, and pass a residual block."""

    def __init__(
        self, in_channels: int, width: int, patches: nn.Module | None, dropout: float
    ) -> None:
        super().__init__()
        self.patches = patches
        self.block = _ResidualBlock(
            in_channels if patches is None else 2 * in_channels, width, dropout
        )

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2)
        if self.patches is not None:
            x = torch.cat([x, self.patches(image)], dim=1)
        return self.block(x)


class _DecoderStage(nn.Module):
    """Up-sample (B, in_channels, H, W), join the skip (B, width, 2H, 2W), convolve twice 3x3."""

    def __init__(self, in_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels + width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolutions(
            torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1)
        )
