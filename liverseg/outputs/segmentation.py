"""A mask, and the scan and the bundle that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


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
