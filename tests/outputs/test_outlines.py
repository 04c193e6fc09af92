from __future__ import annotations

import numpy as np
import pytest
import shapely
from matplotlib.path import Path
from scipy import ndimage

from liverseg.outputs.outlines import outlines

CENTRES = np.array(list(np.ndindex(30, 26)))


def masks():
    generator = np.random.default_rng(0)
    for density in (0.1, 0.5, 0.6, 0.8, 0.95):
        yield generator.random((30, 26)) < density
    for size in (3, 5):
        yield ndimage.median_filter(generator.random((30, 26)), size) < 0.55
    yield np.ones((30, 26), bool)
    rings = np.abs(np.indices((30, 26)) - 12).max(axis=0) % 4 < 2
    yield rings
    yield np.indices((30, 26)).sum(axis=0) % 2 == 0


@pytest.mark.parametrize("number", range(10))
def test_pixels_in_the_polygons_are_those_of_the_mask(number):
    mask = list(masks())[number]
    polygons = outlines(mask)
    inside = [Path(polygon).contains_points(CENTRES) for polygon in polygons]
    # No pixel is in two.
    assert np.array_equal(np.sum(inside, axis=0).reshape(mask.shape), mask)
    _, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(polygons) == count


@pytest.mark.parametrize("number", range(10))
def test_the_polygons_hold_the_area_of_marching_squares(number):
    mask = list(masks())[number]
    # Twice the area of each square between four pixels, by how many are in.
    padded = np.pad(mask, 1)
    squares = [padded[i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)]
    corners = np.sum([square[: mask.shape[0] + 1, : mask.shape[1] + 1] for square in squares], 0)
    across = (corners == 2) & (squares[0] == squares[3])[: mask.shape[0] + 1, : mask.shape[1] + 1]
    area = np.array([0, 1, 4, 7, 8])[corners].sum() / 8 + across.sum() / 4
    assert sum(shapely.Polygon(each).area for each in outlines(mask)) == pytest.approx(area)


def test_straight_lines_have_no_points_between_their_ends():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3:8] = True
    (polygon,) = outlines(mask)
    assert len(polygon) == 8
    assert not outlines(np.zeros((4, 4), bool))
