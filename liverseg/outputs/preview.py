"""Draw one picture of a scan and its mask."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import cv2
import numpy as np

from liverseg.files import atomic_write
from liverseg.handlers.overlays import encode_png
from liverseg.outputs.overlays import FONT, PLANES, plane_picture, rgb
from liverseg.outputs.segmentation import Segmentation
from liverseg.outputs.shown import inner_classes, shown_scan
from liverseg.outputs.surface import surface_picture

NOTICE = "Not for clinical use"
GAP_PIXELS, LINE_PIXELS, NAMES_PER_LINE = 8, 30, 3
GREY = (170, 170, 170)


def preview_png(
    path: str | os.PathLike[str],
    segmentation: Segmentation,
    image: np.ndarray,
    colours: Mapping[int, str],
) -> None:
    """Write the picture of `draw_preview`.

    Args:
        path: the file to write.
        segmentation, image, colours: as of `draw_preview`.

    Raises:
        InputError: as `draw_preview`, and for a `path` that cannot be written.
    """
    picture = draw_preview(segmentation, image, colours)
    with atomic_write(path) as file:
        file.write(picture)


def draw_preview(
    segmentation: Segmentation, image: np.ndarray, colours: Mapping[int, str]
) -> bytes:
    """Draw the slices where the mask is largest, its surface, and the names of its classes.

    Args:
        segmentation: the mask.
        image: (H, W, D), HU or intensities, the voxels of its scan.
        colours: "#rrggbb" of each class.

    Returns:
        A PNG.

    Raises:
        InputError: as `shown_scan`.
    """
    scan = shown_scan(segmentation, image, colours)
    panels = [plane_picture(scan, plane) for plane in PLANES]
    found = [int(value) for value in np.unique(scan.mask) if value]
    if found:
        surface = surface_picture(scan, inner_classes(segmentation.class_names))
        # Of a scan of few slices, most of the picture is black.
        lit = np.flatnonzero(surface.any(axis=(1, 2)))
        panels.append(surface[lit[0] : lit[-1] + 1])
    names = [(segmentation.name(value), rgb(colours[value])) for value in found]
    picture = _two_by_two(panels)
    legend = _legend(names or [("The mask is empty.", GREY)], picture.shape[1])
    return encode_png(np.concatenate([picture, legend]))


def _two_by_two(panels: list[np.ndarray]) -> np.ndarray:
    """Return the panels on black, each in the middle of its cell."""
    widths = [max(panel.shape[1] for panel in panels[column::2]) for column in (0, 1)]
    heights = [max(panel.shape[0] for panel in panels[row : row + 2]) for row in (0, 2)]
    picture = np.zeros((sum(heights) + GAP_PIXELS, sum(widths) + GAP_PIXELS, 3), np.uint8)
    for index, panel in enumerate(panels):
        row, column = divmod(index, 2)
        height, width = panel.shape[:2]
        top = row * (heights[0] + GAP_PIXELS) + (heights[row] - height) // 2
        left = column * (widths[0] + GAP_PIXELS) + (widths[column] - width) // 2
        picture[top : top + height, left : left + width] = panel
    return picture


def _legend(names: list[tuple[str, tuple[int, int, int]]], width: int) -> np.ndarray:
    lines = math.ceil(len(names) / NAMES_PER_LINE)
    picture = np.zeros(((lines + 1) * LINE_PIXELS, width, 3), np.uint8)
    texts = [(index, name, colour) for index, (name, colour) in enumerate(names)]
    for index, text, colour in [*texts, (lines * NAMES_PER_LINE, NOTICE, GREY)]:
        line, column = divmod(index, NAMES_PER_LINE)
        place = column * width // NAMES_PER_LINE + 12, line * LINE_PIXELS + 21
        cv2.putText(picture, text, place, FONT, 0.6, colour, 1, cv2.LINE_AA)
    return picture
