"""Crop volumes to where an organ is, in training as at inference."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import affine_to_spacing
from monai.transforms import MapTransform, SpatialCrop

from liverseg.errors import InputError
from liverseg.transforms.morphology import Box, bounding_box


def foreground_box(label: torch.Tensor, affine: torch.Tensor, margin_mm: float) -> Box | None:
    """The box around the foreground of a label volume, widened in the plane of the slices; None without foreground.

    Along the last axis the box is not widened: slices without foreground have nothing to show.

    Args:
        label: shape (H, W, D); all above 0 is foreground.
        affine: voxels to mm, shape (4, 4).
        margin_mm: by which the box is widened to either side along H and W, rounded up to voxels, inside the volume.

    Returns:
        a slice for each axis.
    """
    spacing = affine_to_spacing(affine, r=3).tolist()
    margin = [math.ceil(margin_mm / mm - 1e-3) for mm in spacing[:2]]
    return bounding_box((label > 0).cpu().numpy().view(np.uint8), [*margin, 0])


class CropToLabeld(MapTransform):
    """Crop volumes to the box of a label's foreground, and leave nothing to see outside the foreground if asked to.

    This is what `TwoStageInferer` shows the lesion network, with the reference in the place of the predicted liver.
    MONAI's `CropForegroundd` takes its margin in voxels, which differ in mm from scan to scan.

    Args:
        keys: MetaTensors of shape (1, H, W, D) to crop; `label_key` is one of them.
        label_key: the label; all above 0 is foreground.
        margin_mm: by which the box is widened in the plane of the slices, to either side.
        outside_value: the value that every other key gets outside the foreground; None leaves the image as it is.
    """

    def __init__(
        self, keys: KeysCollection, label_key: str, margin_mm: float = 10, outside_value: float | None = None
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.margin_mm = margin_mm
        self.outside_value = outside_value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data`, with the volumes cropped.

        Raises:
            InputError: when the label has no foreground, naming its file.
        """
        label = data[self.label_key]
        box = foreground_box(label.as_tensor()[0], label.affine, self.margin_mm)
        if box is None:
            file = label.meta.get("filename_or_obj", self.label_key)
            raise InputError(f"{file}: found no foreground, expected some to crop to: take the case out of the data.")
        crop = SpatialCrop(roi_slices=box)
        # Copies, for a cached view would keep the whole volume.
        cropped = {key: crop(data[key]).clone() for key in self.keys}
        if self.outside_value is not None:
            outside = cropped[self.label_key] == 0
            for key in self.keys:
                if key != self.label_key:
                    cropped[key].masked_fill_(outside, self.outside_value)
        return {**data, **cropped}
