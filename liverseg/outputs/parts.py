"""Parts of a scan: a box of voxels, and where it lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine

from liverseg.data.segment_names import our_name
from liverseg.errors import InputError
from liverseg.outputs.segmentation import Segmentation
from liverseg.transforms.morphology import NO_BOX, Box, bounding_box


@dataclass(frozen=True)
class Part:
    """A box of a scan.

    Attributes:
        mask: (h, w, d), class indices, or bool.
        affine: (4, 4), index in the box to RAS mm; its axes may be oblique or sheared.
        image: (h, w, d), HU or intensities; None where nobody gave them.
    """

    mask: np.ndarray
    affine: np.ndarray
    image: np.ndarray | None = None

    def around(self, inside: np.ndarray) -> Part:
        """Return the part around a mask (h, w, d), with a voxel to each side that is in the box."""
        box = bounding_box(inside, (1, 1, 1)) or NO_BOX
        return self.cut(box, inside[box])

    def cut(self, box: Box, mask: np.ndarray) -> Part:
        """Return the part in `box`, with another mask."""
        affine = self.affine.copy()
        affine[:3, 3] = apply_affine(affine, [side.start for side in box])
        image = None if self.image is None else self.image[box]
        return Part(np.ascontiguousarray(mask), affine, image)

    def of(self, values: Sequence[int]) -> Part:
        """Return the part around the voxels of some classes; its mask is bool."""
        return self.around(np.isin(self.mask, values))


def class_parts(
    segmentation: Segmentation, image: np.ndarray | None = None
) -> tuple[Part, dict[str, list[int]]]:
    """Return the part with all classes of a scan, and the values of each class by our name of it.

    Raises:
        InputError: for a value without a name, and an image of another shape.
    """
    mask, scan = segmentation.mask, segmentation.scan
    if image is not None and image.shape != mask.shape:
        raise InputError(
            f"{scan}: found {image.shape} voxels, and {mask.shape} in its mask, expected one grid: "
            "take the scan that the mask was made from."
        )
    values = defaultdict(list)
    for value, name in segmentation.class_names.items():
        values[our_name(name)].append(value)
    whole = Part(mask, np.asarray(segmentation.affine, np.float64), image)
    part = whole.cut(box := bounding_box(mask > 0, (1, 1, 1)) or NO_BOX, mask[box])
    unnamed = part.mask[~np.isin(part.mask, [0, *segmentation.class_names])]
    if unnamed.size:
        raise InputError(
            f"{scan}: found the value {unnamed[0]} in its mask, expected one of "
            f"{', '.join(map(str, segmentation.class_names))}: name its class."
        )
    return part, dict(values)
