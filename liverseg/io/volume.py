"""A volume, and where its voxels lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What voxels of a scan of the body may measure, the finest and the thickest slices included.
SPACING_MM = (0.1, 20.0)


@dataclass(frozen=True)
class Volume:
    """A volume as it lies in its file.

    Attributes:
        array: (H, W, D), HU or intensities or label values.
        affine: (4, 4), voxel index to RAS mm.
        warnings: what the person who gave the file should know, one message each.
        other_affines: (4, 4) each, where other programs show the same file; a label that lies there
            is on its grid.
    """

    array: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()
    other_affines: tuple[np.ndarray, ...] = ()


def corners(shape: Sequence[int]) -> np.ndarray:
    """Return the indices of the eight corner voxels of a volume (H, W, D), shape (8, 3)."""
    return np.array(list(itertools.product(*((0, length - 1) for length in shape[:3]))))


def largest_offset_mm(shape: Sequence[int], one: np.ndarray, other: np.ndarray) -> float:
    """Return how far apart two affines (4, 4) put a voxel of a volume (H, W, D), at most, in mm.

    The offset is linear in the voxel's index, so it is largest in a corner.
    """
    step = other - one
    return float(np.linalg.norm(corners(shape) @ step[:3, :3].T + step[:3, 3], axis=1).max())
