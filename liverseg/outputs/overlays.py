"""Draw a scan with its mask as a radiologist holds it: patient's right on the left, head up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from liverseg.handlers.overlays import Outline, draw_slice, encode_png
from liverseg.transforms import LoadVolumed
from liverseg.transforms.labels import whole_values
from liverseg.transforms.morphology import bounding_box

MASK_COLOUR = "#ff8c1a"
REFERENCE_COLOUR = "#22c7ff"

# CT holds air; the magnitude of MR is never negative.
CT_HOLDS_HU = -200
CT_LEVEL_HU, CT_WIDTH_HU = 40, 400
MR_PERCENTILES = (1, 99.5)

# The axis of a volume in RAS order that each plane cuts, and what its left, right and top edges
# show.
PLANES = {"axial": (2, "RLA"), "coronal": (1, "RLH"), "sagittal": (0, "APH")}
MARGIN_MM = 80
SCALE_BAR_MM = 50
# Of the longer side of an axial picture: the largest slice, and the smaller ones over the whole
# mask.
PLANE_PIXELS, SLICE_PIXELS = 640, 320
MIN_HEIGHT_PIXELS = 120
FONT, BLACK, WHITE = cv2.FONT_HERSHEY_SIMPLEX, (0, 0, 0), (255, 255, 255)


@dataclass
class Scan:
    """A scan and its masks in RAS order.

    Attributes:
        image: (X, Y, Z), HU or intensities.
        mask: (X, Y, Z), bool or, of several classes, their indices in uint8.
        reference: (X, Y, Z), bool, or None.
        spacing_mm: voxel size along the three axes.
        voxel_ml: volume of a voxel, |det affine|.
        colours: "#rrggbb" of each value of the mask above 0.
    """

    image: np.ndarray
    mask: np.ndarray
    reference: np.ndarray | None
    spacing_mm: tuple[float, ...]
    voxel_ml: float
    colours: Mapping[int, str] = field(default_factory=lambda: {1: MASK_COLOUR})

    @property
    def mask_ml(self) -> float:
        """Volume of the mask."""
        return np.count_nonzero(self.mask) * self.voxel_ml

    @property
    def reference_ml(self) -> float | None:
        """Volume of the reference, None without one."""
        return None if self.reference is None else np.count_nonzero(self.reference) * self.voxel_ml

    @property
    def dice(self) -> float | None:
        """Dice of the mask and the reference; None without a reference, or where both are empty."""
        if self.reference is None or not (
            both := np.count_nonzero(self.mask) + np.count_nonzero(self.reference)
        ):
            return None
        return 2 * np.count_nonzero((self.mask > 0) & self.reference) / both

    @cached_property
    def window(self) -> tuple[float, float]:
        """Black and white of pictures: level 40 HU, width 400 HU for CT, percentiles for MR."""
        if self.image.min() <= CT_HOLDS_HU:
            return CT_LEVEL_HU - CT_WIDTH_HU / 2, CT_LEVEL_HU + CT_WIDTH_HU / 2
        low, high = np.percentile(self.image, MR_PERCENTILES)
        return float(low), float(high)

    @cached_property
    def shown(self) -> np.ndarray:
        """What pictures are centred on: the mask or, if empty, the reference; (X, Y, Z)."""
        return self.mask if self.reference is None or self.mask.any() else self.reference


def load_scan(
    image_path: str | os.PathLike[str],
    mask_path: str | os.PathLike[str],
    reference_path: str | os.PathLike[str] | None = None,
) -> Scan:
    """Read a scan, its mask and its reference, stored in any orientation.

    Args:
        image_path: a NIfTI file or a folder with one DICOM series.
        mask_path: NIfTI file on the grid of the image; every value above 0 belongs to the mask.
        reference_path: the same for the reference.

    Raises:
        InputError: for a file that is missing or not readable, or lies on another grid than the
            image, and for a mask with values that are not whole, such as probabilities.
    """
    paths = {"image": image_path, "mask": mask_path} | (
        {} if reference_path is None else {"reference": reference_path}
    )
    volumes = LoadVolumed(list(paths))({key: os.fspath(path) for key, path in paths.items()})
    volumes |= {key: whole_values(volumes[key]) for key in paths if key != "image"}
    return make_scan(volumes["image"], volumes["mask"], volumes.get("reference"))


def make_scan(image: MetaTensor, mask: MetaTensor, reference: MetaTensor | None = None) -> Scan:
    """Make a scan of volumes (1, H, W, D) of the same space, each in any orientation."""
    voxel_ml = abs(float(np.linalg.det(mask.affine[:3, :3].numpy()))) / 1000
    volume, affine = in_ras_order(image)
    spacing_mm = tuple(float(mm) for mm in nib.affines.voxel_sizes(affine))
    masks = [None if other is None else in_ras_order(other)[0] > 0 for other in (mask, reference)]
    assert masks[0] is not None
    return Scan(volume, masks[0], masks[1], spacing_mm, voxel_ml)


def in_ras_order(volume: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels (X, Y, Z) of a volume (1, H, W, D) in RAS order, and their affine."""
    stored = nib.Nifti1Image(volume.as_tensor()[0].numpy(), volume.affine.numpy())
    closest = nib.as_closest_canonical(stored)
    return np.asarray(closest.dataobj), closest.affine


def plane_png(scan: Scan, plane: str) -> bytes:
    """Return `plane_picture` as PNG."""
    return encode_png(plane_picture(scan, plane))


def plane_picture(scan: Scan, plane: str) -> np.ndarray:
    """Draw the slice where the mask is largest, with names of edges and a 50 mm bar.

    An empty mask gives the centre of the scan. Coronal and sagittal pictures end 80 mm above and
    below the mask. The three planes of one scan have the same number of pixels per mm.

    Args:
        scan: what `load_scan` returns.
        plane: "axial", "coronal" or "sagittal".

    Returns:
        RGB (rows, columns, 3), uint8.
    """
    axis, edges = PLANES[plane]
    columns, rows = (other for other in range(3) if other != axis)
    area = np.count_nonzero(scan.shown, axis=(columns, rows))
    index = int(area.argmax()) if area.any() else scan.image.shape[axis] // 2
    box = slice(None), slice(None) if plane == "axial" else _around(scan, 2, MARGIN_MM)
    extent_mm = np.multiply(scan.image.shape, scan.spacing_mm)
    return _slice_picture(
        scan, axis, index, box, pixels_per_mm=PLANE_PIXELS / max(extent_mm[:2]), edges=edges
    )


def axial_pngs(scan: Scan, count: int = 6) -> list[bytes]:
    """Return PNGs of up to `count` axial slices spread over the mask, cut to 30 mm around it.

    They go from head to foot.
    """
    heights = np.flatnonzero(scan.shown.any(axis=(0, 1)))
    if not len(heights):
        heights = np.arange(scan.image.shape[2])
    # The middles of equal parts, as the first and last slice of a liver show next to nothing of it.
    picked = {heights[int(len(heights) * (part + 0.5) / count)] for part in range(count)}
    box = _around(scan, 0, 30), _around(scan, 1, 30)
    extent_mm = np.multiply(scan.image[box].shape, scan.spacing_mm)
    pixels_per_mm = SLICE_PIXELS / max(extent_mm[:2])
    return [
        encode_png(_slice_picture(scan, 2, int(index), box, pixels_per_mm=pixels_per_mm))
        for index in sorted(picked, reverse=True)
    ]


def _around(scan: Scan, axis: int, margin_mm: float) -> slice:
    """Return the part of `axis` that holds the mask, and a margin."""
    box = bounding_box(scan.shown > 0, [round(margin_mm / mm) for mm in scan.spacing_mm])
    return slice(None) if box is None else box[axis]


def _slice_picture(
    scan: Scan,
    axis: int,
    index: int,
    box: tuple[slice, slice],
    *,
    pixels_per_mm: float,
    edges: str = "",
) -> np.ndarray:
    def part(volume: np.ndarray) -> np.ndarray:
        return np.take(volume, index, axis)[box]

    image = part(scan.image)
    spacing_mm = (mm for other, mm in enumerate(scan.spacing_mm) if other != axis)
    width, height = (
        max(1, round(count * mm * pixels_per_mm))
        for count, mm in zip(image.shape, spacing_mm, strict=True)
    )
    line = max(1, round(width / 320))
    classes = part(scan.mask)
    outlines = [
        Outline(classes == value, rgb(scan.colours[int(value)]), line, filled=True)
        for value in np.unique(classes[classes > 0])
    ]
    if scan.reference is not None:
        outlines.append(Outline(part(scan.reference), rgb(REFERENCE_COLOUR), line))
    picture = draw_slice(image, scan.window, outlines, (width, height))
    # A slab of a few slices leaves no space for more than its sides.
    if edges and height >= MIN_HEIGHT_PIXELS:
        _draw_edges(picture, edges)
        _draw_scale_bar(picture, pixels_per_mm)
    elif edges:
        _draw_edges(picture, edges[:2])
    return picture


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0…255, of "#rrggbb"."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def _draw_edges(picture: np.ndarray, edges: str) -> None:
    height, width = picture.shape[:2]
    places = ((0.02, 0.5, 0), (0.98, 0.5, 1), (0.5, 0.02, 0.5))
    for letter, (x, y, share) in zip(edges, places, strict=False):
        (columns, rows), _ = cv2.getTextSize(letter, FONT, 0.8, 2)
        top = y * height - (rows / 2 if y == 0.5 else 0)
        _write(picture, letter, (round(x * width - share * columns), round(top + rows)))


def _draw_scale_bar(picture: np.ndarray, pixels_per_mm: float) -> None:
    height, width = picture.shape[:2]
    left, row = round(0.04 * width), round(0.96 * height)
    right = left + round(SCALE_BAR_MM * pixels_per_mm)
    for colour, thickness in ((BLACK, 7), (WHITE, 3)):
        cv2.line(picture, (left, row), (right, row), colour, thickness, cv2.LINE_AA)
    _write(picture, f"{SCALE_BAR_MM} mm", (left, round(0.94 * height)))


def _write(picture: np.ndarray, text: str, baseline: tuple[int, int]) -> None:
    for colour, thickness in ((BLACK, 4), (WHITE, 1)):
        cv2.putText(picture, text, baseline, FONT, 0.8, colour, thickness, cv2.LINE_AA)
