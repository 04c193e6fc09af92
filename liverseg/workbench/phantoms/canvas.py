"""The voxel grid that a synthetic patient is painted on, organ by organ, with partial volume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from liverseg.workbench.phantoms.anatomy import (
    HILUM,
    INF,
    ORGANS,
    WARP_STEP_MM,
    Array,
    Patient,
    Points,
    Shape,
    Vector,
    ellipsoid,
    liver_vessels,
    tube,
)


def smooth_field(nodes: NDArray[np.float64], axes_mm: Sequence[NDArray[np.float64]]) -> Array:
    """Evaluate the cubic B-spline over `nodes` (n, n, n) on the grid of three axes in mm.

    The nodes are 70 mm apart around 0.
    """
    field = nodes
    for axis_mm in axes_mm:
        position = np.clip(axis_mm / WARP_STEP_MM + len(nodes) // 2, 1, len(nodes) - 2)
        t = np.abs(position[:, None] - np.arange(len(nodes)))
        near, far = 2 / 3 - t * t + t * t * t / 2, np.maximum(2 - t, 0)
        weights = np.where(t < 1, near, far * far * far / 6)
        # Contracts the leading axis and puts the new one last: after three turns the order is x, y,
        # z again.
        field = np.tensordot(field, weights, (0, 1))
    return field.astype(np.float32)


class Canvas:
    """Paint shapes on an image and an organ map (X, Y, Z), later ones over earlier ones."""

    def __init__(
        self, patient: Patient, shape: tuple[int, ...], spacing: tuple[float, ...], air: float
    ) -> None:
        extent = np.array(shape) * spacing
        body_mm = 2 * np.array(patient.trunk_radii) * patient.scale
        liver_mm = np.array((55.0, 5.0))
        in_plane = np.where((extent[:2] < body_mm).any(), liver_mm, 0.0)
        centre = np.array((*in_plane, -6.0)) + patient.off_centre_mm
        origin = centre - (np.array(shape) - 1) / 2 * spacing
        self.affine = np.diag((*spacing, 1.0))
        self.affine[:3, 3] = origin
        self.axes_mm = [
            o + np.arange(n) * s for o, n, s in zip(origin, shape, spacing, strict=True)
        ]
        self.image: Array = np.full(shape, air, np.float32)
        self.organs = np.zeros(shape, np.uint8)
        self.lesion = np.zeros(shape, bool)
        wx, wy, wz = np.meshgrid(*self.axes_mm, indexing="ij", sparse=True)
        cos, sin, s = patient.cos, patient.sin, patient.scale
        straight = ((cos * wx + sin * wy) / s, (cos * wy - sin * wx) / s, wz / s)
        self._xyz = []
        self._margin_mm = 0.0
        for nodes, axis in zip(patient.warp, straight, strict=True):
            shift = smooth_field(nodes, self.axes_mm)
            self._margin_mm = max(self._margin_mm, float(np.abs(shift).max()))
            self._xyz.append(shift + axis.astype(np.float32))
        self._margin_mm += 2 * max(spacing)
        self._patient = patient

    def _box(self, centre: Vector, reach_mm: float) -> tuple[slice, ...]:
        """Return the voxels that a shape around `centre` can touch."""
        p = self._patient
        x, y, z = centre
        world = (p.scale * (p.cos * x - p.sin * y), p.scale * (p.sin * x + p.cos * y), p.scale * z)
        reach = p.scale * (reach_mm + self._margin_mm)
        return tuple(
            slice(*np.searchsorted(axis, (middle - reach, middle + reach)))
            for axis, middle in zip(self.axes_mm, world, strict=True)
        )

    def paint(
        self,
        shape: Shape,
        intensity: float,
        organ: str = "",
        *,
        around: tuple[Vector, float] | None = None,
        within: str = "",
        lesion: bool = False,
    ) -> None:
        """Paint the inside of `shape`, voxels at its edge in part; they belong to it from half on.

        Args:
            shape: the implicit function.
            intensity: what it is filled with.
            organ: name in `ORGANS`; empty to leave the organ map as it is.
            around: centre and reach in mm that hold the whole shape, to save time.
            within: paint only where the organ map has this organ.
            lesion: also mark the voxels as lesion.
        """
        box = self._box(*around) if around else (slice(None),) * 3
        image, organs = self.image[box], self.organs[box]
        if image.size == 0:
            return
        x, y, z = self._xyz
        share = _occupancy(shape((x[box], y[box], z[box])))
        if within:
            share *= organs == ORGANS[within]
        image += share * (np.float32(intensity) - image)
        if organ:
            organs[share >= 0.5] = ORGANS[organ]
        if lesion:
            self.lesion[box] |= share >= 0.5

    def labels(self) -> NDArray[np.uint8]:
        """Return the labels as LiTS has them: 1 liver, 2 lesion."""
        labels = (self.organs == ORGANS["liver"]).astype(np.uint8)
        labels[self.lesion] = 2
        return labels


def _occupancy(implicit: Array) -> Array:
    """Return the share of each voxel that lies inside, as if the surface were a plane there.

    The exact share is a ramp smoothed over the voxel's three sides; a single ramp of the same
    variance, as wide as the change of `implicit` per voxel, comes close and costs little.
    """
    square = np.full_like(implicit, 1e-12)
    for axis in range(3):
        if implicit.shape[axis] > 1:
            change = np.gradient(implicit, axis=axis)
            square += change * change
    return np.clip(np.float32(0.5) - implicit / np.sqrt(square), 0, 1)


def paint_patient(canvas: Canvas, patient: Patient, tissue: Mapping[str, float]) -> None:
    """Paint all organs of `patient`, with the mean intensities `tissue`."""
    paint, rng = canvas.paint, np.random.default_rng([patient.seed, 2])

    def oval(centre: Vector, radii: Vector, intensity: str, organ: str, within: str = "") -> None:
        around = (centre, max(radii)) if math.isfinite(max(radii)) else None
        paint(
            partial(ellipsoid, centre=centre, radii=radii),
            tissue[intensity],
            organ,
            around=around,
            within=within,
        )

    def pipe(
        points: Sequence[Vector], radii: Vector, intensity: str, organ: str, within: str = ""
    ) -> None:
        for (start, end), (r0, r1) in zip(pairwise(points), pairwise(radii), strict=True):
            shape = partial(tube, start=start, end=end, radius=r0, end_radius=r1)
            around = ((np.array(start) + end) / 2, math.dist(start, end) / 2 + max(r0, r1))
            paint(shape, tissue[intensity], organ, around=around, within=within)

    # Trunk wall and chest.
    paint(lambda p: patient.outline(p, 0, 0), tissue["skin"], "fat")
    paint(lambda p: patient.outline(p, 2.5, 2.5), tissue["fat"], "fat")
    paint(patient.muscle, tissue["muscle"], "muscle")
    paint(patient.ribs, tissue["cortical bone"], "bone")
    paint(lambda p: patient.ribs(p) + np.float32(1.6), tissue["marrow"], "bone")
    paint(patient.cavity, tissue["fat"], "visceral_fat")

    paint(
        lambda p: np.maximum(patient.cavity(p) + 3, 1.5 - patient.diaphragm(p)),
        tissue["lung"],
        "lung",
    )
    for start in rng.uniform((-110, -60, 40), (110, 60, 115), (30, 3)):
        pipe(
            (start, start + rng.uniform(-14, 14, 3) + (0, 0, 8)),
            (2.2, 1.5),
            "lung vessel",
            "",
            within="lung",
        )
    oval((-20, 28, 118), (72, 56, 46), "heart wall", "heart")
    oval((-34, 24, 120), (40, 38, 32), "blood", "heart")
    oval((22, 32, 124), (26, 30, 34), "blood", "heart")
    oval((0, -30, 100), (26, 40, 60), "fat", "visceral_fat", within="lung")

    # Spine and its muscles, great vessels.
    for side in (-1, 1):
        oval((side * 32, -81, 0), (29, 17, INF), "muscle", "muscle")
        pipe(
            ((side * 26, -46, 30), (side * 42, -46, -60), (side * 56, -36, -150)),
            (4, 17, 24),
            "muscle",
            "muscle",
        )
        pipe(((side * 20, -22, 75), (side * 14, -28, -30)), (8, 5), "muscle", "muscle")
        for level in range(-4, 5):
            pipe(
                ((side * 10, -66, 34 * level), (side * 38, -76, 34 * level)),
                (6, 4),
                "cortical bone",
                "bone",
            )
    oval((0, -48, 0), (25, 19, INF), "cortical bone", "bone")
    oval((0, -48, 0), (22.5, 16.5, INF), "marrow", "bone")
    for level in range(-4, 5):
        oval((0, -48, 34 * level + 17), (25, 19, 5), "disc", "bone")
        pipe(((0, -80, 34 * level - 4), (0, -96, 34 * level - 16)), (6, 4), "cortical bone", "bone")
    oval((0, -73, 0), (15, 12, INF), "cortical bone", "bone")
    oval((0, -73, 0), (10, 8, INF), "canal", "bone")
    pipe(
        ((-8, -22, 150), (-10, -20, 0), (-6, -22, -95), (-6, -22, -150)),
        (12, 11, 9, 9),
        "aorta",
        "aorta",
    )
    paint(patient.vena_cava, tissue["vena cava"], "vena_cava")

    # Retroperitoneum.
    for organ, kidney, side in (
        ("left_kidney", patient.left_kidney, -1),
        ("right_kidney", patient.right_kidney, 1),
    ):
        x, y, z = patient.kidney_centre(side)
        around = ((x, y, z), 60.0)
        paint(kidney, tissue["renal cortex"], organ, around=around)
        paint(
            partial(_inset, shape=kidney, depth_mm=8),
            tissue["renal medulla"],
            around=around,
            within=organ,
        )
        oval((x - side * 17, y + 6, z), (17, 7, 20), "fat", "visceral_fat", within=organ)
    pipe(
        ((34, 0, -46), (10, 4, -28), (-40, -4, -6), (-78, -18, 8)),
        (17, 12, 12, 9),
        "pancreas",
        "pancreas",
    )

    # Bowel: small-bowel loops, the colon as a frame around them, the duodenum.
    for _ in range(34):
        loop = rng.uniform((-85, -22, -150), (80, 62, -52)) + np.array(
            [(0, 0, 0), rng.uniform(-34, 34, 3)]
        )
        loop_radii = rng.uniform(9, 15) * np.ones(2)
        pipe(loop, loop_radii, "bowel wall", "bowel", within="visceral_fat")
        pipe(
            loop,
            loop_radii - 3,
            ("food", "food", "fluid", "air")[rng.integers(4)],
            "",
            within="bowel",
        )
    right_side = ((100, -12, -150), (98, 0, -90), (78, 44, -66))
    left_side = ((-80, 40, -50), (-104, 6, -20), (-108, -20, -150))
    colon = (*right_side, (0, 58, -84), *left_side)
    colon_radii = rng.uniform(16, 24, len(colon))
    pipe(colon, colon_radii, "bowel wall", "bowel", within="visceral_fat")
    pipe(colon, colon_radii - 3, "food", "", within="bowel")
    for start, end in pairwise(colon):
        gas = np.array(start) + rng.uniform(0, 1) * (np.array(end) - start) + (0, 7, 0)
        oval(gas, rng.uniform(6, 13, 3), "air", "", within="bowel")
    pipe(((20, 34, -34), (44, 14, -44), (40, -8, -88)), (15, 13, 12), "food", "bowel")

    # Upper abdomen. The liver comes last and takes a little of the spleen, stomach and wall that it
    # touches.
    around = ((-60, 25, 10), 100.0)
    gas_level = np.float32(rng.uniform(28, 52))
    content = partial(_inset, shape=patient.stomach, depth_mm=4)
    paint(patient.stomach, tissue["stomach wall"], "stomach", around=around)
    paint(content, tissue["food"], around=around, within="stomach")
    paint(
        lambda p: np.maximum(content(p), gas_level - p[1]),
        tissue["air"],
        around=around,
        within="stomach",
    )
    paint(patient.spleen, tissue["spleen"], "spleen", around=((-98, -34, 14), 70))
    paint(patient.gallbladder, tissue["bile"], "gallbladder", around=((55, 35, -38), 50))
    pipe(((4, 0, -56), (20, 6, -34), HILUM), (7, 7, 6.5), "liver vein", "portal_vein")
    paint(patient.liver, tissue["liver"], "liver", around=((45, 0, 0), 135))
    for points, vessel_radii in liver_vessels(rng):
        pipe(points, vessel_radii, "liver vein", "", within="liver")
    # Most lesions are darker than the liver, some lighter; the larger ones have a darker core.
    for middle, radii in patient.lesions:
        target = tissue["bright lesion" if rng.random() < 0.2 else "dark lesion"]
        value = tissue["liver"] + rng.uniform(0.6, 1.3) * (target - tissue["liver"])
        whole = partial(ellipsoid, centre=middle, radii=radii)
        paint(whole, value, around=(middle, max(radii)), within="liver", lesion=True)
        if max(radii) > 14:
            core = partial(_inset, shape=whole, depth_mm=0.5 * min(radii))
            paint(core, value - 0.15 * tissue["liver"], around=(middle, max(radii)), within="liver")


def _inset(p: Points, shape: Shape, depth_mm: float) -> Array:
    return shape(p) + np.float32(depth_mm)
