"""Run 3-D networks over whole volumes in windows, to a label map on the volume's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
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
from liverseg.transforms.spacing import resize_volume, spaced_size

PLANES = 4  # planes of the volume's own grid whose logits exist at a time


class VolumeWindowInferer(VolumeInferer):
    """Segment volumes with a 3-D network in overlapping windows, on the grid of the input.

    The volume is resampled to the network's spacing as `ResampleVolumed` does it in training. The
    windows, their Gaussian weights and the logits are those of MONAI's
    `sliding_window_inference(mode="gaussian")`, taken from one end of the last axis to the other:
    planes that no further window reaches are resampled back, trilinearly over the same extent, a
    few at a time, reduced to the class of largest logit, and forgotten. So the logits in memory are
    those of one window's depth, whatever the number of slices, and none exist on the volume's own
    grid but for a few planes.

    MONAI's `SlidingWindowInferer(buffer_steps=1)` holds the logits of the whole volume: with 14
    classes and 160 × 160 × 1280 voxels it needs 2.2 GB, this one 0.65 GB.

    It is called with inputs (B, 1, H, W, D), a `MetaTensor` where `spacing` asks for resampling.
    The network maps (N, 1, *roi_size) to logits (N, num_classes, *roi_size).

    Args:
        roi_size: voxels of a window along each axis, at the network's spacing. Smaller volumes are
            padded with zeros on both sides.
        spacing: the network's spacing in mm, as `ResampleVolumed` took it in training; −1 keeps the
            volume's own.
        overlap: of neighbouring windows, as a share of their size, at least 0 and below 1.
        sw_batch_size: windows per forward pass.
        amp: allow bfloat16 where the device computes it natively.
        progress: show a bar for volumes that take longer than two seconds.

    Raises:
        InputError: for another overlap.
    """

    def __init__(
        self,
        roi_size: Sequence[int] = (64, 64, 64),
        spacing: Sequence[float] = (-1, -1, -1),
        overlap: float = 0.5,
        sw_batch_size: int = 4,
        amp: bool = True,
        progress: bool = False,
    ) -> None:
        if not 0 <= overlap < 1:
            raise InputError(
                f"overlap is {overlap}, expected at least 0 and below 1: set it to 0.5."
            )
        self.roi_size = tuple(int(length) for length in roi_size)
        self.spacing = tuple(float(value) for value in spacing)
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.amp = amp
        self.progress = progress

    def _slabs(
        self, inputs: Tensor, index: int, network: Any, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[slice, Tensor]]:
        check_volumes(inputs, "1")
        volume = as_tensor(inputs)[index, 0]
        height, width, depth = volume.shape
        if any(value > 0 for value in self.spacing):
            size = spaced_size(volume.shape, get_affine(inputs, index), self.spacing)
            volume = volume if size == tuple(volume.shape) else resize_volume(volume, size)
        channels = self._channels(volume, inputs, index)
        device = device_of(network, inputs)
        finished = self._finished_planes(channels, network, device, *args, **kwargs)
        for position, logits in planes_between(finished, volume.shape[-1], depth):
            yield (
                slice(position, position + len(logits)),
                resize_planes(logits, (height, width)),
            )

    def _channels(self, volume: Tensor, inputs: Tensor, index: int) -> Tensor:
        """Return what the network sees of `inputs[index]`, (C, h, w, d).

        Networks that see more than the image override it.
        """
        return volume[None]

    def _finished_planes(
        self, volume: Tensor, network: Any, device: torch.device, *args: Any, **kwargs: Any
    ) -> Iterator[Tensor]:
        """Yield the blended logits (planes, num_classes, h, w) of `volume` (C, h, w, d) along d."""
        missing = [
            max(roi - length, 0)
            for roi, length in zip(self.roi_size, volume.shape[1:], strict=True)
        ]
        padded = F.pad(volume, [part for n in reversed(missing) for part in (n // 2, n - n // 2)])
        inside = [
            slice(n // 2, n // 2 + length)
            for n, length in zip(missing, volume.shape[1:], strict=True)
        ]
        step = [
            roi if roi == length else max(int(roi * (1 - self.overlap)), 1)
            for roi, length in zip(self.roi_size, padded.shape[1:], strict=True)
        ]
        windows = sorted(
            dense_patch_slices(padded.shape[1:], self.roi_size, step),
            key=lambda window: window[2].start,
        )
        starts = sorted({window[2].start for window in windows})
        importance = compute_importance_map(self.roi_size, mode="gaussian", device=device)
        height, width, depth = (*padded.shape[1:3], self.roi_size[2])
        weight = torch.zeros(height, width, depth, device=device)
        logits: Tensor | None = None
        bar = progress_bar(windows, "Segmenting", "window", self.progress)
        for start, group in groupby(windows, key=lambda window: window[2].start):
            layer = list(group)
            for first in range(0, len(layer), self.sw_batch_size):
                batch = layer[first : first + self.sw_batch_size]
                x = torch.stack([padded[:, *window] for window in batch]).to(device, torch.float32)
                x = x.contiguous(memory_format=torch.channels_last_3d)
                # No context may be open while a generator waits: its reader would be in it.
                with torch.no_grad(), bf16_autocast(device, self.amp):
                    found = network(x, *args, **kwargs).float()
                if logits is None:
                    logits = torch.zeros(found.shape[1], height, width, depth, device=device)
                for window, scores in zip(batch, found, strict=True):
                    logits[:, window[0], window[1]] += scores * importance
                    weight[window[0], window[1]] += importance
                bar.update(len(batch))
            assert logits is not None
            following = [other for other in starts if other > start]
            done = following[0] - start if following else depth
            planes = slice(max(inside[2].start - start, 0), min(inside[2].stop - start, done))
            blended = logits[:, inside[0], inside[1], planes] / weight[inside[0], inside[1], planes]
            yield blended.permute(3, 0, 1, 2)
            for buffer in (logits, weight):
                buffer[..., : depth - done] = buffer[..., done:].clone()
                buffer[..., depth - done :] = 0
        bar.close()


def planes_between(
    finished: Iterator[Tensor], source_depth: int, depth: int
) -> Iterator[tuple[int, Tensor]]:
    """Resample `source_depth` planes to `depth` over the same extent, linearly, a few at a time.

    Yields the position of the first and the planes, (up to PLANES, C, h, w).
    """
    sources = ((torch.arange(depth) + 0.5) * source_depth / depth - 0.5).clamp(0, source_depth - 1)
    lower = sources.floor().long()
    upper = (lower + 1).clamp(max=source_depth - 1)
    position, first, held = 0, 0, None
    for planes in finished:
        held = planes if held is None else torch.cat([held, planes])
        ready = int((upper < first + len(held)).sum())
        for few in torch.arange(position, ready).split(PLANES) if ready > position else ():
            share = (sources - lower)[few].to(held)[:, None, None, None]
            yield int(few[0]), held[lower[few] - first].lerp(held[upper[few] - first], share)
        position = ready
        used = min(int(lower[min(position, depth - 1)]) - first, len(held))
        held, first = held[used:], first + used
