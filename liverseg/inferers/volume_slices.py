"""2-D networks on whole volumes: slab by slice to a label map on the volume's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from tqdm import tqdm

from liverseg.errors import InputError
from liverseg.inferers.autocast import bf16_autocast
from liverseg.transforms.slices import stack_slices
from liverseg.transforms.spacing import spaced_size


class VolumeSliceInferer(Inferer):
    """Segment each slice along the last axis with a 2-D network and return class indices on the input's grid.

    A few slices at a time are resampled in-plane to the network's spacing or size, segmented, their logits resampled
    back and reduced to the class of largest logit. So no multi-channel float volume of full size ever exists.
    In-plane resampling is bilinear with `align_corners=False`, the same extent in both directions. To a `size` the
    image is averaged over areas: from 512 to 96 pixels, a bilinear value would read 4 pixels of 28.

    Args:
        spacing: the network's spacing in mm, in-plane axes first, as `Spacingd(pixdim=…)` took it in training;
            −1 or a missing value keeps the volume's own. The third value is ignored: slices stay where they are.
        size: pixels that each slice is resized to, whatever its spacing, as `Resized(spatial_size=(*size, -1))` with
            its default mode "area" did it in training; None goes by `spacing`.
        flips: axes of (H, W) along which the slices are flipped for one more forward pass each, `[[0], [1], [0, 1]]`
            for all: test-time augmentation. The classes' probabilities are averaged, not the logits, so that no pass
            outvotes the others by being surer. A flip that training never showed makes masks worse.
        num_slices: the network's input channels: 1, or 3 or 5 neighbouring slices (2.5-D).
        sw_batch_size: slices per forward pass.
        amp: allow bfloat16 where the device computes it natively.
        progress: show a bar for volumes that take longer than two seconds.

    Raises:
        InputError: for a `size` together with a `spacing`, and axes of `flips` other than 0 and 1.
    """

    def __init__(
        self,
        spacing: Sequence[float] = (-1, -1),
        num_slices: int = 1,
        sw_batch_size: int = 4,
        amp: bool = True,
        progress: bool = False,
        size: Sequence[int] | None = None,
        flips: Sequence[Sequence[int]] = (),
    ) -> None:
        self.spacing = tuple(float(value) for value in spacing)[:2]
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.flips = [[2 + axis for axis in axes] for axes in flips]
        if self.size is not None and any(value > 0 for value in self.spacing):
            raise InputError(
                f"found spacing {list(self.spacing)} with size {list(self.size)}, expected one of the two: set spacing "
                "to [-1, -1] or leave out size."
            )
        if any(axis not in (2, 3) for axes in self.flips for axis in axes):
            raise InputError(f"flips is {list(flips)}, expected axes 0 and 1 of the slices: set it as [[0], [1]].")
        self.num_slices = num_slices
        self.sw_batch_size = sw_batch_size
        self.amp = amp
        self.progress = progress

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Class indices, uint8, shape (B, 1, H, W, D), on the device of `inputs`.

        Args:
            inputs: shape (B, 1, H, W, D); a `MetaTensor` where `spacing` asks for resampling.
            network: maps (N, num_slices, h, w) to logits (N, num_classes, h, w).
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Raises:
            InputError: for inputs that are not (B, 1, H, W, D), or without the affine that resampling needs.
        """
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise InputError(f"the inferer got shape {tuple(inputs.shape)}, expected (B, 1, H, W, D): check the keys.")
        labels = torch.zeros_like(inputs, dtype=torch.uint8)
        parameter = next(iter(network.parameters()), inputs) if isinstance(network, torch.nn.Module) else inputs
        with torch.no_grad(), bf16_autocast(parameter.device, self.amp):
            for index in range(inputs.shape[0]):
                size = self.size or self._spaced_size(inputs, index)
                volume, label = plain(inputs)[index, 0], plain(labels)[index, 0]
                for positions in self._slabs(volume.shape[-1]):
                    x = stack_slices(volume, positions.to(volume.device), self.num_slices)
                    x = x.to(parameter.device, torch.float32)
                    x = _resize(x, size, "bilinear" if self.size is None else "area")
                    x = x.contiguous(memory_format=torch.channels_last)
                    scores = _resize(self._scores(network, x, *args, **kwargs), volume.shape[:2])
                    classes = scores.max(1).indices  # argmax takes up to 50 times as long on a CPU
                    label[..., positions] = classes.permute(1, 2, 0).to(label)
        return labels

    def _scores(self, network: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits, or with flips the sum of the passes' probabilities."""
        logits = network(x, *args, **kwargs).float()
        if not self.flips:
            return logits
        scores = logits.softmax(1)
        for axes in self.flips:
            scores += network(x.flip(axes), *args, **kwargs).float().softmax(1).flip(axes)
        return scores

    def _slabs(self, depth: int) -> Any:
        slabs = torch.arange(depth).split(self.sw_batch_size)
        return tqdm(slabs, desc="Segmenting slices", unit="slab", delay=2, disable=not self.progress, leave=False)

    def _spaced_size(self, inputs: torch.Tensor, index: int) -> tuple[int, int]:
        height, width, depth = inputs.shape[2:5]
        if all(value <= 0 for value in self.spacing):
            return height, width
        return spaced_size((height, width, depth), affine_of(inputs, index), (*self.spacing, -1))[:2]


def affine_of(inputs: torch.Tensor, index: int) -> torch.Tensor:
    """The affine (4, 4) of one volume of a batch.

    Raises:
        InputError: for inputs that are no `MetaTensor`.
    """
    if not isinstance(inputs, MetaTensor):
        raise InputError("the inferer got a tensor without affine, expected a MetaTensor: load it with LoadVolumed.")
    return inputs.affine if inputs.affine.ndim == 2 else inputs.affine[index]


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory without metadata, which MONAI copies with every operation."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _resize(x: torch.Tensor, size: Sequence[int], mode: str = "bilinear") -> torch.Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)
