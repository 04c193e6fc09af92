"""Check a scan and its label: is the geometry sound, and does the mask lie over the organ?"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from liverseg.io.masks import recorded_flags
from liverseg.outputs.overlays import CT_HOLDS_HU, Scan, in_ras_order, plane_png
from liverseg.transforms import LoadVolumed
from liverseg.transforms.labels import whole_values
from liverseg.transforms.plausibility import check_intensities, check_spacing

OK, SUSPICIOUS, BROKEN = "ok", "suspicious", "broken"
# The median of a liver: a fatty one without contrast agent comes down to about 0 HU, fat itself is
# at -100 HU, and no liver in a contrast phase comes near 250 HU.
LIVER_HU = (-30.0, 250.0)
# In MR, air is below this share of the brightest tissue; so is some tissue, but that lies within
# brighter one.
MR_DARK_SHARE = 0.1
MR_BRIGHTEST_PERCENTILE = 99.0
# Soft tissue with its neighbours; how far outside something lies says nothing more.
CT_CLIP_HU = (-200.0, 300.0)
# The flipped mask must be this much more homogeneous inside than the mask itself.
FLIP_RATIO = 0.8
BODY_HU = -300.0
LEFT_MM = 10.0
POINTS = 200_000
DIRECTIONS = ("left-right", "front-back", "head-foot")


@dataclass
class CaseCheck:
    """The findings of `check_case` on one case.

    Attributes:
        facts: shape, spacing, orientation, intensities, voxels of each label, and of the liver
            mean, sd and volume.
        broken: messages for which the case must not be used.
        suspicious: messages for which somebody should look at it.
        png: axial slice where the mask is largest, or None where the mask is empty.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    png: bytes | None = None

    @property
    def verdict(self) -> str:
        """ "ok", "suspicious" or "broken"."""
        return BROKEN if self.broken else SUSPICIOUS if self.suspicious else OK


def check_case(
    image_path: Path, label_path: Path, labels: Mapping[str, str], modality: str | None = None
) -> CaseCheck:
    """Check a scan and its label.

    Args:
        image_path: NIfTI file, or folder of one DICOM series.
        label_path: NIfTI file on the same grid.
        labels: name of each value in the label; the checks of the organ are made on the one called
            "liver", and left out where none is.
        modality: "ct" or "mr"; None takes a scan that holds air in HU for CT.

    Raises:
        InputError: for a file that is missing or not readable, a label on another grid, or label
            values that are not whole.
    """
    volumes = LoadVolumed(["image", "label"])({"image": str(image_path), "label": str(label_path)})
    volumes["label"] = whole_values(volumes["label"])
    warnings = [
        f"the {key}: {line}"
        for key in ("image", "label")
        for line in volumes[key].meta["warnings"].splitlines()
    ]
    names = {"0": "background", **labels}
    stored = volumes["image"].affine.numpy()
    shape = tuple(volumes["image"].shape[1:])
    image, affine = in_ras_order(volumes.pop("image"))
    label, _ = in_ras_order(volumes.pop("label"))
    spacing = nib.affines.voxel_sizes(affine)
    low, high = float(image.min()), float(image.max())
    ct = low <= CT_HOLDS_HU if modality is None else modality == "ct"
    counts = _count_values(label)
    voxels: Counter[str] = Counter()  # several values may share a name
    for value, count in sorted(counts.items()):
        voxels[names.get(str(value), str(value))] += count
    found = CaseCheck(
        {
            "modality": "ct" if ct else "mr",
            "shape": list(shape),
            "spacing_mm": [round(float(mm), 4) for mm in nib.affines.voxel_sizes(stored)],
            "orientation": "".join(nib.aff2axcodes(stored)),
            # A writer in LPS, as ITK is, leaves the first two axes mirrored where it knows nothing.
            "identity_affine": bool(np.allclose(np.abs(stored), np.eye(4))),
            "intensity_min": low,
            "intensity_max": high,
            "voxels": voxels,
        }
    )
    found.suspicious += [*warnings, *recorded_flags(label_path).values()]
    if wrong := check_spacing(spacing.tolist()):
        found.broken.append(wrong)
    if found.facts["identity_affine"]:
        found.suspicious.append("the affine is the identity: spacing and orientation are lost")
    if odd := check_intensities(image, found.facts["modality"]):
        found.suspicious.append(odd[1])
    if unknown := [str(value) for value in sorted(counts) if str(value) not in names]:
        more = f" and {len(unknown) - 5} others" if len(unknown) > 5 else ""
        found.broken.append(
            f"the label holds {', '.join(unknown[:5])}{more}, which names no class of this data set"
        )
    livers = [int(value) for value, name in names.items() if name.strip().lower() == "liver"]
    mask = np.isin(label, livers) if livers else label > 0
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    others = (label > 0) & ~mask
    scan = Scan(
        image, mask, others if others.any() else None, tuple(float(mm) for mm in spacing), voxel_ml
    )
    if mask.any():
        if livers:
            _check_organ(found, scan, ct=ct)
        found.png = plane_png(scan, "axial")
    else:
        found.broken.append(f"the mask of the {'liver' if livers else 'organ'} is empty")
    return found


def _count_values(label: np.ndarray) -> Counter[int]:
    counts: Counter[int] = Counter()
    for plane in np.moveaxis(label, -1, 0):
        # np.unique sorts, which is slow, and only needed for values that are no labels.
        small = plane.astype(np.uint8)
        if np.array_equal(small, plane):
            counts.update(dict(enumerate(np.bincount(small.ravel()).tolist())))
        else:
            values, numbers = np.unique(plane, return_counts=True)
            counts.update(dict(zip(map(int, values), numbers.tolist(), strict=True)))
    return +counts  # without those of 0


def _check_organ(found: CaseCheck, scan: Scan, *, ct: bool) -> None:
    """Look at the intensities under the mask, and under the mask flipped along each axis."""
    inside = scan.image[scan.mask]
    median = float(np.median(inside))
    found.facts["liver"] = {
        "mean": round(float(inside.mean(dtype=np.float64)), 2),
        "sd": round(float(inside.std(dtype=np.float64)), 2),
        "median": median,
        "volume_ml": round(scan.mask_ml, 1),
    }
    coarse = tuple(slice(None, None, max(1, n // 64)) for n in scan.image.shape)
    sample = scan.image[coarse]
    if ct:
        clip, plausible, body_from = CT_CLIP_HU, LIVER_HU, BODY_HU
        low, high = LIVER_HU
        if not low <= median <= high:
            found.broken.append(
                f"the median under the liver's mask is {median:.0f} HU, expected {low:.0f} to "
                f"{high:.0f} HU: the mask does not lie over the liver"
            )
    else:
        brightest = float(np.percentile(sample, MR_BRIGHTEST_PERCENTILE))
        body_from = MR_DARK_SHARE * brightest
        clip, plausible = (float(sample.min()), brightest), (body_from, math.inf)
        dark = (
            f"the median under the liver's mask is {median:.0f}, as dark as air (brightest "
            f"tissue: {brightest:.0f})"
        )
        if median < body_from and _outside(sample > body_from, scan.mask[coarse]) > 0.5:
            found.broken.append(
                f"{dark}, and most of it is outside the body: the mask does not lie over the liver"
            )
        elif median < body_from:
            found.suspicious.append(dark)
    if flip := _better_flip(scan, clip, plausible):
        found.broken.append(f"the mask fits the scan when it is flipped {flip}, and not as it is")
    # A mask that is flipped itself says nothing about the scan.
    elif (left_mm := _left_of_body(scan, sample, body_from)) > LEFT_MM:
        found.suspicious.append(
            f"the liver lies {left_mm:.0f} mm to the left of the body's middle: the scan is "
            "flipped left-right, its affine is wrong, or the organs are mirrored (situs inversus)"
        )


def _outside(body: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the mask that no body surrounds in its axial slice."""
    filled = np.stack(
        [ndimage.binary_fill_holes(plane) for plane in np.moveaxis(body, -1, 0)], axis=-1
    )
    return 1 - float(filled[mask].mean()) if mask.any() else 0.0


def _better_flip(scan: Scan, clip: tuple[float, float], plausible: tuple[float, float]) -> str:
    """Name the flip that puts the mask over something far more homogeneous that may be liver.

    Empty where none does.

    A liver is the most homogeneous large thing in the abdomen. A mask that lies elsewhere covers
    several tissues.
    """
    flat = np.flatnonzero(scan.mask)
    points = np.array(np.unravel_index(flat[:: max(1, len(flat) // POINTS)], scan.mask.shape))
    last = np.array(scan.mask.shape)[:, None] - 1

    def spread(axes: tuple[int, ...]) -> tuple[float, float]:
        flipped = points.copy()
        flipped[list(axes)] = (last - points)[list(axes)]
        values = np.clip(scan.image[tuple(flipped)], *clip)
        median = float(np.median(values))
        return float(np.abs(values - median).mean()), median

    as_is, _ = spread(())
    flips = [axes for count in (1, 2, 3) for axes in itertools.combinations(range(3), count)]
    fits = [(*spread(axes), axes) for axes in flips]
    likely = [
        (value, axes) for value, median, axes in fits if plausible[0] <= median <= plausible[1]
    ]
    value, axes = min(likely, default=(math.inf, ()))
    return " and ".join(DIRECTIONS[axis] for axis in axes) if value < FLIP_RATIO * as_is else ""


def _left_of_body(scan: Scan, sample: np.ndarray, threshold: float) -> float:
    """Return how far the mask's centre lies to the left of the body's, in mm."""
    body = sample > threshold
    if not body.any():
        return 0.0
    step = max(1, scan.image.shape[0] // 64)
    middle = float(np.average(np.arange(body.shape[0]), weights=body.sum((1, 2)))) * step
    centre = float(np.average(np.arange(scan.mask.shape[0]), weights=scan.mask.sum((1, 2))))
    return (middle - centre) * scan.spacing_mm[0]
