"""Change scans at random as MONAI does not: lesions, thick slices, scans that end in the organ."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


class RandSyntheticLesionsd(RandomizableTransform, MapTransform):
    """Draw lesions into an organ: round bodies with a soft border, darker or brighter than it.

    Their number is drawn from 1 to `max_lesions`, radii from `radius_mm` with small ones as likely
    as large ones on a logarithmic scale, each axis of a lesion stretched by up to a third. A third
    of them have a rim of the opposite sign. Lesions that leave the organ are cut off at its border.
    Where the organ is not visible, nothing is drawn.

    Args:
        keys: images (C, H, W) or (C, H, W, D), float; they are changed in place.
        label_key: class indices (1, …) on the same grid; changed in place where `lesion` is given.
        spacing: mm along the spatial axes.
        prob: of any lesion in an item.
        max_lesions: the most lesions of an item.
        radius_mm: least and largest radius.
        contrast: least and largest difference to the organ, in units of the image.
        darker: share of lesions that are darker than the organ.
        organ: the class that lesions are drawn into.
        lesion: the class that their voxels get; None keeps the organ's.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        spacing: Sequence[float],
        prob: float = 0.5,
        max_lesions: int = 8,
        radius_mm: Sequence[float] = (2, 40),
        contrast: Sequence[float] = (0.05, 0.35),
        darker: float = 0.75,
        organ: int = 1,
        lesion: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key, self.spacing, self.max_lesions = label_key, list(spacing), max_lesions
        self.radius_mm, self.contrast, self.darker = tuple(radius_mm), tuple(contrast), darker
        self.organ, self.lesion = organ, lesion

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with lesions."""
        d = dict(data)
        self.randomize(None)
        label: Tensor = d[self.label_key][0]
        inside = (label == self.organ).nonzero() if self._do_transform else label.new_zeros(0)
        if not len(inside):
            return d
        for _ in range(self.R.randint(self.max_lesions) + 1):
            self._draw(d, label, inside[self.R.randint(len(inside))])
        return d

    def _draw(self, d: dict[Hashable, Any], label: Tensor, centre: Tensor) -> None:
        low, high = (math.log(mm) for mm in self.radius_mm)
        radius_mm = math.exp(self.R.uniform(low, high))
        radii = [radius_mm * self.R.uniform(0.75, 1.33) / mm for mm in self.spacing[: label.ndim]]
        reach = [math.ceil(2 * radius) for radius in radii]
        box = tuple(
            slice(max(int(c) - n, 0), min(int(c) + n + 1, size))
            for c, n, size in zip(centre, reach, label.shape, strict=True)
        )
        axes = [
            (torch.arange(part.start, part.stop) - int(c)) / radius
            for part, c, radius in zip(box, centre, radii, strict=True)
        ]
        distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
        coarse = torch.tensor(self.R.uniform(-1, 1, (1, 1, *[5] * label.ndim)), dtype=torch.float32)
        uneven = F.interpolate(
            coarse, distance.shape, mode=INTERPOLATION[label.ndim], align_corners=True
        )[0, 0]
        distance = distance + self.R.uniform(0, 0.5) * uneven
        body = torch.sigmoid((1 - distance) / self.R.uniform(0.03, 0.2))
        organ = label[box] == self.organ
        if self.lesion is not None:
            organ = organ | (label[box] == self.lesion)
        amplitude = self.R.uniform(self.contrast[0], self.contrast[1]) * (
            -1 if self.R.rand() < self.darker else 1
        )
        change = amplitude * body
        if self.R.rand() < 1 / 3:
            change = change - self.R.uniform(0, 0.5) * amplitude * torch.exp(
                -(((distance - 1) / 0.15) ** 2)
            )
        for key in self.keys:
            d[key][(slice(None), *box)] += change * organ
        if self.lesion is not None:
            label[box][(body > 0.5) & organ] = self.lesion


class RandSliceThicknessd(RandomizableTransform, MapTransform):
    """Average an image over thick slices along an axis and interpolate back, as if acquired so.

    Args:
        keys: images (C, H, W) or (C, H, W, D), float.
        spacing: mm along the spatial axes.
        prob: of the change.
        thickness_mm: least and largest thickness; slices thinner than the spacing change nothing.
        axes: the spatial axes of which one is drawn.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        prob: float = 0.3,
        thickness_mm: Sequence[float] = (1, 10),
        axes: Sequence[int] = (2,),
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.spacing, self.thickness_mm, self.axes = list(spacing), tuple(thickness_mm), list(axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with thick slices."""
        d = dict(data)
        self.randomize(None)
        axis = self.axes[self.R.randint(len(self.axes))]
        thickness_mm = self.R.uniform(self.thickness_mm[0], self.thickness_mm[1])
        for key in self.keys if self._do_transform else ():
            image: Tensor = d[key]
            size = list(image.shape[1:])
            thick = [*size]
            thick[axis] = max(1, round(size[axis] * self.spacing[axis] / thickness_mm))
            if thick[axis] < size[axis]:
                mode = INTERPOLATION[len(size)]
                averaged = F.interpolate(image[None], thick, mode="area")
                d[key] = F.interpolate(averaged, size, mode=mode, align_corners=False)[0]
        return d


class RandCutOffd(RandomizableTransform, MapTransform):
    """Cut off the lower or upper end of volumes along one axis, as in scans that cut the organ.

    Args:
        keys: images and labels (1, H, W, D); beyond the cut they are 0. They are changed in place.
        label_key: the label that says where an organ is.
        prob: of a cut.
        axis: the spatial axis.
    """

    def __init__(
        self, keys: KeysCollection, label_key: str, prob: float = 0.2, axis: int = 2
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key, self.axis = label_key, axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, cut off at a slice drawn from those that show something of the label."""
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        slices = d[self.label_key][0].movedim(self.axis, 0)
        shown = slices.flatten(1).any(1).nonzero()[:, 0]
        if len(shown):
            position = int(shown[self.R.randint(len(shown))])
            lower = self.R.rand() < 0.5
            beyond = slice(0, position) if lower else slice(position + 1, None)
            for key in self.keys:
                d[key].movedim(1 + self.axis, 0)[beyond] = 0
        return d
