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
        probabilities: (num_classes − 1, H, W, D), uint8, 255 for 1, without the background's; None
            where they were not asked for. Postprocessing does not change them.
    """

    scan: str
    mask: np.ndarray = field(repr=False)
    affine: np.ndarray
    class_names: Mapping[int, str]
    bundle: str = ""
    version: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    probabilities: np.ndarray | None = field(default=None, repr=False)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """The volume of each class that was looked for."""
        # Slice by slice, as a count makes 8 bytes of each voxel.
        counts = sum(
            np.bincount(plane.ravel(), minlength=256) for plane in np.moveaxis(self.mask, -1, 0)
        )
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        return {
            name: round(float(np.take(counts, value)) * voxel_ml, 3)
            for value, name in self.class_names.items()
        }

    def name(self, value: int) -> str:
        """Return what a value is called, "segment 7" where the bundle does not say."""
        return self.class_names.get(value, f"segment {value}")


def boxes_of(mask: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return the box around each value above 0 that a mask (H, W, D), uint8, holds."""
    found = enumerate(ndimage.find_objects(mask), 1)
    return {value: box for value, box in found if box is not None}
