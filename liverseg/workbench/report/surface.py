"""Draw surfaces of masks, lit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.ndimage import gaussian_filter, zoom
from skimage.measure import marching_cubes

from liverseg.workbench.report.overlays import MASK_COLOUR, PLANE_PIXELS, Scan

# Fine enough for a picture, and some ten thousand triangles, which matplotlib draws in seconds.
GRID_MM = 3.0
MARGIN_MM = 10.0
# Voxels around the mask, so that its surface is closed.
PADDING = 3
# From the patient's left, in front, above; of length 1.
LIGHT = np.array([-0.48, 0.7, 0.53])


def surface_png(scan: Scan) -> bytes:
    """Return a PNG of the mask's surface from the front: patient right on the left, head up.

    Args:
        scan: with a mask that is not empty.
    """
    figure = Figure((PLANE_PIXELS / 100, PLANE_PIXELS / 100), dpi=100, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1), projection="3d", facecolor="black")
    draw_triangles(axes, *lit_triangles(scan.mask, scan.spacing_mm, MASK_COLOUR))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def lit_triangles(
    mask: np.ndarray, spacing_mm: Sequence[float], colour: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the surface of a mask as triangles on a grid of 3 mm, and their colours in the light.

    Args:
        mask: (X, Y, Z) in RAS order, not empty.
        spacing_mm: voxel size along the three axes.
        colour: in full light.

    Returns:
        Corners, (N, 3, 3), in mm from the outer corner of the first voxel, and RGB, (N, 3).
    """
    inside = np.argwhere(mask)
    low, high = inside.min(0), inside.max(0) + 1
    box = mask[tuple(map(slice, low, high))].astype(np.float32)
    factors = np.divide(spacing_mm, GRID_MM)
    grid = zoom(box, factors, order=1, grid_mode=True, mode="nearest")
    # Whole voxels of the grid fill the box, so they are only about 3 mm long.
    grid_mm = np.multiply(box.shape, spacing_mm) / grid.shape
    smooth = gaussian_filter(np.pad(grid, PADDING), 1)
    points, faces, normals, _ = marching_cubes(smooth, smooth.max() / 2, spacing=tuple(grid_mm))
    points += low * spacing_mm + (0.5 - PADDING) * grid_mm
    towards_light = normals[faces].mean(1) @ LIGHT
    return points[faces], np.outer(0.35 + 0.65 * towards_light.clip(0, 1), to_rgb(colour))


def draw_triangles(
    axes: Any,
    triangles: np.ndarray,
    colours: np.ndarray,
    box_mm: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draw triangles from the front: patient right on the left, head up.

    Args:
        axes: of matplotlib, with the projection "3d".
        triangles: (N, 3, 3), mm in RAS order.
        colours: RGB, (N, 3).
        box_mm: the least and the greatest corner of what the picture shows; None shows all.
    """
    low, high = box_mm or (triangles.min((0, 1)), triangles.max((0, 1)))
    axes.set_proj_type("ortho")
    # From in front and a little above: x grows to the patient's right, which is on
    # the picture's left.
    axes.view_init(elev=10, azim=90)
    axes.add_collection3d(
        Poly3DCollection(triangles, facecolors=colours, edgecolors=colours, linewidths=0.3)
    )
    reach = (high - low).max() / 2 + MARGIN_MM
    for set_limits, centre in zip(
        (axes.set_xlim, axes.set_ylim, axes.set_zlim), (high + low) / 2, strict=True
    ):
        set_limits(centre - reach, centre + reach)
    axes.set_box_aspect((1, 1, 1), zoom=1.5)
    axes.set_axis_off()
