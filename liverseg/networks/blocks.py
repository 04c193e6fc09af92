"""Build blocks that several networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad images (B, C, H, W) below and on the right to multiples of ``multiple``.

    The padding repeats the edge pixels: zeros would draw an edge into any image whose background is
    not 0, and the value of air depends on the intensity scaling before the network.
    """
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode="replicate")


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Crop (B, C, H, W) to the upper left, without what ``pad_to_multiple`` has added."""
    # By negative padding: a slice makes torch.export tell padded sizes from others and refuse one
    # kind.
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


def two_class_logits(logits: Tensor) -> Tensor:
    """Return logits (B, 2, …) of two classes for those of the foreground alone, (B, 1, …).

    Logits of more channels stay as they are.

    Their softmax is the sigmoid of the one.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def centre(x: Tensor, like: Tensor) -> Tensor:
    """Return the centre of `x` (B, C, …), as large as `like` along all but the first two axes."""
    for axis in range(2, x.ndim):
        more = x.shape[axis] - like.shape[axis]
        x = x.narrow(axis, more // 2, like.shape[axis])
    return x


class MixedPool2d(nn.Module):
    """Max or average pooling, drawn at random in training; their mean at test.

    λ·max + (1 − λ)·average with λ 0 or 1 at equal odds (Yu et al., "Mixed Pooling for Convolutional
    Neural Networks", RSKT 2014). λ is drawn in each forward pass, for each image and feature map on
    its own, from torch's generator of the device. At test λ is its expectation, 1/2, so the weights
    carry no record of the draws.

    Args:
        kernel_size: and stride, in pixels.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / kernel_size, W / kernel_size), sizes rounded down."""
        highest = F.max_pool2d(x, self.kernel_size)
        average = F.avg_pool2d(x, self.kernel_size)
        if not self.training:
            return (highest + average) / 2
        return torch.where(
            torch.rand(x.shape[0], x.shape[1], 1, 1, device=x.device) < 0.5, highest, average
        )


def initialise_he(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / n) and set their biases to 0, in place.

    n is kernel height x kernel width x input channels, for up-convolutions too: MATLAB's
    ``WeightsInitializer="he"``, which its ``unetLayers`` gives to every convolution (He et al.,
    "Delving deep into rectifiers", ICCV 2015).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            inputs = module.in_channels * module.weight[0, 0].numel()
            nn.init.normal_(module.weight, std=(2 / inputs) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ASPP(nn.Module):
    """Pool with parallel convolutions of different dilation: ASPP (Chen et al. 2017, section 3.3).

    Args:
        in_channels: channels of the input.
        rates: dilation of each branch; rate 1 is a 1x1 convolution, the others are 3x3.
        image_pooling: add a branch that averages over the whole map. It has a bias in place of
            batch norm, which cannot be computed from the single value per channel that a batch of
            one image leaves in training.
        image_pooling_norm: give that branch batch norm all the same, as Chen et al. do; a batch of
            one image is then normalised with the running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int],
        image_pooling: bool,
        image_pooling_norm: bool = False,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            conv_bn_relu(in_channels, 256, 1 if rate == 1 else 3, rate) for rate in rates
        )
        self.image_pooling: nn.Module | None = None
        if image_pooling:
            self.image_pooling = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, 256, 1), nn.ReLU()
            )
            if image_pooling_norm:
                convolution = nn.Conv2d(in_channels, 256, 1, bias=False)
                self.image_pooling = nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), convolution, _PooledNorm(256), nn.ReLU()
                )
        self.project = conv_bn_relu(256 * (len(rates) + int(image_pooling)), 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 256, H, W)."""
        features = [branch(x) for branch in self.branches]
        if self.image_pooling is not None:
            features.append(self.image_pooling(x).expand(-1, -1, x.shape[-2], x.shape[-1]))
        return self.project(torch.cat(features, dim=1))


class _PooledNorm(nn.BatchNorm2d):
    """Normalise (B, C, 1, 1) by batch, or by the running statistics where B is 1.

    Of one value there is nothing to estimate.
    """

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and x.shape[0] > 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps
        )


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1
) -> nn.Sequential:
    """Return a convolution that keeps the size, batch norm in place of its bias, and ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
