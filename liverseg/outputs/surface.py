"""Draw surfaces of masks, lit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import find_objects, gaussian_filter, zoom
from skimage.measure import marching_cubes

from liverseg.handlers.overlays import encode_png
from liverseg.outputs.overlays import PLANE_PIXELS, Scan, rgb
from liverseg.transforms.morphology import bounding_box

# Fine enough for a picture, and some ten thousand triangles for a liver.
GRID_MM = 3.0
# As many as a browser without a graphics card turns smoothly.
MOST_TRIANGLES = 40_000
# Voxels around the mask, so that its surface is closed.
PADDING = 3
# From the patient's left, in front, above; of length 1.
LIGHT = np.array([-0.48, 0.7, 0.53])
# From in front and a little above; x grows to the patient's right, which is on the picture's left.
ELEVATION = np.radians(10)
TO_RIGHT = np.array([-1.0, 0, 0])
TO_TOP = np.array([0, -np.sin(ELEVATION), np.cos(ELEVATION)])
TO_VIEWER = np.array([0, np.cos(ELEVATION), np.sin(ELEVATION)])
MARGIN = 0.05
# Pixels are drawn at this size and averaged, which smooths edges without gaps between triangles.
OVERSAMPLING = 2
# How much of what lies behind it the surface of an outer class hides.
GLASS_OPACITY = 0.45


class Mesh(NamedTuple):
    """A closed surface.

    Attributes:
        points: (N, 3), mm from the outer corner of the first voxel, in RAS order.
        faces: (M, 3), indices of points.
        normals: (N, 3), outwards, of length 1.
    """

    points: np.ndarray
    faces: np.ndarray
    normals: np.ndarray


def surface_mesh(mask: np.ndarray, spacing_mm: Sequence[float], grid_mm: float = GRID_MM) -> Mesh:
    """Return the surface of a mask on a grid of about `grid_mm`.

    Args:
        mask: (X, Y, Z), bool, in RAS order, not empty.
        spacing_mm: voxel size along the three axes.
        grid_mm: how fine.
    """
    found = bounding_box(mask)
    assert found is not None
    low = np.array([part.start for part in found])
    box = mask[found].astype(np.float32)
    # At least one voxel of the grid, also of a mask of one slice.
    factors = np.maximum(np.divide(spacing_mm, grid_mm), 1 / np.array(box.shape))
    grid = zoom(box, factors, order=1, grid_mode=True, mode="nearest")
    # Whole voxels of the grid fill the box, so they are only about as long as asked for.
    step_mm = np.multiply(box.shape, spacing_mm) / grid.shape
    smooth = gaussian_filter(np.pad(grid, PADDING), 1)
    points, faces, normals, _ = marching_cubes(smooth, smooth.max() / 2, spacing=tuple(step_mm))
    return Mesh(points + low * spacing_mm + (0.5 - PADDING) * step_mm, faces, normals)


def class_meshes(mask: np.ndarray, spacing_mm: Sequence[float]) -> dict[int, Mesh]:
    """Return the surface of each class of a mask, all of them with at most 40,000 triangles.

    Args:
        mask: (X, Y, Z), class indices, in RAS order.
        spacing_mm: voxel size along the three axes.
    """
    boxes = {value: box for value, box in enumerate(find_objects(mask.astype(np.uint8)), 1) if box}
    grid_mm = GRID_MM
    while True:
        meshes = {}
        for value, box in boxes.items():
            mesh = surface_mesh(mask[box] == value, spacing_mm, grid_mm)
            corner_mm = np.multiply([part.start for part in box], spacing_mm)
            meshes[value] = mesh._replace(points=mesh.points + corner_mm)
        triangles = sum(len(mesh.faces) for mesh in meshes.values())
        if triangles <= MOST_TRIANGLES:
            return meshes
        grid_mm *= max(1.1, (triangles / MOST_TRIANGLES) ** 0.5)


def lit_triangles(mesh: Mesh, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the triangles of a surface, and their colours in the light.

    Args:
        mesh: the surface.
        colour: "#rrggbb", in full light.

    Returns:
        Corners, (N, 3, 3), in mm as in `mesh`, and RGB, 0…1, (N, 3).
    """
    towards_light = mesh.normals[mesh.faces].mean(1) @ LIGHT
    light = 0.35 + 0.65 * towards_light.clip(0, 1)
    return mesh.points[mesh.faces], np.outer(light, rgb(colour)) / 255


def surface_png(scan: Scan) -> bytes:
    """Return `surface_picture` as PNG."""
    return encode_png(surface_picture(scan))


def surface_picture(scan: Scan, inner: Collection[int] = ()) -> np.ndarray:
    """Draw the surfaces of a mask from the front: patient right on the left, head up.

    Args:
        scan: with a mask that is not empty.
        inner: classes that lie inside others and are seen through them.

    Returns:
        RGB (640, 640, 3), uint8.
    """
    meshes = class_meshes(scan.mask, scan.spacing_mm)
    points = np.concatenate([mesh.points for mesh in meshes.values()])
    seen = points @ np.stack([TO_RIGHT, TO_TOP]).T
    low, high = seen.min(0), seen.max(0)
    side = PLANE_PIXELS * OVERSAMPLING
    pixels_per_mm = side * (1 - 2 * MARGIN) / (high - low).max()
    layers = []
    for chosen in (True, False):
        lit = [
            lit_triangles(mesh, scan.colours[value])
            for value, mesh in meshes.items()
            if (value in inner) == chosen
        ]
        layer = np.zeros((side, side, 3), np.uint8)
        if lit:
            corners, colours = (np.concatenate(parts) for parts in zip(*lit, strict=True))
            across = corners @ np.stack([TO_RIGHT, -TO_TOP]).T
            centre = (low + high) / 2 * (1, -1)
            pixels = ((across - centre) * pixels_per_mm + side / 2).round().astype(np.int32)
            for index in np.argsort(corners.mean(1) @ TO_VIEWER):
                cv2.fillConvexPoly(layer, pixels[index], (255 * colours[index]).tolist())
        layers.append(layer)
    inside, outside = layers
    both = inside.any(-1) & outside.any(-1)
    mixed = cv2.addWeighted(outside, GLASS_OPACITY, inside, 1 - GLASS_OPACITY, 0)
    picture = np.where(both[..., None], mixed, np.maximum(inside, outside))
    return cv2.resize(picture, (PLANE_PIXELS, PLANE_PIXELS), interpolation=cv2.INTER_AREA)
