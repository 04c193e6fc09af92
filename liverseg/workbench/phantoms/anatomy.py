"""The synthetic patient of the phantoms: its size, pose, organs and lesions as implicit shapes.

A shape is a function of points that is negative inside and about a distance in mm. Points are three
arrays x, y, z in mm in the patient's own frame: x to the right, y to the front, z to the head,
origin in the middle of the trunk at the height of the liver. Shapes use only + - * / and sqrt,
which every CPU rounds the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

ORGANS = {
    "background": 0,
    "fat": 1,
    "visceral_fat": 2,
    "muscle": 3,
    "bone": 4,
    "lung": 5,
    "heart": 6,
    "liver": 7,
    "gallbladder": 8,
    "spleen": 9,
    "right_kidney": 10,
    "left_kidney": 11,
    "stomach": 12,
    "pancreas": 13,
    "aorta": 14,
    "vena_cava": 15,
    "portal_vein": 16,
    "bowel": 17,
}
WARP_STEP_MM = 70.0
WARP_NODES = 13
MAX_LESIONS = 5
LESION_RADIUS_MM = (5.0, 25.0)

Array = NDArray[np.float32]
Points = tuple[Array, Array, Array]
Shape = Callable[[Points], Array]
Vector = Sequence[float] | NDArray[np.float64]
INF = math.inf
HILUM = (32.0, 6.0, -12.0)


def ellipsoid(p: Points, centre: Vector, radii: Vector, lean: float = 0.0) -> Array:
    """Return an ellipsoid that leans by `lean` mm in x per mm in z.

    An infinite radius makes it a cylinder along that axis.
    """
    total: Array | float = 0.0
    for axis, (value, c, r) in enumerate(zip(p, centre, radii, strict=True)):
        if math.isfinite(r):
            scaled = (value - np.float32(c)) * np.float32(1 / r)
            if axis == 0 and lean:
                scaled = scaled - (p[2] - np.float32(centre[2])) * np.float32(lean / r)
            total = total + scaled * scaled
    return (np.sqrt(total) - 1) * np.float32(min(radii))


def tube(p: Points, start: Vector, end: Vector, radius: float, end_radius: float) -> Array:
    """Return a straight tube with round ends whose radius goes from `radius` to `end_radius`."""
    px, py, pz = (value - np.float32(s) for value, s in zip(p, start, strict=True))
    dx, dy, dz = (np.float32(e - s) for s, e in zip(start, end, strict=True))
    t = np.clip((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
    px, py, pz = px - t * dx, py - t * dy, pz - t * dz
    return np.sqrt(px * px + py * py + pz * pz) - (
        np.float32(radius) + t * np.float32(end_radius - radius)
    )


def blend(a: Array, b: Array, width_mm: float) -> Array:
    """Return a union whose crease is rounded over about `width_mm`."""
    h = np.maximum(np.float32(width_mm) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / width_mm)


def carve(a: Array, b: Array, width_mm: float) -> Array:
    """Return `a` without `b`, the new edge rounded over about `width_mm`."""
    return -blend(-a, b, width_mm)


class Patient:
    """Size, pose and organ shapes of one synthetic patient."""

    def __init__(self, seed: int, num_lesions: int | None) -> None:
        rng = np.random.default_rng([seed, 0])
        self.seed = seed
        self.scale = rng.uniform(0.95, 1.04)
        # A rotation about z from the half-angle's tangent needs no sine, whose last bit differs
        # between CPUs.
        t = rng.uniform(-0.05, 0.05)
        self.cos, self.sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        self.off_centre_mm = rng.uniform(-1, 1, 3) * (8, 8, 6)
        self.warp = rng.uniform(-22, 22, (3, WARP_NODES, WARP_NODES, WARP_NODES))
        self.trunk_radii = (rng.uniform(156, 168), rng.uniform(106, 118))
        self.fat_mm = rng.uniform(9, 24)
        self.wall_mm = rng.uniform(11, 15)
        self.rib_phase_mm = rng.uniform(0, 30)
        self.liver_size = rng.uniform(0.84, 0.98)
        self.left_lobe_mm = rng.uniform(55, 88)
        self.tip_mm = rng.uniform(65, 92)
        self.jitter = rng.uniform(-5, 5, (8, 3))
        self.lesions = self._place_lesions(np.random.default_rng([seed, 1]), num_lesions)

    def outline(self, p: Points, inset_mm: float, back_mm: float) -> Array:
        """Return the trunk, `inset_mm` below the skin in front and beside, `back_mm` at the back.

        Seen from above it lies between an ellipse and a superellipse of exponent 4; it narrows
        towards the head.
        """
        x, y, z = p
        a, b = self.trunk_radii
        half_depth = b - (inset_mm + back_mm) / 2
        u = x * (1 + np.float32(0.0007) * z) * np.float32(1 / (a - inset_mm))
        v = (y - np.float32((back_mm - inset_mm) / 2)) * np.float32(1 / half_depth)
        u, v = u * u, v * v
        oval = np.float32(0.5) * (np.sqrt(u + v) + np.sqrt(np.sqrt(u * u + v * v)))
        return (oval - 1) * np.float32(half_depth)

    def muscle(self, p: Points) -> Array:
        """Return the trunk within the subcutaneous fat."""
        return self.outline(p, self.fat_mm, 0.5 * self.fat_mm + 3)

    def cavity(self, p: Points) -> Array:
        """Return the trunk within the muscular wall."""
        return self.outline(p, self.fat_mm + self.wall_mm, 0.5 * self.fat_mm + self.wall_mm + 3)

    def ribs(self, p: Points) -> Array:
        """Return rings in the wall that sink towards the front, above the costal margin."""
        x, y, z = p
        depth = self.fat_mm + 0.55 * self.wall_mm
        across = self.outline(p, depth, 0.5 * self.fat_mm + 3 + 0.55 * self.wall_mm)
        height = (z + np.float32(0.45) * y - np.float32(self.rib_phase_mm)) * np.float32(1 / 30)
        along = (height - np.round(height)) * np.float32(30 / 1.9)
        margin = np.float32(0.75) * y - np.float32(35) - z - np.float32(0.2) * np.abs(x)
        return np.maximum(np.sqrt(across * across + along * along) - np.float32(3.6), margin)

    def diaphragm(self, p: Points) -> Array:
        """Return a shape that is negative below the two domes."""
        x, y, z = p
        upper = np.maximum(z, np.float32(-10))
        right = ellipsoid((x, y, upper), (64, 4, -10), (80, 90, 92))
        left = ellipsoid((x, y, upper), (-64, 4, -10), (78, 88, 80))
        return blend(right, left, 30)

    def liver(self, p: Points) -> Array:
        """Blend the lobes, carve out neighbours and fissure, and cut by wall and diaphragm."""
        s, j = self.liver_size, self.jitter
        right = ellipsoid(p, (64, 2, 2), (76 * s, 80 * s, 76 * s), lean=-0.1)
        tip = ellipsoid(p, (98, 4, -self.tip_mm / 2), (34 * s, 54 * s, 0.75 * self.tip_mm))
        left = ellipsoid(p, (0, 44, 26 + j[0, 2]), (self.left_lobe_mm, 36 * s, 38 * s), lean=-0.5)
        shape = blend(blend(right, tip, 25), left, 25)
        shape = carve(shape, ellipsoid(p, (8 + j[1, 0], -6, -86 + j[1, 2]), (74, 74, 74)), 18)
        shape = carve(shape, ellipsoid(p, (-6, -58, 0), (46, 44, INF)), 20)
        shape = carve(shape, self.fissure(p), 6)
        shape = carve(shape, self.right_kidney(p) - 2, 6)
        shape = carve(shape, self.vena_cava(p) - 1, 4)
        shape = carve(shape, self.gallbladder(p), 5)
        # 2 mm into the wall's muscle: no line of fat between the two.
        shape = np.maximum(shape, self.cavity(p) - 2)
        return np.maximum(shape, self.diaphragm(p) + 3)

    def fissure(self, p: Points) -> Array:
        """Return the fissure of the round ligament, between the left and right lobes in front."""
        return ellipsoid(p, (12 + self.jitter[2, 0], 78, -24), (5, 42, 34), lean=0.2)

    def kidney_centre(self, side: int) -> tuple[float, float, float]:
        """Return a kidney's centre: `side` 1 is the right one, -1 the left one, which is higher."""
        x, y, z = self.jitter[3 + side]
        return (side * 60 + x, -50 + 0.5 * y, -54 - 8 * side + z)

    def right_kidney(self, p: Points) -> Array:
        """Return the right kidney."""
        return ellipsoid(p, self.kidney_centre(1), (29, 26, 54), lean=-0.22)

    def left_kidney(self, p: Points) -> Array:
        """Return the left kidney."""
        return ellipsoid(p, self.kidney_centre(-1), (28, 27, 54), lean=0.22)

    def vena_cava(self, p: Points) -> Array:
        """Return the inferior vena cava."""
        return ellipsoid(p, (22, -22, 0), (14, 11, INF), lean=0.02)

    def gallbladder(self, p: Points) -> Array:
        """Return the gallbladder."""
        j = self.jitter[5]
        return tube(p, (50 + j[0], 20, -24), (62 + j[0], 50 + j[1], -52), 8, 15 + 0.5 * j[2])

    def spleen(self, p: Points) -> Array:
        """Return the spleen: hollow towards the stomach, cut by wall and diaphragm."""
        j = self.jitter[6]
        outer = ellipsoid(p, (-102, -34 + j[1], 14 + j[2]), (38, 52 + j[0], 52), lean=0.1)
        inner = ellipsoid(p, (-70, -8, 8), (36, 46, 60))
        outer = np.maximum(carve(outer, inner, 8), self.cavity(p) - 2)
        return np.maximum(outer, self.diaphragm(p) + 3)

    def stomach(self, p: Points) -> Array:
        """Return fundus, body and antrum of the stomach, cut by wall and diaphragm."""
        j = self.jitter[7]
        fundus = ellipsoid(p, (-68 + j[0], 12, 34), (42, 46, 40))
        body = tube(p, (-74, 30, 24), (-42, 46 + j[1], -30), 36, 28)
        antrum = tube(p, (-42, 46 + j[1], -30), (22, 34, -34), 26, 15)
        shape = np.maximum(blend(blend(fundus, body, 15), antrum, 15), self.cavity(p) - 1)
        return np.maximum(shape, self.diaphragm(p) + 3)

    def _place_lesions(
        self, rng: np.random.Generator, num_lesions: int | None
    ) -> list[tuple[Vector, Vector]]:
        """Return centre and radii of each lesion.

        Each lies wholly inside the liver, a few mm from every other.
        """
        count = rng.integers(0, MAX_LESIONS + 1) if num_lesions is None else num_lesions
        directions = rng.standard_normal((60, 3))
        directions /= np.sqrt((directions * directions).sum(1, keepdims=True))
        directions = np.concatenate((directions, 0.5 * directions))
        lesions: list[tuple[Vector, Vector]] = []
        radius = rng.uniform(*LESION_RADIUS_MM)
        while len(lesions) < count:
            radii = np.clip(radius * rng.uniform(0.85, 1.15, 3), *LESION_RADIUS_MM)
            centre = rng.uniform((-40, -70, -80), (140, 80, 80))
            x, y, z = (centre + directions * (radii + 3)).astype(np.float32).T
            apart = all(
                math.dist(centre, other) > max(radii) + max(other_radii) + 8
                for other, other_radii in lesions
            )
            if apart and self.liver((x, y, z)).max() < 0:
                lesions.append((centre, radii))
                radius = rng.uniform(*LESION_RADIUS_MM)
            else:
                # Smaller at each failure, so that the search ends in any liver.
                radius = max(0.995 * radius, LESION_RADIUS_MM[0])
        return lesions


def liver_vessels(rng: np.random.Generator) -> list[tuple[tuple[Vector, Vector], Vector]]:
    """Return portal branches and hepatic veins as tubes: both ends, radius at both ends.

    They start at the hilum and at the vena cava.
    """
    vena_cava = (22, -20, 60)
    trunks = [(HILUM, end) for end in ((68, -12, 2), (72, 28, 6), (2, 40, 20))]
    trunks += [(vena_cava, end) for end in ((88, -22, 28), (60, 34, 32), (-8, 38, 42))]
    growing = [
        (np.array(start), np.array(end) + rng.uniform(-8, 8, 3), 6.5, 0) for start, end in trunks
    ]
    tubes: list[tuple[tuple[Vector, Vector], Vector]] = []
    while growing:
        start, end, radius, generation = growing.pop()
        tubes.append(((start, end), (radius, 0.75 * radius)))
        if generation < 3:
            length = math.dist(start, end)
            for _ in range(2):
                way = (end - start) / length + rng.uniform(-0.8, 0.8, 3)
                tip = end + 0.72 * length / math.dist(way, (0, 0, 0)) * way
                growing.append((end, tip, 0.72 * radius, generation + 1))
    return tubes
