"""A mask, and the scan and the bundle that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Segmentation:
    """A mask on the grid of its scan.

    Attributes:
        scan: its path, as `read_volume` takes it.
        mask: (H, W, D), uint8, class indices; 0 is background.
        affine: (4, 4), voxel index to RAS mm.
        class_names: of each value above 0, also of those that the mask does not hold.
        bundle: the name of the bundle that made it.
        version: the version of that bundle.
        flags: why the mask may be wrong, one message each by a short name.
        warnings: what is odd about the scan, one message each.
    """

    scan: str
    mask: np.ndarray
    affine: np.ndarray
    class_names: Mapping[int, str]
    bundle: str = ""
    version: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def name(self, value: int) -> str:
        """Return what a value is called, "segment 7" where the bundle does not say."""
        return self.class_names.get(value, f"segment {value}")


def boxes_of(mask: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return the box around each value above 0 that a mask (H, W, D), uint8, holds."""
    found = enumerate(ndimage.find_objects(mask), 1)
    return {value: box for value, box in found if box is not None}
