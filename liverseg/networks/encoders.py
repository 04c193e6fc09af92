"""Encoders that start from ImageNet weights, with torchvision's parameter names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks.blocks import MixedPool2d
from liverseg.networks.weights import load_strictly, read_state_dict


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added (He et al. 2016, figure 5 left).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution.
        dilation1: dilation of the first convolution.
        dilation2: dilation of the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilation1: int, dilation2: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=dilation1, dilation=dilation1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, padding=dilation2, dilation=dilation2, bias=False
        )
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class ResNet18Encoder(nn.Module):
    """The convolutions of ResNet-18 with the last strides turned into dilation.

    He et al. 2016; Chen et al. 2018.

    ResNet-18 halves the image five times, to 1/32. For ``output_stride`` 16 the last halving is
    left out, for 8 the last two, and every later 3x3 convolution has its taps spread by the factor
    left out, so that the weights see the same neighbours as before: the output at every second
    (fourth) position is what the plain ResNet-18 gives. The parameter names are those of
    torchvision's ``resnet18`` without ``fc``.

    Args:
        in_channels: channels of the input.
        output_stride: 16 or 8, input pixels per pixel of the last feature map.

    Raises:
        InputError: ``output_stride`` is neither 16 nor 8.
    """

    def __init__(self, in_channels: int = 3, output_stride: int = 16) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise InputError(
                f"output_stride is {output_stride!r}; expected 16 or 8: set one of the two."
            )
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        dilate3 = output_stride == 8
        self.layer1 = _stage(64, 64, stride=1, dilation=1)
        self.layer2 = _stage(64, 128, stride=2, dilation=1)
        self.layer3 = _stage(128, 256, stride=1 if dilate3 else 2, dilation=1, dilate=dilate3)
        self.layer4 = _stage(256, 512, stride=1, dilation=2 if dilate3 else 1, dilate=True)
        # As in training from scratch by He et al. 2015, and in torchvision.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode an image.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            low-level features (B, 64, H / 4, W / 4) of ``layer1`` and high-level features
            (B, 512, H / output_stride, W / output_stride) of ``layer4``; sizes are rounded up.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low = self.layer1(x)
        high = self.layer4(self.layer3(self.layer2(low)))
        return low, high


def _stage(
    in_channels: int, out_channels: int, stride: int, dilation: int, dilate: bool = False
) -> nn.Sequential:
    """Return a stage of two blocks.

    ``dilate`` says that their stride of 2 is replaced by doubling the ``dilation`` before them.
    """
    # The first convolution reads the map from before the stride, so only those after it are spread.
    after = 2 * dilation if dilate else dilation
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, dilation, after),
        BasicBlock(out_channels, out_channels, 1, after, after),
    )


VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLINGS = {"max": nn.MaxPool2d, "mixed": MixedPool2d}


class VGGEncoder(nn.Module):
    """Encode with stages of 3x3 convolutions, ReLU and 2x2 pooling (Simonyan & Zisserman 2015).

    With the default ``stages`` it is VGG-16, with the parameter names of torchvision's ``vgg16``.
    The fully connected layers fc6 and fc7 are there on request, as convolutions (Long et al.
    2015): at the middle of the 7x7 map that a 224x224 image leaves, they give what the fully
    connected layers give.

    Args:
        in_channels: channels of the input.
        stages: output channels of the convolutions of each stage.
        dropout: probability with which a value is dropped in training at the end of the fourth
            and the fifth stage.
        pooling: "max" or "mixed" (`MixedPool2d`) between the stages.
        fc_channels: output channels of fc6 (7x7, same padding) and fc7 (1x1), each followed by ReLU
            and dropout 0.5; None leaves them out.

    Raises:
        InputError: ``pooling`` is neither of the two.
    """

    def __init__(
        self,
        in_channels: int = 3,
        stages: Sequence[Sequence[int]] = VGG16_STAGES,
        *,
        dropout: float = 0.0,
        pooling: str = "max",
        fc_channels: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(
                f"pooling is {pooling!r}; expected 'max' or 'mixed': set one of the two."
            )
        self.features = nn.Sequential()
        self.pools: list[int] = []
        index = 0
        channels = in_channels
        for number, widths in enumerate(stages, start=1):
            if number > 1:
                self.pools.append(len(self.features))
                self.features.add_module(str(index), POOLINGS[pooling](2))
                index += 1
            for width in widths:
                self.features.add_module(str(index), nn.Conv2d(channels, width, 3, padding=1))
                self.features.add_module(str(index + 1), nn.ReLU(inplace=True))
                channels = width
                index += 2
            if number >= 4 and dropout > 0:  # under a name, for the numbers are torchvision's
                self.features.add_module(f"dropout{number}", nn.Dropout(dropout))
        self.classifier: nn.Module | None = None
        if fc_channels is not None:
            self.classifier = nn.Sequential(
                nn.Conv2d(channels, fc_channels, 7, padding=3),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(fc_channels, fc_channels, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Encode an image.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            the map at the end of each stage, (B, C, H / 2^i, W / 2^i) for i = 0, 1, ..., then with
            ``fc_channels`` that of fc7 at half the last size; and the map after each pooling
            between stages. Sizes are rounded down.
        """
        ends: list[Tensor] = []
        pooled: list[Tensor] = []
        for i, layer in enumerate(self.features):
            if i in self.pools:
                ends.append(x)
                pooled.append(layer(x))
                x = pooled[-1]
            else:
                x = layer(x)
        ends.append(x)
        if self.classifier is not None:
            ends.append(self.classifier(F.max_pool2d(x, 2)))
        return ends, pooled


def load_imagenet_weights(
    encoder: ResNet18Encoder | VGGEncoder, source: str | Path, sha256: str | None
) -> None:
    """Load torchvision's ``resnet18`` or ``vgg16`` state dict into ``encoder``.

    The layer that gives the 1000 classes is left out. So are fc6 and fc7 of VGG-16, unless the
    encoder has them with as many channels as the file (torchvision: 4096). If the encoder does not
    have three channels, each of its k channels gets the mean over R, G and B of the first
    convolution, times 3 / k (for one channel: the sum). On k equal channels the convolution then
    gives what the original gives on the same grey image as R = G = B, so the layers that follow,
    which know the scale of ImageNet's activations, stay right.

    Args:
        encoder: the encoder to fill, in place.
        source: path or URL of the file. A URL is downloaded once, to
            ``torch.hub.get_dir()/checkpoints``.
        sha256: SHA-256 of the file in hexadecimal, checked before anything is read from it.

    Raises:
        InputError: the file cannot be had, has another SHA-256, or holds other weights.
    """
    state = read_state_dict(_verified_file(source, sha256))
    own = encoder.state_dict()
    state = {
        key: value
        for key, value in state.items()
        if key in own or not key.startswith(("fc.", "classifier."))
    }
    if isinstance(encoder, VGGEncoder):
        state |= _fully_connected_as_convolutions(state, own)
    first = next(iter(own))
    in_channels = own[first].shape[1]
    rgb = state.get(first)
    if rgb is not None and rgb.ndim == 4 and rgb.shape[1] == 3 and in_channels != 3:
        grey = rgb.sum(dim=1, keepdim=True) / in_channels
        state[first] = grey.expand(-1, in_channels, -1, -1)
    name = "resnet18" if isinstance(encoder, ResNet18Encoder) else "vgg16"
    load_strictly(encoder, state, str(source), f"give torchvision's {name} file as encoder_weights")


def _fully_connected_as_convolutions(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return fc6 and fc7 of ``state`` in the shapes of ``own``.

    Where their channels differ, those of ``own`` stay.
    """
    convolutions = {key: value for key, value in own.items() if key.startswith("classifier.")}
    bias = state.get("classifier.0.bias")
    if bias is None or not convolutions:
        return {}
    if bias.shape != convolutions["classifier.0.bias"].shape:
        return convolutions
    return {
        # The columns of fc6 run over channel, row and column of the last map, as the
        # dimensions of a kernel do.
        key: state[key].reshape(value.shape)
        for key, value in convolutions.items()
        if key in state and state[key].numel() == value.numel()
    }


def _verified_file(source: str | Path, sha256: str | None) -> Path:
    """Return the local path of ``source``, file or URL, once its SHA-256 is ``sha256``."""
    if not sha256:
        raise InputError(
            f"encoder_weights_sha256 is not set for {source}; set it to the SHA-256 of the file "
            "you trust (sha256sum FILE prints it)."
        )
    expected = sha256.lower()
    path = Path(source)
    if "://" in str(source):
        path = Path(
            torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(str(source)).path)
        )
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(str(source), str(path), hash_prefix=expected)
            except OSError as error:
                advice = "download the file elsewhere and give its path as encoder_weights"
                raise InputError(f"{source} cannot be downloaded ({error}): {advice}.") from error
            # Raised for a wrong hash only, and the message holds both digests.
            except RuntimeError as error:
                advice = "correct encoder_weights or encoder_weights_sha256"
                raise InputError(
                    f"{source} does not have the SHA-256 it should ({error}): {advice}."
                ) from error
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read ({reason}): check encoder_weights.") from error
    if found != expected:
        advice = "correct encoder_weights_sha256, or replace the file"
        raise InputError(f"{path} has SHA-256 {found}; expected {expected}: {advice}.")
    return path
