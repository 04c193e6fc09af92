"""Flag scans that cannot be what they are taken for.

A network segments those, too, without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform

from liverseg.bundle import choose
from liverseg.errors import InputError
from liverseg.io.volume import SPACING_MM
from liverseg.transforms.load import add_flag, add_warning

# Resampled to any network's spacing, voxels beyond fill every memory.
REFUSED_MM = 100.0
# About 100 000 voxels say what a scan holds.
SAMPLES_PER_AXIS = 48

# Fat is at -100 HU and air at -1000 HU; every abdomen has some, and no magnitude image of MR has
# values below noise.
FAT_AND_AIR_HU, FAT_AND_AIR_SHARE = -50.0, 0.01
# From fat to contrast agent; what lies above is bone and metal.
SOFT_HU = (-150.0, 300.0)
# Of all voxels, and of those from fat upwards. In the real scans at hand they are above 20 % and 90
# %.
SOFT_SHARE, SOFT_SHARE_OF_BODY = 0.05, 0.75
# Of MR, how far the corners are on the way from the dark to the bright voxels where air is bright.
NEGATED_SHARE = 0.9
# What tells MR from a CT in another unit, on the way from the darkest to the brightest voxels: air
# is dark, tissues differ much (in the real scans at hand, the quartiles lie at least 0.76 of the
# median apart in MR and at most 0.54 in CT), and none is cut off as by a window.
AIR, BODY, SPREAD_OF_MR = 0.02, 0.1, 0.57
AIR_SHARE, CUT_OFF_SHARE = 0.05, 0.004

# A map of organs has whole numbers from 0 up, and most voxels of an organ have the same on either
# side.
LARGEST_LABEL, EVEN_SHARE = 255, 0.6

UNTIL_THEN = "; until then, a mask of this scan means nothing."


class CheckPlausibilityd(MapTransform):
    """Warn of spacings, and flag intensities, that cannot be those of a scan's modality.

    The scans themselves stay as they are. What is found is logged and added to the scan's `meta`: a
    spacing to `meta["warnings"]`, intensities to `meta["flags"]`. Use it right after `LoadVolumed`,
    while the intensities are those of the file. What is looked for: `check_spacing` and
    `check_intensities`.

    Args:
        keys: images as `LoadVolumed` gives them.
        modality: "ct" or "mr".

    Raises:
        InputError: for another modality, and a spacing of more than 100 mm.
    """

    def __init__(self, keys: KeysCollection, modality: str) -> None:
        super().__init__(keys)
        choose("modality", modality, _CHECKS)
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with warnings and flags."""
        d = dict(data)
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            spacing_mm = [float(mm) for mm in affine_to_spacing(image.affine)]
            if max(spacing_mm) > REFUSED_MM:
                raise InputError(f"{image.meta['filename_or_obj']}: {check_spacing(spacing_mm)}.")
            if (odd := check_spacing(spacing_mm)) is not None:
                add_warning(image, odd + UNTIL_THEN)
            found = check_intensities(image.as_tensor()[0].numpy(), self.modality)
            if found is not None:
                flag, odd = found
                add_flag(image, flag, odd + UNTIL_THEN)
        return d


def check_spacing(spacing_mm: Sequence[float]) -> str | None:
    """Return what is wrong with a spacing that no scan of a body has, or None."""
    least, most = SPACING_MM
    if all(least <= mm <= most for mm in spacing_mm):
        return None
    factors = {"metres": 1000, "micrometres": 0.001}
    units = [
        name
        for name, factor in factors.items()
        if all(least <= mm * factor <= most for mm in spacing_mm)
    ]
    wrong = f"is not in mm but seems to be in {units[0]}" if units else "is wrong"
    sizes = "×".join(f"{mm:.3g}" for mm in spacing_mm)
    return (
        f"the spacing is {sizes} mm, expected {least:g} to {most:g} mm: the header {wrong}, so "
        "correct it"
    )


def check_intensities(image: np.ndarray, modality: str) -> tuple[str, str] | None:
    """Return what shows that a scan is not a CT in HU, or no MR image, and what to do.

    None where nothing does. A CT in HU has voxels of fat or air, and most of what is no air is soft
    tissue. That finds HU with 1024 or another number added, scaled to 0…1 or 0…255 or negated, and
    MR. An MR image that looks like this is a CT, and one with four bright corners is negated; its
    scale means nothing. A mask, of whatever scan, is even and of whole numbers. What is not found:
    a negated CT with hardly any air, and a CT scaled to 0…255 that is taken for MR.

    Args:
        image: (H, W, D), intensities as they are stored.
        modality: "ct" or "mr".

    Returns:
        the flag, "modality" for what seems to be of the other one and "intensities" for all else,
        and the message.
    """
    step = tuple(slice(None, None, -(-length // SAMPLES_PER_AXIS)) for length in image.shape)
    sample = image[step]
    found = _check_mask(image[:, *step[1:]]) or _CHECKS[modality](sample)
    if found is None:
        return None
    low, high = np.percentile(sample, (0.1, 99.9))
    flag, reason = found
    return flag, f"the intensities, {low:.4g} to {high:.4g}, are not those of {reason}"


def _check_mask(lines: np.ndarray) -> tuple[str, str] | None:
    """Return what shows that lines of voxels along the first axis are those of a mask."""
    values = np.unique(lines)
    if values[0] < 0 or values[-1] > LARGEST_LABEL or (values != values.round()).any():
        return None
    even = (lines[1:] == lines[:-1])[lines[1:] > 0]
    if even.size and even.mean() < EVEN_SHARE:
        return None
    return (
        "intensities",
        f"a scan but of a mask ({len(values)} different whole numbers): "
        "take the scan it was drawn on",
    )


def _check_ct(sample: np.ndarray) -> tuple[str, str] | None:
    reason = _not_hu(sample)
    if reason is None:
        return None
    if _seems_mr(sample):
        return (
            "modality",
            f"a CT in HU but seem to be those of MR ({reason}): take a model "
            "for MR, or convert it to HU",
        )
    if sample.min() >= FAT_AND_AIR_HU and _not_hu(sample - 1024) is None:
        reason += ", and they are 1024 too high, as when the rescale intercept is lost"
    return "intensities", f"a CT in HU ({reason}): convert it, or take a model for its modality"


def _check_mr(sample: np.ndarray) -> tuple[str, str] | None:
    # Air surrounds a body, which no image fills to all its corners.
    columns, rows = (
        (slice(None, -(-n // 8)), slice(n - -(-n // 8), None)) for n in sample.shape[:2]
    )
    corners = min(np.median(sample[x, y]) for x in columns for y in rows)
    dark, bright = np.percentile(sample, (10, 90))
    if corners > dark + NEGATED_SHARE * (bright - dark):
        reason = "all corners, where air is, are as bright as the brightest tissue"
        return "intensities", f"MR ({reason}): they are negated, so correct them"
    if _not_hu(sample) is None:
        return "modality", "MR but those of a CT in HU: take a model for CT"
    return None


_CHECKS: dict[str, Callable[[np.ndarray], tuple[str, str] | None]] = {
    "ct": _check_ct,
    "mr": _check_mr,
}


def _seems_mr(sample: np.ndarray) -> bool:
    """Return whether intensities that are not HU are rather of MR than of a CT in another unit."""
    low, high = np.percentile(sample, (0.1, 99.9))
    if low == high:
        return False
    shares = (sample - low) / (high - low)
    first, median, third = np.percentile(shares[shares > BODY], (25, 50, 75))
    cut_off = float((sample == sample.max()).mean())
    dark = float((shares <= AIR).mean())
    return bool(
        dark > AIR_SHARE and cut_off < CUT_OFF_SHARE and third - first > SPREAD_OF_MR * median
    )


def _not_hu(sample: np.ndarray) -> str | None:
    """Return what shows that intensities are not HU; None for those that may be."""
    low, high = SOFT_HU
    if (dark := float((sample < FAT_AND_AIR_HU).mean())) < FAT_AND_AIR_SHARE:
        return f"only {dark:.1%} lie below {FAT_AND_AIR_HU:g}, where fat and air are"
    body = sample[sample >= low]
    soft = int((body < high).sum())
    if soft < SOFT_SHARE * sample.size:
        return f"only {soft / sample.size:.1%} lie from {low:g} to {high:g}, where soft tissue is"
    if soft < SOFT_SHARE_OF_BODY * body.size:
        return (
            f"of those above air only {soft / body.size:.0%} lie below {high:g}, where soft tissue "
            "ends"
        )
    return None
