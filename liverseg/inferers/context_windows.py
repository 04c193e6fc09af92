"""Run 3-D networks whose logits are those of a window's centre.

The windows are tiles of an organ, or one window of the whole body.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liverseg.inferers.autocast import bf16_autocast
from liverseg.inferers.base import VolumeInferer
from liverseg.inferers.utils import (
    as_tensor,
    check_volumes,
    get_affine,
    progress_bar,
    resize_planes,
)
from liverseg.inferers.volume_windows import planes_between
from liverseg.transforms.crop import body_box, largest_box
from liverseg.transforms.spacing import resize_volume, spaced_size


class ContextTileInferer(VolumeInferer):
    """Segment volumes with a `PreactivationUNet3D` in tiles that touch, each seen with its context.

    The volume is resampled to the network's spacing. Beyond its border the context is 0. The
    probabilities of the foreground, on that grid, are interpolated to the volume's own a few planes
    at a time.

    It is called with a `MetaTensor` (B, 1, H, W, D), intensities from −0.5 to 0.5, and a
    `PreactivationUNet3D`.

    Args:
        roi_size: voxels of a tile's logits along each axis; a tile gets `network.context` more to
            see.
        spacing: the network's spacing in mm.
        threshold: the least probability of the foreground.
        flips: spatial axes along which each tile is flipped for one more forward pass: the
            probabilities' mean counts.
        amp: allow bfloat16 where the device computes it natively.
        progress: show a bar for volumes that take longer than two seconds.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spacing: Sequence[float],
        threshold: float = 0.5,
        flips: Sequence[Sequence[int]] = (),
        amp: bool = True,
        progress: bool = False,
    ) -> None:
        self.roi_size = tuple(int(length) for length in roi_size)
        self.spacing = tuple(float(value) for value in spacing)
        self.threshold = threshold
        self.flips = [[2 + axis for axis in axes] for axes in flips]
        self.amp, self.progress = amp, progress

    def _slabs(
        self, inputs: Tensor, index: int, network: Any, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[slice, Tensor]]:
        check_volumes(inputs, "1")
        network = getattr(network, "module", network)  # of DistributedDataParallel
        volume = as_tensor(inputs)[index, 0]
        size = spaced_size(volume.shape, get_affine(inputs, index), self.spacing)
        found = self._probabilities(resize_volume(volume, size), network)
        for position, planes in planes_between(
            iter([found.permute(2, 0, 1)[:, None]]), size[2], volume.shape[2]
        ):
            foreground = resize_planes(planes, volume.shape[:2])
            # The background wins where the foreground is not above the threshold.
            background = torch.full_like(foreground, self.threshold)
            scores = torch.cat([background, foreground], 1)
            yield slice(position, position + len(planes)), scores

    def _normalise(self, scores: Tensor) -> Tensor:
        return scores

    def _probabilities(self, volume: Tensor, network: Any) -> Tensor:
        """Return the foreground's, (h, w, d), on the grid of the network; context beyond is 0."""
        found = torch.zeros(volume.shape)
        steps = zip(volume.shape, self.roi_size, strict=True)
        tiles = list(itertools.product(*(range(0, length, roi) for length, roi in steps)))
        for start in progress_bar(tiles, "Segmenting", "tile", self.progress):
            inside, outside = _overlap(start, self.roi_size, volume.shape)
            found[outside] = self._window(volume, start, self.roi_size, network)[inside]
        return found

    def _window(
        self, volume: Tensor, start: Sequence[int], size: Sequence[int], network: Any
    ) -> Tensor:
        """Return the foreground's probabilities in a box, which may reach beyond the volume.

        The box has `size` and begins at `start`.
        """
        device = next(network.parameters()).device
        window = network.window(size)
        first = [
            begin - context // 2 for begin, context in zip(start, network.context, strict=True)
        ]
        seen = torch.zeros(window)
        inside, outside = _overlap(first, window, volume.shape)
        seen[inside] = volume[outside].to(seen)
        x = seen[None, None].to(device).contiguous(memory_format=torch.channels_last_3d)
        total = torch.zeros(())
        with bf16_autocast(device, self.amp):
            for axes in ([], *self.flips):
                logits = network(x.flip(axes), padded=False).float()
                total = total + logits.softmax(1)[:, 1:].flip(axes).cpu()
        probabilities = total[0, 0] / (1 + len(self.flips))
        return probabilities[tuple(slice(0, length) for length in size)]


class BodyWindowInferer(ContextTileInferer):
    """Run the liver's network of Tang et al. on one window around the body.

    Its instance norm needs the whole body.

    The window is centred on the box around the body, the largest component above `body_threshold`
    in-plane, and on the whole of the slices; beyond the volume it is 0. Two things help where the
    window fits badly:

    - slices that cover less than `least_mm` are mirrored at both ends until they do;
    - a second pass looks at `focus_mm` of the slices around the liver that the first has found.

    Args:
        roi_size: voxels of the window's logits along each axis.
        spacing: the network's spacing in mm.
        body_threshold: what is above it is body, in units of the inputs: −0.375 is −150 HU; None
            takes all for body.
        least_mm: see above.
        focus_mm: see above; None leaves the second pass out.
        kwargs: of `ContextTileInferer`.
    """

    def __init__(
        self,
        roi_size: Sequence[int] = (163, 136, 136),
        spacing: Sequence[float] = (3, 3, 3),
        body_threshold: float | None = -0.375,
        least_mm: float = 126,
        focus_mm: float | None = 240,
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, spacing, **kwargs)
        self.body_threshold, self.least_mm, self.focus_mm = body_threshold, least_mm, focus_mm

    def _probabilities(self, volume: Tensor, network: Any) -> Tensor:
        """Return those of `ContextTileInferer`; 0 beyond the window."""
        found = torch.zeros(volume.shape)
        body = body_box(volume, self.body_threshold)
        if body is None:
            return found
        crop, depth = volume[body], volume.shape[2]
        missing = max(math.ceil(self.least_mm / self.spacing[2]) - depth, 0)
        before = missing // 2
        order = np.pad(np.arange(depth), (before, missing - before), mode="symmetric")
        whole = self._centred(crop[..., torch.from_numpy(order)], network)
        probabilities = whole[..., before : before + depth]
        liver = None if self.focus_mm is None else largest_box(probabilities > self.threshold)
        focus = math.ceil((self.focus_mm or 0) / self.spacing[2])
        if liver is not None and focus < depth:
            middle = (liver[2].start + liver[2].stop) // 2
            first = min(max(middle - focus // 2, 0), depth - focus)
            probabilities = torch.zeros_like(probabilities)
            probabilities[..., first : first + focus] = self._centred(
                crop[..., first : first + focus], network
            )
        found[body] = probabilities
        return found

    def _centred(self, volume: Tensor, network: Any) -> Tensor:
        """Return probabilities of `volume`, 0 where it reaches beyond the window in its middle."""
        starts = [
            (length - roi) // 2 for length, roi in zip(volume.shape, self.roi_size, strict=True)
        ]
        window = self._window(volume, starts, self.roi_size, network)
        found = torch.zeros(volume.shape)
        inside, outside = _overlap(starts, self.roi_size, volume.shape)
        found[outside] = window[inside]
        return found


def _overlap(
    start: Sequence[int], size: Sequence[int], total: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a box of `size` at `start` overlaps a volume: in the box, in the volume."""
    outside = [
        slice(max(n, 0), min(n + length, end))
        for n, length, end in zip(start, size, total, strict=True)
    ]
    inside = [slice(part.start - n, part.stop - n) for part, n in zip(outside, start, strict=True)]
    return tuple(inside), tuple(outside)
