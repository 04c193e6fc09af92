"""Read the voxels of a DICOM series, and where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.io.dicom_pixels import read_pixels
from liverseg.io.dicom_series import Series, name_of, normal_of, shifts_of

# LPS, the axes of DICOM, to RAS, those of NIfTI.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Above this, padding is no air: it is stored as tissue is.
TISSUE_HU = -500

# Slices that are put in place at a time: one by one, each voxel would be its own write.
SLAB = 16


def read_voxels(series: Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the voxels (columns, rows, slices) on the grid of `grid_of`, float32, and warnings.

    Voxels for which nothing was measured (PixelPaddingValue, and what lies beside a slice where the
    gantry was tilted) are as dark as the darkest of the others, or 0 where that is how padding is
    stored.

    Raises:
        InputError: for pixels that cannot be read, and for a copy of a slice that is another
            picture.
    """
    for original, copy in series.copies:
        if not np.array_equal(
            *(read_pixels(each.file)[0][each.frame] for each in (original, copy))
        ):
            raise InputError(
                f"{series.path}: {name_of(original)} and {name_of(copy)} have the same "
                "SOPInstanceUID and position, but other pixels, expected one slice "
                "there: remove the wrong one."
            )
    padding: Counter[float] = Counter()
    volume = stack(series, _planes(series, padding), np.float32(np.nan), order=1)
    unknown = np.isnan(volume)
    if unknown.any():
        darkest = 0 if unknown.all() else np.nanmin(volume)
        # The background of MRI stays 0.
        volume[unknown] = min(darkest, *padding) if padding and min(padding) >= 0 else darkest
    tissue = [value for value in padding if value > TISSUE_HU]
    if not tissue or series.slices[0].modality != "CT":
        return volume, ()
    count = sum(padding[value] for value in tissue)
    return volume, (
        f"{count} voxels of {min(tissue):g} HU are marked as padding (PixelPaddingValue) and "
        f"were read as {volume[unknown][0]:g} HU: where they show tissue, export the series "
        "without PixelPaddingValue.",
    )


def grid_of(series: Series) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape (columns, rows, slices) of a series and its affine (4, 4) to RAS mm.

    The axes are perpendicular. Where the gantry was tilted, so that each slice lies a little beside
    the one before, the grid is wide enough for all of them and `stack` puts each in its place:
    NIfTI could say how they lie, but ITK, and 3D Slicer with it, refuses axes that are not
    perpendicular.
    """
    slices, shifts = series.slices, shifts_of(series.slices)
    low, high = np.floor(shifts.min(axis=0)), np.ceil(shifts.max(axis=0))
    rows, columns = slices[0].size
    shape = int(columns + high[0] - low[0]), int(rows + high[1] - low[1]), len(slices)
    (row, column), normal = slices[0].orientation, normal_of(slices[0])
    row_mm, column_mm = slices[0].spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * column_mm, column * row_mm
    affine[:3, 2] = normal * (
        (slices[-1].position - slices[0].position) @ normal / (len(slices) - 1)
    )
    affine[:3, 3] = slices[0].position + affine[:3, :2] @ low
    return shape, LPS_TO_RAS @ affine


def stack(series: Series, planes: Iterable[np.ndarray], fill: np.generic, order: int) -> np.ndarray:
    """Stack the planes (rows, columns) of the slices to a volume on the grid of `grid_of`.

    Args:
        series: where they lie.
        planes: images or masks.
        fill: what lies beside a slice where the gantry was tilted; the volume is of its dtype.
        order: of the interpolation there: 1 for images, 0 for masks.
    """
    shape, _ = grid_of(series)
    volume = np.empty(shape, fill.dtype)
    shifts = shifts_of(series.slices)
    shifts = shifts - np.floor(shifts.min(axis=0))

    def placed(plane: np.ndarray, shift: np.ndarray) -> np.ndarray:
        if not shifts.any():
            return plane.T
        return ndimage.affine_transform(
            plane.T, np.ones(2), -shift, shape[:2], order=order, cval=fill, output=volume.dtype
        )

    slices = (placed(plane, shift) for plane, shift in zip(planes, shifts, strict=True))
    for start in range(0, len(shifts), SLAB):
        volume[:, :, start : start + SLAB] = np.stack(list(islice(slices, SLAB)), axis=-1)
    return volume


def unstack(series: Series, mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the part (rows, columns) of a mask on the grid of `grid_of` that lies on each slice.

    The inverse of `stack`. Where the gantry was tilted, each pixel is the nearest voxel.
    """
    shape = series.slices[0].size[::-1]
    shifts = shifts_of(series.slices)
    shifts = shifts - np.floor(shifts.min(axis=0))
    for plane, shift in zip(np.moveaxis(mask, -1, 0), shifts, strict=True):
        if not shifts.any():
            yield plane.T
            continue
        yield ndimage.affine_transform(
            plane, np.ones(2), shift, shape, order=0, output=mask.dtype
        ).T


def _planes(series: Series, padding: Counter[float]) -> Iterator[np.ndarray]:
    """Yield the slices, NaN where nothing was measured, and count in `padding` what was there."""
    file, stored, empty = None, np.empty(0), None
    for each in series.slices:
        # The frames of a file follow each other, mostly.
        if each.file != file:
            file, (stored, empty) = each.file, read_pixels(each.file, each.inverted)
            if stored.shape[1:] != each.size:
                raise InputError(
                    f"{file}: its pixels have the shape {stored.shape}, expected "
                    f"{each.size}: export it again."
                )
        plane = stored[each.frame] * np.float32(each.slope) + np.float32(each.intercept)
        if empty is not None and empty[each.frame].any():
            values, counts = np.unique(plane[empty[each.frame]], return_counts=True)
            padding.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            plane[empty[each.frame]] = np.nan
        yield plane
