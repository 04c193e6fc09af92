"""Surfaces of a mask, for 3-D printing, planning and the web."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import trimesh
from nibabel.affines import apply_affine
from scipy.sparse import coo_array, diags_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.stl import export_stl
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from liverseg.bundle import choose
from liverseg.files import atomic_write, check_writable
from liverseg.outputs.codes import code_of
from liverseg.outputs.parts import Part, class_parts
from liverseg.outputs.segmentation import Segmentation

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
FEW_POINTS = 100
# Steps along the normals towards the volume of the voxels; the first gets most of the way.
GROWTHS = 3


def write_meshes(
    segmentation: Segmentation,
    folder: str | os.PathLike[str],
    suffix: str,
) -> list[Path]:
    """Write the surface of each class of a mask; needs the extra `segment`.

    Surfaces are closed and smooth, enclose the volume of the class's voxels, and their triangles
    face outwards. Where a class has a cavity, as the liver has for its lesions, it has a surface
    there, too.

    - `.stl` (binary) and `.obj`: a file for each class, as `right_kidney.stl`, in mm and LPS (x to
      the left, y to posterior, z to superior), the axes of DICOM, which 3D Slicer expects; a
      comment says so. A class without a voxel has no file, and that of an earlier mask is removed.
    - `.glb`: one file, `segmentation.glb`, with a coloured node for each class, as glTF 2.0 has it:
      in metres, x to the left, y to superior, z to anterior.

    Args:
        segmentation: mask, affine and names of classes.
        folder: made where it is missing.
        suffix: `.stl`, `.obj` or `.glb`.

    Returns:
        The files, none for an empty mask.

    Raises:
        InputError: for another suffix, a value of the mask without a name, and when a file cannot
            be written.
    """
    axes = choose("suffix", suffix, FORMATS)
    folder = check_writable(folder)
    part, values = class_parts(segmentation)
    parts = {name: part.of(of_class) for name, of_class in values.items()}
    meshes = {name: _mesh(each, axes) for name, each in parts.items() if each.mask.any()}
    if suffix == ".glb":
        files = {"segmentation": _glb(meshes)} if meshes else {}
        names = ["segmentation"]
    else:
        files = {
            name: _stl(mesh) if suffix == ".stl" else _obj(mesh) for name, mesh in meshes.items()
        }
        names = list(values)
    paths = {name: folder / f"{name.replace(' ', '_')}{suffix}" for name in names}
    for name, path in paths.items():
        if name in files:
            with atomic_write(path) as file:
                file.write(files[name])
        else:
            path.unlink(missing_ok=True)
    return [paths[name] for name in files]


def _mesh(part: Part, axes: np.ndarray) -> trimesh.Trimesh:
    padded = np.pad(part.mask, 1).astype(np.float32)
    # Half-way between the centres of voxels in and out of the mask. Lewiner's variant cannot decide
    # between equal corners, and leaves edges with four triangles.
    points, faces, _, _ = marching_cubes(padded, 0.5, method="lorensen")
    points = apply_affine(part.affine, points.astype(np.float64) - 1) @ axes.T
    # Its triangles face inwards.
    if np.linalg.det(axes @ part.affine[:3, :3]) > 0:
        faces = faces[:, ::-1]
    mesh = trimesh.Trimesh(_smooth(points, faces), faces, process=False)
    # The surface cuts the voxels' corners off, and bit by bit that is much of a small class.
    volume = np.count_nonzero(part.mask) * abs(np.linalg.det(axes @ part.affine[:3, :3]))
    for _ in range(GROWTHS):
        mesh.vertices += (volume - mesh.volume) / mesh.area * mesh.vertex_normals
    return mesh


def _smooth(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    # Of a closed surface, each edge is there once in each direction.
    neighbours = coo_array((np.ones(len(start)), (start, end)), (len(points),) * 2).tocsr()
    mean = diags_array(1 / neighbours.sum(1)) @ neighbours
    smooth = points
    for _ in range(STEPS):
        for step in (SHRINK, GROW):
            smooth = smooth + step * (mean @ smooth - smooth)
    # A piece of a few voxels would shrink to a point.
    _, piece = connected_components(neighbours, directed=False)
    is_small = np.bincount(piece)[piece] < FEW_POINTS
    return np.where(is_small[:, None], points, smooth)


def _stl(mesh: trimesh.Trimesh) -> bytes:
    content: bytes = export_stl(mesh)
    return SPACE.encode().ljust(80) + content[80:]


def _obj(mesh: trimesh.Trimesh) -> bytes:
    content: str = export_obj(mesh, header=SPACE)
    return content.encode()


def _glb(meshes: Mapping[str, trimesh.Trimesh]) -> bytes:
    scene = trimesh.Scene()
    for name, mesh in meshes.items():
        material = PBRMaterial(
            name=name, baseColorFactor=(*(code_of(name).rgb or GREY), 255), roughnessFactor=0.6
        )
        mesh.visual = TextureVisuals(material=material)
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    content: bytes = export_glb(scene, include_normals=True)
    return content
