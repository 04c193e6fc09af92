"""Scale intensities in the memory that they already have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from liverseg.errors import InputError

SLAB = 16  # slices that are worked on at a time: single ones would read a cache line for each voxel


class ScaleWindowd(MapTransform):
    """Map the intensities of `window` to 0…1, or another range, and clip the rest, in place.

    The same values as MONAI's `ScaleIntensityRanged(a_min, a_max, 0, 1, clip=True)`, which holds
    the volume three times over while it works: 3 GB for 512×512×1000.

    Args:
        keys: float tensors, any shape; they are changed.
        window: lowest and highest intensity, in HU for CT.
        lowest: what the lowest intensity becomes; the highest is 1 more.

    Raises:
        InputError: when the window is empty.
    """

    def __init__(self, keys: KeysCollection, window: Sequence[float], lowest: float = 0) -> None:
        super().__init__(keys)
        self.low, self.high = window
        self.lowest = lowest
        if not self.low < self.high:
            raise InputError(
                f"hu_window is {list(window)}, expected the lower bound "
                "first: set it as [-160, 240]."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the intensities scaled."""
        for key in self.key_iterator(dict(data)):
            scale(data[key], self.low, self.high, self.lowest)
        return dict(data)


class ScaleFromMinimumd(MapTransform):
    """Map intensities from the minimum to a share of a high percentile to −0.5…0.5, in place.

    The rest is clipped. How Tang et al. (see `PreactivationUNet3D`) scale MRI: up to the minimum +
    `share` · (percentile − minimum).

    Args:
        keys: float tensors, any shape; they are changed.
        percentile: of all voxels.
        share: see above.

    Raises:
        InputError: in a call, when all intensities up to there are equal.
    """

    def __init__(self, keys: KeysCollection, percentile: float = 99.5, share: float = 0.8) -> None:
        super().__init__(keys)
        self.percentile, self.share = percentile, share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the intensities scaled."""
        for key in self.key_iterator(dict(data)):
            image = data[key].as_subclass(torch.Tensor)
            low = float(image.min())
            bright = float(np.percentile(image.cpu().numpy(), self.percentile))
            high = low + self.share * (bright - low)
            if not low < high:
                name = getattr(data[key], "meta", {}).get("filename_or_obj", key)
                raise InputError(
                    f"{name}: found nothing but the intensity {low:g}, expected an image: check it."
                )
            scale(image, low, high, -0.5)
        return dict(data)


def scale(image: torch.Tensor, low: float, high: float, lowest: float) -> None:
    """Map `low` to `lowest` and `high` to 1 more, and clip the rest, in place."""
    image.sub_(low).div_(high - low).clamp_(0, 1)
    if lowest:
        image.add_(lowest)


class EqualizeHistogramd(MapTransform):
    """Spread the grey levels of each slice along the last axis evenly over 0…1, in place.

    Intensities 0…1, as `ScaleWindowd` gives them, are rounded to S = 256 grey levels x, which
    become

        h(x) = round((cdf(x) − cdf_min) / (LW − cdf_min) · (S − 1))

    with LW the pixels of the slice, cdf(x) those of level x or lower, and cdf_min those of its
    lowest level; the result is h / (S − 1). Mixed U-Net n.d. (eq. 3.3) prints the round before the
    factor S − 1, which would leave black and white only. A slice of one grey level, for which the
    fraction is 0/0, keeps it.

    The computation is OpenCV's `equalizeHist`. MONAI's `HistogramNormalize` takes the volume as a
    whole, interpolates between the levels instead of rounding, and works in float64.

    Args:
        keys: float tensors (1, H, W, D) of intensities 0…1; they are changed.
        allow_missing_keys: skip keys that an item lacks.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the intensities equalised.

        Raises:
            InputError: for intensities outside 0…1, naming the key.
        """
        for key in self.key_iterator(dict(data)):
            for slab in data[key].as_subclass(torch.Tensor)[0].split(SLAB, dim=-1):
                low, high = (float(value) for value in slab.aminmax())
                if not (low >= 0 and high <= 1):
                    raise InputError(
                        f"{key}: found intensities from {low:g} to {high:g}, expected 0 to 1: "
                        "scale them first, for CT with ScaleWindowd."
                    )
                levels = slab.mul(255).round_().to(torch.uint8)
                slab.copy_(_by_slice(levels, cv2.equalizeHist)).div_(255)
        return dict(data)


class MedianSlicesd(MapTransform):
    """Replace each pixel of each slice along the last axis by the median of 3x3 pixels, in place.

    Equation 2 of IJIES 2022, which gives no size. Beyond the border the edge pixels repeat.
    MONAI's `MedianSmooth` takes the median over 3x3x3 voxels, across slices whatever their
    distance, and holds 27 copies.

    Args:
        keys: float32 tensors (1, H, W, D); they are changed.
        allow_missing_keys: skip keys that an item lacks.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the slices filtered."""
        for key in self.key_iterator(dict(data)):
            for slab in data[key].as_subclass(torch.Tensor)[0].split(SLAB, dim=-1):
                slab.copy_(_by_slice(slab, lambda section: cv2.medianBlur(section, 3)))
        return dict(data)


def _by_slice(slab: torch.Tensor, function: Callable[[Any], Any]) -> torch.Tensor:
    """Return what `function` makes of each slice of a slab (H, W, D)."""
    sections = slab.permute(2, 0, 1).contiguous().cpu().numpy()
    return torch.from_numpy(np.stack([function(section) for section in sections])).permute(1, 2, 0)
