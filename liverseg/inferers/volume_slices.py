"""Run 2-D networks over whole volumes, to a label map on the volume's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from liverseg.errors import InputError
from liverseg.inferers.autocast import bf16_autocast
from liverseg.inferers.base import VolumeInferer
from liverseg.inferers.utils import (
    as_tensor,
    check_volumes,
    device_of,
    get_affine,
    progress_bar,
    resize_planes,
)
from liverseg.networks.blocks import two_class_logits
from liverseg.transforms.slices import stack_slices
from liverseg.transforms.spacing import spaced_size


class VolumeSliceInferer(VolumeInferer):
    """Segment each slice along the last axis with a 2-D network, on the grid of the input.

    A few slices at a time are resampled in-plane to the network's spacing or size, segmented, their
    logits resampled back and reduced to the class of largest logit. So no multi-channel float
    volume of full size ever exists. In-plane resampling is bilinear with `align_corners=False`, the
    same extent in both directions. To a `size` the image is averaged over areas: from 512 to 96
    pixels, a bilinear value would read 4 pixels of 28.

    It is called with inputs (B, C, H, W, D), C volumes on one grid, a `MetaTensor` where `spacing`
    asks for resampling. The network maps (N, C · num_slices, h, w) to logits (N, num_classes, h,
    w), or to those of one foreground class alone, (N, 1, h, w), whose sigmoid is its probability.

    Args:
        spacing: the network's spacing in mm, in-plane axes first, as `Spacingd(pixdim=…)` took it
            in training; −1 or a missing value keeps the volume's own. The third value is ignored:
            slices stay where they are.
        size: pixels that each slice is resized to, whatever its spacing, as
            `Resized(spatial_size=(*size, -1))` with its default mode "area" did it in training;
            None goes by `spacing`.
        flips: axes of (H, W) along which the slices are flipped for one more forward pass each,
            `[[0], [1], [0, 1]]` for all: test-time augmentation. The classes' probabilities are
            averaged, not the logits, so that no pass outvotes the others by being surer. A flip
            that training never showed makes masks worse.
        num_slices: the network's input channels for each volume: 1, or 3 or 5 neighbouring slices
            (2.5-D).
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
                f"found spacing {list(self.spacing)} with size {list(self.size)}, expected one of "
                "the two: set spacing to [-1, -1] or leave out size."
            )
        if any(axis not in (2, 3) for axes in self.flips for axis in axes):
            raise InputError(
                f"flips is {list(flips)}, expected axes 0 and 1 of the "
                "slices: set it as [[0], [1]]."
            )
        self.num_slices = num_slices
        self.sw_batch_size = sw_batch_size
        self.amp = amp
        self.progress = progress

    def iterate_probabilities(self, inputs: Tensor, network: Any) -> Iterator[tuple[slice, Tensor]]:
        """Yield, slab by slab, the position of the slices of one volume and their probabilities.

        Args:
            inputs: as of a call, with B = 1.
            network: as of a call.

        Yields:
            The slices' positions along D, and (num_classes, H, W, N) on the grid of `inputs`.
        """
        for positions, scores in self._slabs(inputs, 0, network):
            yield positions, self._normalise(scores).permute(1, 2, 3, 0)

    def _slabs(
        self, inputs: Tensor, index: int, network: Any, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[slice, Tensor]]:
        check_volumes(inputs)
        device = device_of(network, inputs)
        size = self.slice_size(inputs, index)
        volumes = as_tensor(inputs)[index]
        depth = volumes.shape[-1]
        starts = range(0, depth, self.sw_batch_size)
        for start in progress_bar(starts, "Segmenting slices", "slab", self.progress):
            positions = torch.arange(
                start, min(start + self.sw_batch_size, depth), device=volumes.device
            )
            x = torch.cat(
                [stack_slices(volume, positions, self.num_slices) for volume in volumes], dim=1
            )
            x = x.to(device, torch.float32)
            x = resize_planes(x, size, "bilinear" if self.size is None else "area")
            x = x.contiguous(memory_format=torch.channels_last)
            # No context may be open while a generator waits: its reader would be in it.
            with torch.no_grad(), bf16_autocast(device, self.amp):
                scores = self._scores(network, x, *args, **kwargs)
            yield slice(start, start + len(positions)), resize_planes(scores, volumes.shape[1:3])

    def _scores(self, network: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits, or with flips the sum of the passes' probabilities."""
        logits = two_class_logits(network(x, *args, **kwargs).float())
        if not self.flips:
            return logits
        scores = logits.softmax(1)
        for axes in self.flips:
            flipped = two_class_logits(network(x.flip(axes), *args, **kwargs).float())
            scores += flipped.softmax(1).flip(axes)
        return scores

    def _normalise(self, scores: Tensor) -> Tensor:
        """Return the probabilities that `_scores` stand for."""
        return scores / (1 + len(self.flips)) if self.flips else scores.softmax(1)

    def slice_size(self, inputs: Tensor, index: int) -> tuple[int, int]:
        """Return the size to which the slices of one volume of a batch are resampled."""
        if self.size is not None:
            return self.size
        height, width, depth = inputs.shape[2:5]
        if all(value <= 0 for value in self.spacing):
            return height, width
        return spaced_size((height, width, depth), get_affine(inputs, index), (*self.spacing, -1))[
            :2
        ]
