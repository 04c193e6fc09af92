"""Surfaces of a mask, for 3-D printing, planning and the web."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import trimesh
from nibabel.affines import apply_affine
from scipy.sparse import coo_array, diags_array
from skimage.measure import marching_cubes
from trimesh.exchange.obj import export_obj
from trimesh.exchange.stl import export_stl
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from liverseg.bundle import choose
from liverseg.files import atomic_write, check_writable
from liverseg.outputs.parts import Part, class_parts
from liverseg.outputs.segmentation import Segmentation

# 3D Slicer's generic colours.
COLOURS = {
    "liver": (221, 130, 101),
    "lesion": (144, 238, 144),
    "spleen": (157, 108, 162),
    "right kidney": (185, 102, 83),
    "left kidney": (185, 102, 83),
    "gallbladder": (139, 150, 98),
    "stomach": (216, 132, 105),
    "pancreas": (249, 180, 111),
    "artery": (216, 101, 79),
    "portal vein": (0, 151, 206),
}
GREY = (179, 179, 179)
# RAS mm to the axes of each format.
LPS_MM = np.diag([-1.0, -1.0, 1.0])
LEFT_UP_FRONT_M = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]) / 1000
FORMATS = {".stl": LPS_MM, ".obj": LPS_MM, ".glb": LEFT_UP_FRONT_M}
# 3D Slicer reads the axes from this comment.
SPACE = "SPACE=LPS"
# Taubin, "A signal processing approach to fair surface design", SIGGRAPH 1995: steps that shrink,
# each followed by one that grows, so that a surface loses its stairs and keeps its volume.
SHRINK, GROW, STEPS = 0.5, -0.53, 10


def write_meshes(
    segmentation: Segmentation,
    folder: str | os.PathLike[str],
    suffix: str,
    colours: Mapping[str, tuple[int, int, int]] = COLOURS,
) -> list[Path]:
    """Write the surface of each class of a mask; needs the extra `segment`.

    Surfaces are closed and their triangles face outwards. Where a class has a cavity, as the liver
    has for its lesions, it has a surface there, too.

    - `.stl` (binary) and `.obj`: a file for each class, as `right_kidney.stl`, in mm and LPS (x to
      the left, y to posterior, z to superior), the axes of DICOM, which 3D Slicer expects; a
      comment says so. A class without a voxel has no file, and that of an earlier mask is removed.
    - `.glb`: one file, `segmentation.glb`, with a coloured node for each class, as glTF 2.0 has it:
      in metres, x to the left, y to superior, z to anterior.

    Args:
        segmentation: mask, affine and names of classes.
        folder: made where it is missing.
        suffix: `.stl`, `.obj` or `.glb`.
        colours: RGB, 0 to 255, by our name of a class, for `.glb`; others are grey.

    Returns:
        The files, none for an empty mask.

    Raises:
        InputError: for another suffix, a value of the mask without a name, and when a file cannot
            be written.
    """
    axes = choose("suffix", suffix, FORMATS)
    folder = check_writable(folder)
    part, values = class_parts(segmentation)
    meshes = {name: _mesh(part.of(of_class), axes) for name, of_class in values.items()}
    if suffix == ".glb":
        files = {folder / f"segmentation{suffix}": _glb(meshes, colours)}
    else:
        files = {
            folder / f"{name.replace(' ', '_')}{suffix}": _stl(mesh) if suffix == ".stl" else _obj(mesh)
            for name, mesh in meshes.items()
        }
    for path, content in files.items():
        if content is None:
            path.unlink(missing_ok=True)
            continue
        with atomic_write(path) as file:
            file.write(content)
    return [path for path, content in files.items() if content is not None]


def _mesh(part: Part, axes: np.ndarray) -> trimesh.Trimesh | None:
    if not part.mask.any():
        return None
    padded = np.pad(part.mask, 1).astype(np.float32)
    # Half-way between the centres of voxels in and out of the mask.
    points, faces, _, _ = marching_cubes(padded, 0.5)
    points = apply_affine(part.affine, points.astype(np.float64) - 1) @ axes.T
    if np.linalg.det(axes @ part.affine[:3, :3]) < 0:
        faces = faces[:, ::-1]
    return trimesh.Trimesh(_smooth(points, faces), faces, process=False)


def _smooth(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    # Of a closed surface, each edge is there once in each direction.
    neighbours = coo_array((np.ones(len(start)), (start, end)), (len(points),) * 2).tocsr()
    mean = diags_array(1 / neighbours.sum(1)) @ neighbours
    for _ in range(STEPS):
        for step in (SHRINK, GROW):
            points = points + step * (mean @ points - points)
    return points

def _stl(m): ...
def _obj(m): ...
def _glb(m,c): ...
