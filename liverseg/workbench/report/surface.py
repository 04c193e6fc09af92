"""Draw the surface of a mask, lit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.ndimage import gaussian_filter, zoom
from skimage.measure import marching_cubes

from liverseg.transforms.morphology import bounding_box
from liverseg.workbench.report.overlays import MASK_COLOUR, PLANE_PIXELS, Scan

# Fine enough for a picture, and some ten thousand triangles, which matplotlib draws in seconds.
GRID_MM = 3.0
MARGIN_MM = 10.0
# From the patient's right, in front, above; of length 1.
LIGHT = np.array([-0.48, 0.7, 0.53])


def surface_png(scan: Scan) -> bytes:
    """Return a PNG of the mask's surface from the front: patient right on the left, head up.

    Args:
        scan: with a mask that is not empty.
    """
    box = bounding_box(scan.mask)
    factors = np.divide(scan.spacing_mm, GRID_MM)
    grid = zoom(scan.mask[box].astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    smooth = gaussian_filter(np.pad(grid, 3), 1)
    points, faces, normals, _ = marching_cubes(smooth, smooth.max() / 2, spacing=(GRID_MM,) * 3)
    figure = Figure((PLANE_PIXELS / 100, PLANE_PIXELS / 100), dpi=100, facecolor="black")
    axes: Any = figure.add_axes((0, 0, 1, 1), projection="3d", facecolor="black")
    axes.set_proj_type("ortho")
    # From in front and a little above: x grows to the patient's right, which is on
    # the picture's left.
    axes.view_init(elev=10, azim=90)
    towards_light = normals[faces].mean(1) @ LIGHT
    colours = np.outer(0.35 + 0.65 * towards_light.clip(0, 1), to_rgb(MASK_COLOUR))
    axes.add_collection3d(
        Poly3DCollection(points[faces], facecolors=colours, edgecolors=colours, linewidths=0.3)
    )
    middle, reach = (points.max(0) + points.min(0)) / 2, np.ptp(points, 0).max() / 2 + MARGIN_MM
    for set_limits, centre in zip(
        (axes.set_xlim, axes.set_ylim, axes.set_zlim), middle, strict=True
    ):
        set_limits(centre - reach, centre + reach)
    axes.set_box_aspect((1, 1, 1), zoom=1.5)
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
