from __future__ import annotations

import itertools
import math
import struct

import nibabel as nib
import numpy as np
import pytest
import trimesh
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from liverseg.errors import InputError
from liverseg.io.nifti import read_nifti
from liverseg.outputs.meshes import write_meshes
from liverseg.outputs.segmentation import Segmentation

NAMES = {1: "liver", 2: "lesion", 3: "right_kidney", 4: "spleen"}
LPS = np.array([-1, -1, 1])


def oblique(spacing_mm, flips=(1, 1, 1)):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (8, -11, 20), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.multiply(spacing_mm, flips))
    affine[:3, 3] = 13, -40, 700
    return affine


def organs(shape=(50, 60, 24)):
    """A liver with a lesion of one voxel and a larger one, and a kidney."""
    x, y, z = np.indices(shape)
    mask = np.zeros(shape, np.uint8)
    mask[((x - 22) / 16) ** 2 + ((y - 28) / 24) ** 2 + ((z - 10) / 9) ** 2 < 1] = 1
    mask[((x - 22) / 5) ** 2 + ((y - 26) / 6) ** 2 + ((z - 10) / 3) ** 2 < 1] = 2
    mask[30, 30, 12] = 2
    mask[((x - 43) / 5) ** 2 + ((y - 44) / 8) ** 2 + ((z - 14) / 6) ** 2 < 1] = 3
    return mask


def write(mask, affine, folder, suffix, names=NAMES):
    return write_meshes(Segmentation("scan.nii.gz", mask, affine, names), folder, suffix)


@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_surfaces_enclose_their_class_in_lps(tmp_path, suffix):
    mask, affine = organs(), oblique((1.2, 1.1, 3.0))
    paths = write(mask, affine, tmp_path / "Fläche", suffix)
    assert [path.name for path in paths] == [
        f"{name}{suffix}" for name in ("liver", "lesion", "right_kidney")
    ]
    for index, path in enumerate(paths, start=1):
        mesh = trimesh.load_mesh(path)
        assert mesh.is_watertight and mesh.is_winding_consistent
        voxels = np.argwhere(mask == index)
        volume_mm3 = len(voxels) * abs(np.linalg.det(affine[:3, :3]))
        assert mesh.volume == pytest.approx(volume_mm3, rel=0.02)
        centroid = nib.affines.apply_affine(affine, voxels).mean(0)
        assert mesh.center_mass * LPS == pytest.approx(centroid, abs=0.2)


def inside(mesh, points):
    """Whether points lie in a closed surface whose triangles face outwards: by winding numbers."""
    a, b, c = np.moveaxis(mesh.triangles[None] - points[:, None, None], 2, 0)
    la, lb, lc = (np.linalg.norm(each, axis=-1) for each in (a, b, c))
    above = np.einsum("...i,...i", a, np.cross(b, c))
    below = la * lb * lc
    for one, other, length in ((a, b, lc), (b, c, la), (c, a, lb)):
        below = below + np.einsum("...i,...i", one, other) * length
    return 2 * np.arctan2(above, below).sum(1) / (4 * math.pi)


def test_triangles_face_outwards_whatever_the_axes_of_the_file(tmp_path):
    mask = organs()[::2, ::2, ::2]
    outside = nib.affines.apply_affine(np.eye(4), [[0, 0, 0], [24, 0, 11]])
    for flips in itertools.product((1, -1), repeat=3):
        for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
            affine = oblique((2.4, 2.2, 6.0), flips)
            turned = affine @ nib.orientations.inv_ornt_aff(
                np.stack([axes, [1, 1, 1]], 1), mask.shape
            )
            path, *_ = write(
                nib.orientations.apply_orientation(mask, np.stack([axes, [1, 1, 1]], 1)),
                turned,
                tmp_path,
                ".stl",
            )
            mesh = trimesh.load_mesh(path)
            points = np.concatenate([np.argwhere(mask == 1)[::97], outside, [[11, 13, 5]]])
            lps = nib.affines.apply_affine(affine, points) * LPS
            # The last two are air, the very last is a lesion.
            expected = [1] * (len(points) - 3) + [0, 0, 0]
            assert inside(mesh, lps) == pytest.approx(expected, abs=1e-3)


def test_stl_and_obj_say_their_axes(tmp_path):
    (path, *_) = write(organs(), np.eye(4), tmp_path, ".stl")
    content = path.read_bytes()
    assert content[:80].rstrip() == b"SPACE=LPS"
    assert len(content) == 84 + 50 * struct.unpack("<I", content[80:84])[0]
    (path, *_) = write(organs(), np.eye(4), tmp_path, ".obj")
    assert "# SPACE=LPS" in path.read_text().splitlines()[:5]


def test_glb_has_all_classes_in_their_colours_in_metres(tmp_path):
    mask, affine = organs(), oblique((1.2, 1.1, 3.0))
    (path,) = write(mask, affine, tmp_path, ".glb", NAMES | {3: "heart"})
    assert path.name == "segmentation.glb"
    scene = trimesh.load_scene(path)
    assert sorted(scene.geometry) == ["heart", "lesion", "liver"]
    colours = {"liver": (221, 130, 101), "lesion": (144, 238, 144), "heart": (206, 110, 84)}
    for index, name in ((1, "liver"), (2, "lesion"), (3, "heart")):
        mesh = scene.geometry[name]
        assert tuple(mesh.visual.material.baseColorFactor[:3]) == colours[name]
        voxels = np.argwhere(mask == index)
        right, anterior, superior = nib.affines.apply_affine(affine, voxels).mean(0) / 1000
        mesh.merge_vertices(merge_norm=True)
        assert mesh.is_watertight
        assert mesh.center_mass == pytest.approx([-right, superior, anterior], abs=2e-4)
        volume_m3 = len(voxels) * abs(np.linalg.det(affine[:3, :3])) / 1e9
        assert mesh.volume == pytest.approx(volume_m3, rel=0.02)


@pytest.mark.parametrize("radius", [5, 12])
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.8, 0.8, 2.5)])
def test_a_ball_has_the_volume_of_its_voxels_and_no_stairs(tmp_path, radius, spacing_mm):
    half = np.ceil(radius / np.array(spacing_mm)).astype(int) + 1
    mm = (np.stack(np.indices(2 * half + 1), -1) - half) * spacing_mm
    mask = (np.linalg.norm(mm - 0.2, axis=-1) <= radius).astype(np.uint8)
    (path,) = write(mask, np.diag([*spacing_mm, 1]), tmp_path, ".stl")
    mesh = trimesh.load_mesh(path)
    assert mesh.volume == pytest.approx(mask.sum() * np.prod(spacing_mm), rel=0.03)
    middle = (half * spacing_mm + 0.2) * LPS
    distances = np.linalg.norm(mesh.vertices - middle, axis=1)
    assert np.abs(distances - radius).max() < 0.75 * max(spacing_mm)
    assert mesh.area == pytest.approx(4 * math.pi * radius**2, rel=0.06)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.5, 0.9])
def test_surfaces_of_any_mask_are_closed(tmp_path, share):
    rng = np.random.default_rng(1)
    mask = (rng.random((14, 15, 9)) < share).astype(np.uint8)
    mask[:7] = gaussian_filter(rng.standard_normal((7, 15, 9)), 1) > 0
    (path,) = write(mask, oblique((1, 1, 2)), tmp_path, ".stl")
    assert trimesh.load_mesh(path).is_watertight


def test_one_voxel_has_a_closed_surface_around_it(tmp_path):
    mask = np.zeros((5, 5, 1), np.uint8)
    mask[4, 2, 0] = 2
    affine = oblique((0.8, 0.8, 5))
    (path,) = write(mask, affine, tmp_path, ".stl")
    mesh = trimesh.load_mesh(path)
    assert mesh.is_watertight and mesh.volume == pytest.approx(0.8 * 0.8 * 5, rel=0.02)
    middle = nib.affines.apply_affine(affine, [4, 2, 0])
    assert mesh.center_mass * LPS == pytest.approx(middle, abs=1e-3)


@pytest.mark.real_data
def test_real_organs_keep_their_volume_within_two_percent(tmp_path, samples):
    volume = read_nifti(samples / "ts_mr_organs.nii.gz")
    mask = volume.array.astype(np.uint8)
    voxel_mm3 = abs(np.linalg.det(volume.affine[:3, :3]))
    sizes = {value: np.count_nonzero(mask == value) * voxel_mm3 for value in np.unique(mask)[1:]}
    assert max(sizes.values()) > 1e5
    names = {value: f"organ {value}" for value in sizes}
    for value, path in zip(sizes, write(mask, volume.affine, tmp_path, ".stl", names), strict=True):
        mesh = trimesh.load_mesh(path)
        assert mesh.is_watertight
        if sizes[value] > 20_000:
            assert mesh.volume == pytest.approx(sizes[value], rel=0.02)


def test_a_class_that_is_gone_leaves_no_old_surface(tmp_path):
    mask = organs()
    write(mask, np.eye(4), tmp_path, ".stl")
    mask[mask == 2] = 1
    write(mask, np.eye(4), tmp_path, ".stl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["liver.stl", "right_kidney.stl"]
    write(mask, np.eye(4), tmp_path, ".glb")
    assert write(np.zeros_like(mask), np.eye(4), tmp_path, ".glb") == []
    assert not list(tmp_path.glob("*.glb"))


def test_wrong_input_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"suffix: found '.ply', expected one of .stl, .obj, .glb"):
        write(organs(), np.eye(4), tmp_path, ".ply")
    with pytest.raises(InputError, match="found the value 3 in its mask"):
        write(organs(), np.eye(4), tmp_path, ".stl", {1: "liver", 2: "lesion"})
