"""Outline masks, plane by plane."""

from __future__ import annotations

import numpy as np
from skimage.measure import find_contours


def outlines(plane: np.ndarray) -> list[np.ndarray]:
    """Return polygons around the pixels of a mask, which lie halfway between those in and out.

    A hole is joined to the polygon around it by a channel without width, along a line between
    pixels (the keyhole of DICOM PS3.3, C.8.8.6.3), so that no polygon lies in another. Pixels that
    meet at a corner are in one polygon.

    Args:
        plane: (H, W), bool.

    Returns:
        (N, 2) each, in pixels, the centre of the first at (0, 0); the last point is not the first.
    """
    # With a border, those at the edge are closed too.
    found = [
        _whole(contour[:-1] - 1)
        for contour in find_contours(np.pad(plane, 1), 0.5, fully_connected="high")
    ]
    # Around what is in, they turn the other way than around what is not.
    polygons = [each for each in found if _area(each) < 0]
    holes = [each for each in found if _area(each) > 0]
    # A hole's channel leads to what is behind it, which may be another hole: that comes first.
    for hole in sorted(holes, key=lambda each: each[_last(each), 0], reverse=True):
        start = _last(hole)
        x, y = hole[start]
        _, number, end = min(
            (polygon[index, 0], number, index)
            for number, polygon in enumerate(polygons)
            for index in np.flatnonzero((polygon[:, 1] == y) & (polygon[:, 0] > x))
        )
        polygon = polygons[number]
        around = np.roll(hole, -start, axis=0)
        polygons[number] = np.concatenate([polygon[: end + 1], around, around[:1], polygon[end:]])
    return [_without_straight(polygon) / 2 for polygon in polygons]


def _whole(contour: np.ndarray) -> np.ndarray:
    """Return a contour in half pixels, which are whole, with a point in the middle of each line.

    So each line between pixels crosses it in a point.
    """
    points = np.rint(2 * contour).astype(int)
    middles = points + np.roll(points, -1, axis=0)
    pairs = np.stack([2 * points, middles], axis=1).reshape(-1, 2)
    # Lines across a corner have none.
    return pairs[(pairs % 2 == 0).all(axis=1)] // 2


def _last(hole: np.ndarray) -> int:
    """Return the index of the last point along the first axis that lies between two lines."""
    return int(np.where(hole[:, 1] % 2 == 1, hole[:, 0], np.iinfo(int).min).argmax())


def _area(polygon: np.ndarray) -> int:
    x, y = polygon.T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def _without_straight(polygon: np.ndarray) -> np.ndarray:
    """Return a polygon without the points between two that its line goes straight through."""
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    returns = (before * after).sum(axis=1) < 0
    return polygon[turns | returns]
