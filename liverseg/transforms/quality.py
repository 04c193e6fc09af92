"""Flag masks of the liver with an odd volume, pieces, intensities or place in the body."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform
from nibabel.orientations import io_orientation

from liverseg.bundle import choose
from liverseg.transforms.load import add_flag, flags_of
from liverseg.transforms.morphology import connected_components, largest

# Adults' livers, from those shrunk by cirrhosis to those full of metastases or cysts.
VOLUME_ML = (600.0, 4000.0)
# Of healthy, fatty and enhanced livers, in the mean over all their voxels.
MEAN_HU = (20.0, 180.0)
# What is more than a few stray voxels, a vessel's end or the tip of a lobe.
LARGE_ML = 50.0
# A large left lobe, or a scan of the liver alone, has the liver's centre near the middle.
MIRRORED_MM = 20.0
# Flags of scans that no network knows: where in them something is found says nothing.
STRANGE = frozenset({"intensities", "modality"})
# A liver that is cut shows more than stray voxels.
CUT_MM2 = 100.0
# Of a scan, of which a liver then has some ten thousand voxels.
SAMPLE_MM = 4.0
# In MR what is above this share of the way from the darkest to the brightest voxels is body.
BODY_HU, BODY_OF_MR = -300.0, 0.1

MIRRORED = (
    "the scan seems to be mirrored from left to right ({}): compare it with its source, correct "
    "the orientation in its header and segment it again, unless the patient's organs are mirrored."
)


class SampleVoxelsd(MapTransform):
    """Keep one voxel of a scan every few mm in its `meta`, for `FlagMaskd`.

    `meta["sample"]` has the shape (h, w, d) and `meta["sample_steps"]` the voxels from one to the
    next along each axis. Use it before the scan is turned or its intensities are changed.

    Args:
        keys: images of shape (1, H, W, D), as `LoadVolumed` gives them.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with samples."""
        d = dict(data)
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            spacing_mm = affine_to_spacing(image.affine, r=3).tolist()
            steps = [
                int(min(max(SAMPLE_MM // mm, 1), n))
                for mm, n in zip(spacing_mm, image.shape[1:], strict=True)
            ]
            image.meta["sample"] = image.as_tensor()[0][_every(steps)].numpy().copy()
            image.meta["sample_steps"] = np.array(steps)
        return d


class FlagMaskd(MapTransform):
    """Flag masks of the liver that are probably wrong or incomplete; the masks stay as they are.

    Each flag is a message in the mask's `meta["flags"]`, and in the log:

    - `volume`: outside `VOLUME_ML`; a liver that is cut off may be small;
    - `components`: several of at least `LARGE_ML`, not counting twice those that may be joined
      beyond the scan's end;
    - `hu`: the mean outside `MEAN_HU`, in CT;
    - `cut_off`: the liver reaches the first or last slice, of those that follow each other from the
      feet to the head and show anything at all, with at least `CUT_MM2`;
    - `mirrored`: the liver's centre lies on the left of the body's by more than `MIRRORED_MM`, in a
      scan whose intensities have no flag.

    Lesions are part of the liver. Memory is that of a few slices, and of the scan at `SAMPLE_MM`.

    Args:
        keys: masks of shape (1, H, W, D), class indices of any dtype, as MetaTensors on the grid of
            the file, with the `meta` of the scan after `SampleVoxelsd`: what `Invertd` makes of a
            prediction.
        class_names: of the mask's values; without "liver" among them nothing is flagged.
        modality: "ct" or "mr".

    Raises:
        InputError: for another modality.
    """

    def __init__(self, keys: KeysCollection, class_names: Mapping[int, str], modality: str) -> None:
        super().__init__(keys)
        self.find_body = choose("modality", modality, {"ct": _body_of_ct, "mr": _body_of_mr})
        self.modality = modality
        self.is_liver = np.zeros(256, np.uint8)
        self.is_liver[liver_values(class_names)] = 1

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with flags."""
        d = dict(data)
        for key in self.key_iterator(d):
            if self.is_liver.any():
                for flag, message in self._flags(d[key]).items():
                    add_flag(d[key], flag, message)
        return d

    def _flags(self, mask: MetaTensor) -> dict[str, str]:
        voxels = mask.as_tensor()[0].to(torch.uint8).cpu().numpy()
        affine = mask.affine.cpu().numpy()
        sample, steps = (
            torch.as_tensor(mask.meta[key]).cpu().numpy() for key in ("sample", "sample_steps")
        )
        counts = _counts(voxels, self.is_liver, steps)
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        axis, upwards = _slice_axis(affine)
        first, last = _shown(sample, axis)
        length, step = voxels.shape[axis], int(steps[axis])
        voxel_mm2 = 1000 * voxel_ml / affine_to_spacing(mask.affine, r=3)[axis].item()
        # Where slices without anything follow, the last one with something is one of the block's.
        places = (
            range(max((first - 1) * step + 1, 0), first * step + 1),
            range(last * step, min((last + 1) * step, length))
            if last * step + step < length
            else range(length - 1, length),
        )
        areas_mm2 = (
            [int(self.is_liver[voxels.take(n, axis)].sum()) * voxel_mm2 for n in place]
            for place in places
        )
        ends = [max(areas) >= CUT_MM2 for areas in areas_mm2]
        liver = self.is_liver[voxels[_every(steps)]].view(np.bool_)
        found = {
            # To seven figures, for a spacing is not exact.
            "volume": check_volume(
                float(f"{float(counts.sum()) * voxel_ml:.7g}"), cut_off=any(ends)
            ),
            "components": check_components(
                counts.take(range(first, last + 1), axis) * voxel_ml, axis, ends
            ),
            "cut_off": check_ends(ends, upwards=upwards),
        }
        if liver.any():
            found["hu"] = check_hu(float(sample[liver].mean())) if self.modality == "ct" else None
            if not STRANGE & flags_of(mask).keys():
                found["mirrored"] = check_side(
                    liver, self.find_body(sample), affine @ np.diag([*steps, 1])
                )
        return {flag: message for flag, message in found.items() if message is not None}


def liver_values(class_names: Mapping[int, str]) -> list[int]:
    """Return the values of liver and lesion, which is part of it; none without a liver."""
    if "liver" not in class_names.values():
        return []
    return [value for value, name in class_names.items() if name in ("liver", "lesion")]


def check_volume(volume_ml: float, cut_off: bool) -> str | None:
    """Return what is wrong with a liver's volume, None for a plausible or a small cut-off one."""
    least, most = VOLUME_ML
    if volume_ml > most or (volume_ml < least and not cut_off):
        found = (
            f"the liver has {volume_ml:{'.0f' if volume_ml >= 1 else '.2g'}} ml"
            if volume_ml
            else "no liver was found"
        )
        return (
            f"{found}, expected {least:g} to {most:g} ml: check whether the mask leaves parts out "
            "or includes other organs, and whether the scan shows the liver."
        )
    return None


def check_components(volumes_ml: np.ndarray, axis: int, ends: list[bool]) -> str | None:
    """Return what is wrong with the pieces of a liver; None for one that is large.

    Args:
        volumes_ml: of the liver in each block of the scan, (h, w, d).
        axis: along which slices follow each other.
        ends: whether the liver reaches the first and the last slice.
    """
    # Lobes that are cut apart by the scan's end count as joined beyond it.
    moved = np.moveaxis(volumes_ml, axis, 0)
    joined = np.pad(moved > 0, [tuple(map(int, ends)), (0, 0), (0, 0)], constant_values=True)
    components, count = connected_components(joined, 26)
    inside = components[int(ends[0]) : len(joined) - int(ends[1])]
    pieces_ml = np.bincount(inside.ravel(), moved.ravel(), count + 1)[1:].round(3)
    large = sorted(pieces_ml[pieces_ml >= LARGE_ML], reverse=True)
    if len(large) < 2:
        return None
    sizes = ", ".join(f"{ml:.0f}" for ml in large)
    return (
        f"the liver is in {len(large)} pieces of at least {LARGE_ML:g} ml ({sizes} ml), expected "
        "one: remove what is not liver, or fill what is missing between them."
    )


def check_hu(mean_hu: float) -> str | None:
    """Return what is wrong with the mean HU of a liver; None for a plausible one."""
    least, most = MEAN_HU
    if least <= mean_hu <= most:
        return None
    return (
        f"the mean in the liver is {mean_hu:.0f} HU, expected {least:g} to {most:g} HU: check "
        "that the mask is on the liver and the scan in HU; a very fatty liver is darker, one full "
        "of contrast agent brighter."
    )


def check_ends(ends: list[bool], upwards: bool) -> str | None:
    """Return what it means that a liver reaches the first or last slice, None if it does not.

    Args:
        ends: whether it reaches the first and the last slice.
        upwards: whether the last slice is the uppermost.
    """
    if not any(ends):
        return None
    names = ("lowest", "uppermost") if upwards else ("uppermost", "lowest")
    reached = " and ".join(name for name, end in zip(names, ends, strict=True) if end)
    return (
        f"the liver reaches the scan's {reached} slice, expected it to end before: it is cut off "
        "there and its volume is that of a part, so take a scan of the whole liver to measure it."
    )


def check_side(liver: np.ndarray, body: np.ndarray, affine: np.ndarray) -> str | None:
    """Return what is wrong with a liver's side of the body; None for the right and the middle.

    Args:
        liver: bool, (h, w, d), not empty.
        body: bool, the same.
        affine: (4, 4), index to RAS mm.
    """
    axis, _ = _slice_axis(affine)
    shown = liver.any(_others(axis))
    # The slices above and below may show a body that lies aslant.
    body = body & shown.reshape([-1 if other == axis else 1 for other in range(3)])
    if not body.any():
        return None
    left_mm = _middle_mm(body, affine) - _middle_mm(liver, affine)
    if left_mm <= MIRRORED_MM:
        return None
    return MIRRORED.format(
        f"the liver's centre lies {left_mm:.0f} mm to the left of the body's, expected on its right"
    )


def _every(steps: Any) -> tuple[slice, ...]:
    return tuple(slice(None, None, int(step)) for step in steps)


def _counts(voxels: np.ndarray, is_liver: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the liver's voxels in each block of `steps` voxels, as many blocks as samples."""
    rows, columns = (
        np.arange(0, length, step) for length, step in zip(voxels.shape[1:], steps[1:], strict=True)
    )
    # Block after block along the first axis, for a mask of the whole scan would be as large again.
    blocks = (voxels[start : start + steps[0]] for start in range(0, voxels.shape[0], steps[0]))
    planes = (is_liver[block].sum(0, dtype=np.int32) for block in blocks)
    return np.stack(
        [np.add.reduceat(np.add.reduceat(plane, rows, 0), columns, 1) for plane in planes]
    )


def _slice_axis(affine: np.ndarray) -> tuple[int, bool]:
    """Return the axis that is the nearest to inferior-superior, and whether it leads upwards."""
    axes = io_orientation(affine)
    axis = int(np.flatnonzero(axes[:, 0] == 2)[0])
    return axis, bool(axes[axis, 1] > 0)


def _shown(sample: np.ndarray, axis: int) -> tuple[int, int]:
    """Return the first and last slice of a sample that are not of one value, as added ones are."""
    others = _others(axis)
    shown = np.flatnonzero(sample.max(others) > sample.min(others))
    return (int(shown[0]), int(shown[-1])) if len(shown) else (0, sample.shape[axis] - 1)


def _middle_mm(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the mean of the coordinate to the right, in mm."""
    mean = [
        float(np.average(np.arange(n), weights=mask.sum(_others(axis))))
        for axis, n in enumerate(mask.shape)
    ]
    return float(affine[0, :3] @ mean + affine[0, 3])


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _body_of_ct(sample: np.ndarray) -> np.ndarray:
    return largest((sample > BODY_HU).view(np.uint8)).view(np.bool_)


def _body_of_mr(sample: np.ndarray) -> np.ndarray:
    low, high = np.percentile(sample, (1, 99))
    return largest((sample > low + BODY_OF_MR * (high - low)).view(np.uint8)).view(np.bool_)
