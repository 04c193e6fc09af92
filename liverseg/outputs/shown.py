"""Make a scan and its mask small enough to look at: in a picture, or in a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import nibabel as nib
import numpy as np

from liverseg.data.segment_names import our_name
from liverseg.errors import InputError
from liverseg.outputs.overlays import Scan
from liverseg.outputs.segmentation import Segmentation

FINEST_MM, STEP_MM = 1.0, 0.1
# With 8 bits each and compressed, some 10 MB.
MOST_VOXELS = 14_000_000
# Classes that lie inside others: surfaces show them through these.
INNER = {"lesion", "portal vein", "hepatic vein", "hepatic vessels"}


def shown_scan(segmentation: Segmentation, image: np.ndarray, colours: Mapping[int, str]) -> Scan:
    """Return a scan with its mask in RAS order, of at most 14 million voxels.

    Whole blocks of voxels become one: of the image their mean, of the mask the class that holds
    more than half of them, in doubt a class rather than background.

    Args:
        segmentation: the mask.
        image: (H, W, D), HU or intensities, the voxels of its scan.
        colours: "#rrggbb" of each class.

    Raises:
        InputError: for an image of another shape than the mask.
    """
    if image.shape != segmentation.mask.shape:
        raise InputError(
            f"{segmentation.scan}: found a mask of {segmentation.mask.shape} voxels on a scan of "
            f"{image.shape}, expected one grid: give the mask of this scan."
        )
    order = nib.io_orientation(segmentation.affine)
    volume, mask = (
        nib.orientations.apply_orientation(array, order) for array in (image, segmentation.mask)
    )
    voxel_mm = nib.affines.voxel_sizes(segmentation.affine)[np.argsort(order[:, 0])]
    factors = _factors(volume.shape, voxel_mm)
    shape = tuple(map(math.ceil, np.divide(volume.shape, factors)))
    small, small_mask = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    # Slab by slab, as blocks of a whole volume are a copy of it.
    for index, blocks in enumerate(_blocks(volume, factors)):
        # Voxels without a value are where the scan has not been.
        small[..., index] = np.nan_to_num(blocks, nan=0).mean(-1, dtype=np.float32)
    for index, blocks in enumerate(_blocks(mask, factors)):
        middle = blocks.shape[-1] // 2
        small_mask[..., index] = np.partition(blocks, middle, axis=-1)[..., middle]
    spacing_mm = tuple(float(mm) for mm in voxel_mm * factors)
    return Scan(small, small_mask, None, spacing_mm, math.prod(spacing_mm) / 1000, colours)


def shown_voxel(scan: Scan, segmentation: Segmentation, point_ras_mm: Sequence[float]) -> list[int]:
    """Return the voxel of a `shown_scan` that holds a point, or the nearest one."""
    order = nib.io_orientation(segmentation.affine)
    affine = segmentation.affine @ nib.orientations.inv_ornt_aff(order, segmentation.mask.shape)
    index = nib.affines.apply_affine(np.linalg.inv(affine), point_ras_mm)
    factors = np.divide(scan.spacing_mm, nib.affines.voxel_sizes(affine)).round()
    voxel = np.floor((index + 0.5) / factors).astype(int)
    return np.clip(voxel, 0, np.subtract(scan.mask.shape, 1)).tolist()


def inner_classes(class_names: Mapping[int, str]) -> set[int]:
    """Return the classes that lie inside others, by their names."""
    return {value for value, name in class_names.items() if our_name(name) in INNER}


def _factors(shape: tuple[int, ...], spacing_mm: np.ndarray) -> list[int]:
    target_mm = FINEST_MM
    while True:
        factors = [max(1, int(target_mm / mm + 1e-6)) for mm in spacing_mm]
        if math.prod(map(math.ceil, np.divide(shape, factors))) <= MOST_VOXELS:
            return factors
        target_mm += STEP_MM


def _blocks(volume: np.ndarray, factors: list[int]) -> Iterator[np.ndarray]:
    """Yield the blocks of each slab, (columns, rows, voxels); the last repeat the outermost voxels.

    A block of a slab at the end has fewer slices.
    """
    across, along, up = factors
    pad = [(0, -volume.shape[0] % across), (0, -volume.shape[1] % along), (0, 0)]
    for start in range(0, volume.shape[2], up):
        slab = np.pad(volume[..., start : start + up], pad, mode="edge")
        columns, rows, slices = slab.shape
        cut = slab.reshape(columns // across, across, rows // along, along, slices)
        yield cut.transpose(0, 2, 1, 3, 4).reshape(columns // across, rows // along, -1)
