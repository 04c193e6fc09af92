"""Make synthetic abdominal scans, CT or T1-like MRI, from analytic shapes.

They show liver, lesions and neighbouring organs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.workbench.phantoms.anatomy import MAX_LESIONS, Array, Patient
from liverseg.workbench.phantoms.canvas import Canvas, paint_patient, smooth_field

# Mean intensity of each tissue: CT in HU by contrast phase, MRI in arbitrary units. Muscle, spleen,
# pancreas, heart wall, food and stool lie closer to the liver than in most patients, so that
# intensity alone does not separate it.
_COLUMNS = ("native", "arterial", "portal", "mr")
_INTENSITY: dict[str, tuple[float, float, float, float]] = {
    "air": (-1000, -1000, -1000, 6),
    "skin": (15, 20, 25, 160),
    "fat": (-105, -105, -103, 420),
    "muscle": (53, 70, 93, 175),
    "cortical bone": (480, 480, 480, 40),
    "marrow": (170, 175, 180, 260),
    "disc": (75, 75, 80, 140),
    "canal": (20, 25, 30, 70),
    "lung": (-840, -835, -830, 18),
    "lung vessel": (0, 60, 40, 90),
    "heart wall": (48, 95, 105, 190),
    "blood": (42, 240, 140, 120),
    "liver": (56, 74, 102, 235),
    "liver vein": (38, 100, 148, 130),
    "dark lesion": (30, 42, 60, 150),
    "bright lesion": (80, 125, 145, 300),
    "bile": (6, 8, 10, 90),
    "spleen": (50, 90, 108, 165),
    "renal cortex": (34, 170, 160, 190),
    "renal medulla": (32, 70, 118, 140),
    "stomach wall": (48, 75, 95, 180),
    "food": (52, 72, 100, 215),
    "pancreas": (45, 85, 96, 240),
    "aorta": (42, 290, 150, 110),
    "vena cava": (40, 95, 132, 115),
    "bowel wall": (46, 78, 96, 185),
    "fluid": (14, 16, 18, 95),
}
PHASES = _COLUMNS[:3]
MODALITIES = ("ct", "mr")


@dataclass(frozen=True)
class Phantom:
    """One synthetic scan.

    All arrays have shape (X, Y, Z) in RAS+ order (index grows to the right, front and head).

    Attributes:
        image: float32, whole HU for CT, arbitrary units from 0 on for MRI.
        organs: uint8, ids of `ORGANS`; the liver includes its vessels and lesions.
        labels: uint8 as in LiTS: 0 background, 1 liver, 2 lesion.
        affine: float64 (4, 4), voxel index to RAS mm.
    """

    image: Array
    organs: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_phantom(
    seed: int,
    shape: Sequence[int] = (128, 128, 48),
    spacing: Sequence[float] = (3.0, 3.0, 5.0),
    *,
    modality: str = "ct",
    phase: str = "portal",
    num_lesions: int | None = None,
    noise_sd: float = 15.0,
) -> Phantom:
    """Make the scan of the synthetic patient `seed`.

    The same arguments give the same bits. The patient (anatomy, lesions) depends on `seed` and
    `num_lesions` only; the grid, the modality and the phase show this patient in another way.

    Args:
        seed: which patient, not negative.
        shape: voxels along x, y, z.
        spacing: voxel size in mm along x, y, z. The grid is centred on the liver in z, and in the
            plane on the body, or on the liver where the grid does not hold the whole body.
        modality: "ct", or "mr" for T1-like intensities with a smooth bias field and Rician noise.
        phase: CT contrast phase, "native", "arterial" or "portal"; MRI has none and ignores it.
        num_lesions: lesions in the liver, 0 to 5; None draws the number.
        noise_sd: standard deviation of the noise, in HU or in the units of the MRI.

    Raises:
        InputError: for an argument outside these ranges.
    """
    if seed < 0:
        raise InputError(f"seed: found {seed}, expected a whole number from 0 on; choose another.")
    if len(shape) != 3 or any(n != int(n) or n < 1 for n in shape):
        raise InputError(
            f"shape: found {tuple(shape)}, expected three whole numbers from 1 on; "
            "give voxels along x, y, z."
        )
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise InputError(
            f"spacing: found {tuple(spacing)}, expected three numbers "
            "above 0; give mm along x, y, z."
        )
    if modality not in MODALITIES:
        raise InputError(
            f"modality: found {modality!r}, expected one of "
            f"{', '.join(MODALITIES)}; choose one of these."
        )
    if phase not in PHASES:
        raise InputError(
            f"phase: found {phase!r}, expected one of {', '.join(PHASES)}; choose one of these."
        )
    if num_lesions is not None and not 0 <= num_lesions <= MAX_LESIONS:
        raise InputError(
            f"num_lesions: found {num_lesions}, expected 0 to {MAX_LESIONS}; choose one of these."
        )
    if not (math.isfinite(noise_sd) and noise_sd >= 0):
        raise InputError(
            f"noise_sd: found {noise_sd}, expected a number from 0 on; give "
            "the noise in HU or MRI units."
        )
    column = _COLUMNS.index("mr" if modality == "mr" else phase)
    patient = Patient(seed, num_lesions)
    rng = np.random.default_rng([seed, 3])
    # At most 4 HU, so that tissues that are alike in the table stay alike.
    tissue = {
        name: values[column]
        + (0.05 * values[column] if modality == "mr" else 4.0) * rng.uniform(-1, 1)
        for name, values in _INTENSITY.items()
    }
    tissue["air"] = _INTENSITY["air"][column]
    canvas = Canvas(patient, tuple(shape), tuple(spacing), tissue["air"])
    paint_patient(canvas, patient, tissue)
    low_frequency = smooth_field(rng.uniform(-1, 1, patient.warp.shape[1:]), canvas.axes_mm)
    image = canvas.image
    if modality == "mr":
        image *= np.maximum(1 + low_frequency, 0.3)
        real = image + noise_sd * rng.standard_normal(image.shape, np.float32)
        imaginary = noise_sd * rng.standard_normal(image.shape, np.float32)
        image = np.sqrt(real * real + imaginary * imaginary)
    else:
        image += 8 * low_frequency
        image += noise_sd * _ct_noise(rng, image.shape)
        np.clip(image, -1024, 3071, out=image)
    # Whole numbers, as a scanner stores them.
    return Phantom(np.rint(image), canvas.organs, canvas.labels(), canvas.affine)


def _ct_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return noise of standard deviation 1, partly correlated in the plane, as kernels leave it."""

    def kernel(values: Array) -> Array:
        return values + 2 * ndimage.gaussian_filter(values, (0.9, 0.9, 0))

    impulse = np.zeros((15, 15, 1), np.float32)
    impulse[7, 7] = 1
    gain = np.sqrt(np.square(kernel(impulse)).sum())
    return kernel(rng.standard_normal(shape, np.float32)) / gain
