"""Helpers that inferers share: what a batch is, where it goes, resized planes, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor
from tqdm.auto import tqdm

from liverseg.errors import InputError


def check_volumes(inputs: Tensor, channels: str = "C") -> None:
    """Check that a batch is (B, `channels`, H, W, D); "C" is any number.

    Raises:
        InputError: for another shape.
    """
    if inputs.ndim != 5 or channels not in ("C", str(inputs.shape[1])):
        raise InputError(
            f"the inferer got shape {tuple(inputs.shape)}, expected (B, {channels}, H, W, D): "
            "check the keys."
        )


def device_of(network: Any, inputs: Tensor) -> torch.device:
    """Return the device of a network's parameters, or of `inputs` where it has none."""
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else ()
    return next(iter(parameters), inputs).device


def progress_bar(items: Sequence[Any], what: str, unit: str, shown: bool) -> tqdm:
    """Return `items` with a bar, if it is to be shown, for those that take longer than 2 s."""
    return tqdm(items, what, unit=unit, delay=2, disable=not shown, leave=False)


def get_affine(inputs: Tensor, index: int) -> Tensor:
    """Return the affine (4, 4) of one volume of a batch.

    Raises:
        InputError: for inputs that are no `MetaTensor`.
    """
    if not isinstance(inputs, MetaTensor):
        raise InputError(
            "the inferer got a tensor without affine, expected a MetaTensor: load it with "
            "LoadVolumed."
        )
    return inputs.affine if inputs.affine.ndim == 2 else inputs.affine[index]


def get_file_name(inputs: Tensor, index: int) -> str:
    """Return the file that one volume of a batch was read from, for messages."""
    files = inputs.meta.get("filename_or_obj") if isinstance(inputs, MetaTensor) else None
    return str(files[index]) if isinstance(files, list) else f"scan {index + 1} of the batch"


def as_tensor(volume: Tensor) -> Tensor:
    """Return the same memory without metadata, which MONAI copies with every operation."""
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume


def resize_planes(planes: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """Resample planes (N, C, h, w) to `size` over the same extent, "bilinear" or by "area"."""
    if tuple(planes.shape[2:]) == tuple(size):
        return planes
    align_corners = False if mode == "bilinear" else None
    return F.interpolate(planes, tuple(size), mode=mode, align_corners=align_corners)


def to_uint8(probabilities: Tensor) -> Tensor:
    """Convert probabilities to uint8, 255 for 1."""
    return (probabilities * 255).round().to(torch.uint8)


def split_lesion(probabilities: Tensor, lesion: Tensor) -> None:
    """Move the lesion's share of the liver's probability to the lesion, in place.

    Args:
        probabilities: of liver (all of it) and lesion (none yet), uint8, (2, H, W, D).
        lesion: of a voxel of the liver to be lesion, uint8, (H, W, D).
    """
    share = (probabilities[0].to(torch.int32) * lesion / 255).round().to(torch.uint8)
    probabilities[1] = share
    probabilities[0] -= share
