"""Crop volumes to where an organ is, in training as at inference."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import affine_to_spacing
from monai.transforms import MapTransform, SpatialCrop

from liverseg.errors import InputError
from liverseg.transforms.morphology import Box, bounding_box, dilate, ellipsoid, largest


def foreground_box(label: torch.Tensor, affine: torch.Tensor, margin_mm: float) -> Box | None:
    """Find the box around a label's foreground, widened in the plane of the slices, or None.

    Along the last axis the box is not widened: slices without foreground have nothing to show.

    Args:
        label: shape (H, W, D); all above 0 is foreground.
        affine: voxels to mm, shape (4, 4).
        margin_mm: by which the box is widened to either side along H and W, rounded up to voxels,
            inside the volume.

    Returns:
        a slice for each axis.
    """
    spacing = affine_to_spacing(affine, r=3).tolist()
    margin = [math.ceil(margin_mm / mm - 1e-3) for mm in spacing[:2]]
    return bounding_box((label > 0).cpu().numpy(), [*margin, 0])


def largest_box(mask: torch.Tensor) -> Box | None:
    """Return the box around the largest component of a bool mask (H, W, D); None if it is empty."""
    return bounding_box(largest(mask.cpu().numpy().view(np.uint8)))


def body_box(volume: torch.Tensor, threshold: float | None) -> Box | None:
    """Find the box around the body, the largest component above `threshold`, in all slices.

    Args:
        volume: intensities (H, W, D).
        threshold: in their units; with None all is body.

    Returns:
        a slice for each axis; None where nothing is above the threshold.
    """
    if threshold is None:
        return tuple(slice(0, length) for length in volume.shape)
    box = largest_box(volume > threshold)
    return None if box is None else (*box[:2], slice(0, volume.shape[2]))


class CropToBodyd(MapTransform):
    """Crop volumes to a body, if they show one, in the slices' plane, as `BodyWindowInferer` does.

    Args:
        keys: MetaTensors of shape (1, H, W, D), the image first.
        threshold: see `body_box`; of CT scaled to −0.5…0.5 from ±200 HU, −0.375 is −150 HU.
    """

    def __init__(self, keys: KeysCollection, threshold: float | None = -0.375) -> None:
        super().__init__(keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the volumes cropped."""
        box = body_box(data[self.keys[0]].as_tensor()[0], self.threshold)
        return {**data, **({} if box is None else _cropped(data, self.keys, box))}


class CropToLabeld(MapTransform):
    """Crop volumes to the box of a label's foreground, and hide what is outside it if asked to.

    This is what `TwoStageInferer` shows the lesion network, with the reference in the place of the
    predicted liver. MONAI's `CropForegroundd` takes its margin in voxels, which differ in mm from
    scan to scan.

    Args:
        keys: MetaTensors of shape (1, H, W, D) to crop; `label_key` is one of them.
        label_key: the label; all above 0 is foreground.
        margin_mm: by which the box is widened in the plane of the slices, to either side.
        outside_value: the value that images, the keys of floating point, get outside the
            foreground; None leaves them.
        shown_mm: how far beyond the foreground the image is left as it is all the same.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        margin_mm: float = 10,
        outside_value: float | None = None,
        shown_mm: float = 0,
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.margin_mm = margin_mm
        self.outside_value = outside_value
        self.shown_mm = shown_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the volumes cropped.

        Raises:
            InputError: when the label has no foreground, naming its file.
        """
        label = data[self.label_key]
        box = foreground_box(label.as_tensor()[0], label.affine, self.margin_mm)
        if box is None:
            file = label.meta.get("filename_or_obj", self.label_key)
            raise InputError(
                f"{file}: found no foreground, expected some to crop to: "
                "take the case out of the data."
            )
        cropped = _cropped(data, self.keys, box)
        if self.outside_value is not None:
            outside = ~widened(cropped[self.label_key].as_tensor()[0], label.affine, self.shown_mm)
            for key in self.keys:
                if cropped[key].is_floating_point():
                    cropped[key].masked_fill_(outside, self.outside_value)
        return {**data, **cropped}


def widened(label: torch.Tensor, affine: torch.Tensor, margin_mm: float) -> torch.Tensor:
    """Return the foreground of a label (H, W, D), bool, with what lies within `margin_mm` of it."""
    radii = [margin_mm / mm for mm in affine_to_spacing(affine, r=3).tolist()]
    mask = dilate((label > 0).cpu().numpy().view(np.uint8), ellipsoid(radii))
    return torch.from_numpy(mask.view(np.bool_)).to(label.device)


def _cropped(
    data: Mapping[Hashable, Any], keys: Sequence[Hashable], box: Box
) -> dict[Hashable, Any]:
    crop = SpatialCrop(roi_slices=box)
    # Copies, for a cached view would keep the whole volume.
    return {key: crop(data[key]).clone() for key in keys}
