"""2-D networks on whole volumes: slab by slice to a label map on the volume's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor, affine_to_spacing
from monai.inferers import Inferer
from tqdm import tqdm

from liverseg.errors import InputError
from liverseg.inferers.autocast import bf16_autocast
from liverseg.transforms.slices import stack_slices


class VolumeSliceInferer(Inferer):
    """Segment each slice along the last axis with a 2-D network and return class indices on the input's grid.

    A few slices at a time are resampled in-plane to the network's spacing, segmented, their logits resampled back and
    reduced to the class of largest logit. So no multi-channel float volume of full size ever exists.
    In-plane resampling is bilinear with `align_corners=False`, the same extent in both directions.

    Args:
        spacing: the network's spacing in mm, in-plane axes first, as `Spacingd(pixdim=…)` took it in training;
            −1 or a missing value keeps the volume's own. The third value is ignored: slices stay where they are.
        num_slices: the network's input channels: 1, or 3 or 5 neighbouring slices (2.5-D).
        sw_batch_size: slices per forward pass.
        amp: allow bfloat16 where the device computes it natively.
        progress: show a bar for volumes that take longer than two seconds.
    """

    def __init__(
        self,
        spacing: Sequence[float] = (-1, -1),
        num_slices: int = 1,
        sw_batch_size: int = 4,
        amp: bool = True,
        progress: bool = False,
    ) -> None:
        self.spacing = tuple(float(value) for value in spacing)[:2]
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
                size = self._network_size(inputs, index)
                volume, label = _plain(inputs)[index, 0], _plain(labels)[index, 0]
                for positions in self._slabs(volume.shape[-1]):
                    x = stack_slices(volume, positions.to(volume.device), self.num_slices)
                    x = x.to(parameter.device, torch.float32)
                    logits = network(_resize(x, size).contiguous(memory_format=torch.channels_last), *args, **kwargs)
                    classes = _resize(logits.float(), volume.shape[:2]).argmax(1)
                    label[..., positions] = classes.permute(1, 2, 0).to(label)
        return labels

    def _slabs(self, depth: int) -> Any:
        slabs = torch.arange(depth).split(self.sw_batch_size)
        return tqdm(slabs, desc="Segmenting slices", unit="slab", delay=2, disable=not self.progress, leave=False)

    def _network_size(self, inputs: torch.Tensor, index: int) -> tuple[int, int]:
        height, width = inputs.shape[2:4]
        if all(value <= 0 for value in self.spacing):
            return height, width
        if not isinstance(inputs, MetaTensor):
            raise InputError(
                "the inferer got a tensor without affine, expected a MetaTensor: load it with LoadVolumed."
            )
        affine = inputs.affine if inputs.affine.ndim == 2 else inputs.affine[index]
        own = affine_to_spacing(affine, r=3)[:2].tolist()
        size = [
            max(1, round(length * mm / target)) if target > 0 else length
            for length, mm, target in zip((height, width), own, self.spacing, strict=True)
        ]
        return size[0], size[1]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
