"""Pictures of a scan with its mask, as a radiologist holds them: patient right on the left, head up."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor

from liverseg.transforms import LoadVolumed
from liverseg.transforms.labels import whole_values

MASK_COLOUR = "#ff8c1a"
REFERENCE_COLOUR = "#22c7ff"

# CT holds air; the magnitude of MR is never negative.
CT_HOLDS_HU = -200
CT_LEVEL_HU, CT_WIDTH_HU = 40, 400
MR_PERCENTILES = (1, 99.5)

# The axis of a volume in RAS order that each plane cuts, and what its left, right and top edges show.
PLANES = {"axial": (2, "RLA"), "coronal": (1, "RLH"), "sagittal": (0, "APH")}
MARGIN_MM = 80
SCALE_BAR_MM = 50
# Of the longer side of an axial picture: the largest slice, and the smaller ones over the whole mask.
PLANE_PIXELS, SLICE_PIXELS = 640, 320
MIN_HEIGHT_PIXELS = 120


@dataclass
class Scan:
    """A scan and its masks in RAS order.

    Attributes:
        image: (X, Y, Z), HU or intensities.
        mask: (X, Y, Z), bool.
        reference: (X, Y, Z), bool, or None.
        spacing_mm: voxel size along the three axes.
        voxel_ml: volume of a voxel, |det affine|.
    """

    image: np.ndarray
    mask: np.ndarray
    reference: np.ndarray | None
    spacing_mm: tuple[float, ...]
    voxel_ml: float

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
        return 2 * np.count_nonzero(self.mask & self.reference) / both

    @cached_property
    def window(self) -> tuple[float, float]:
        """What is shown as black and as white: level 40 HU, width 400 HU for CT, percentiles for MR."""
        if self.image.min() <= CT_HOLDS_HU:
            return CT_LEVEL_HU - CT_WIDTH_HU / 2, CT_LEVEL_HU + CT_WIDTH_HU / 2
        low, high = np.percentile(self.image, MR_PERCENTILES)
        return float(low), float(high)

    @cached_property
    def shown(self) -> np.ndarray:
        """(X, Y, Z) bool, what pictures are centred on: the mask, or the reference where the mask is empty."""
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
        InputError: for a file that is missing or not readable, or lies on another grid than the image, and for a mask
            with values that are not whole, such as probabilities.
    """
    paths = {"image": image_path, "mask": mask_path} | (
        {} if reference_path is None else {"reference": reference_path}
    )
    volumes = LoadVolumed(list(paths))({key: os.fspath(path) for key, path in paths.items()})
    volumes |= {key: whole_values(volumes[key]) for key in paths if key != "image"}
    return make_scan(volumes["image"], volumes["mask"], volumes.get("reference"))


def make_scan(image: MetaTensor, mask: MetaTensor, reference: MetaTensor | None = None) -> Scan:
    """A scan of volumes of shape (1, H, W, D) that show the same part of space, each in any orientation."""
    voxel_ml = abs(float(np.linalg.det(mask.affine[:3, :3].numpy()))) / 1000
    volume, spacing_mm = _in_ras_order(image)
    masks = [None if other is None else _in_ras_order(other)[0] > 0 for other in (mask, reference)]
    assert masks[0] is not None
    return Scan(volume, masks[0], masks[1], spacing_mm, voxel_ml)


def _in_ras_order(volume: MetaTensor) -> tuple[np.ndarray, tuple[float, ...]]:
    stored = nib.Nifti1Image(volume.as_tensor()[0].numpy(), volume.affine.numpy())
    closest = nib.as_closest_canonical(stored)
    return np.asarray(closest.dataobj), tuple(
        float(mm) for mm in nib.affines.voxel_sizes(closest.affine)
    )


def plane_png(scan: Scan, plane: str) -> bytes:
    """PNG of the slice where the mask is largest, with the names of the edges and a bar of 50 mm.

    An empty mask gives the centre of the scan. Coronal and sagittal pictures end 80 mm above and below the mask. The
    three planes of one scan have the same number of pixels per mm.

    Args:
        scan: what `load_scan` returns.
        plane: "axial", "coronal" or "sagittal".
    """
    axis, edges = PLANES[plane]
    columns, rows = (other for other in range(3) if other != axis)
    area = scan.shown.sum(axis=(columns, rows))
    index = int(area.argmax()) if area.any() else scan.image.shape[axis] // 2
    box = slice(None), slice(None) if plane == "axial" else _around(scan, 2, MARGIN_MM)
    extent_mm = np.multiply(scan.image.shape, scan.spacing_mm)
    return _slice_png(
        scan, axis, index, box, pixels_per_mm=PLANE_PIXELS / max(extent_mm[:2]), edges=edges
    )


def axial_pngs(scan: Scan, count: int = 6) -> list[bytes]:
    """PNGs of up to `count` axial slices spread evenly over the mask, from head to foot, cut to 30 mm around it."""
    heights = np.flatnonzero(scan.shown.any(axis=(0, 1)))
    if not len(heights):
        heights = np.arange(scan.image.shape[2])
    # The middles of equal parts, as the first and last slice of a liver show next to nothing of it.
    picked = {heights[int(len(heights) * (part + 0.5) / count)] for part in range(count)}
    box = _around(scan, 0, 30), _around(scan, 1, 30)
    extent_mm = np.multiply(scan.image[box].shape, scan.spacing_mm)
    pixels_per_mm = SLICE_PIXELS / max(extent_mm[:2])
    return [
        _slice_png(scan, 2, int(index), box, pixels_per_mm=pixels_per_mm)
        for index in sorted(picked, reverse=True)
    ]


def _around(scan: Scan, axis: int, margin_mm: float) -> slice:
    """The part of `axis` that holds the mask, and a margin."""
    inside = np.flatnonzero(
        scan.shown.any(axis=tuple(other for other in range(3) if other != axis))
    )
    if not len(inside):
        return slice(None)
    margin = round(margin_mm / scan.spacing_mm[axis])
    return slice(max(inside[0] - margin, 0), inside[-1] + 1 + margin)


def _slice_png(
    scan: Scan,
    axis: int,
    index: int,
    box: tuple[slice, slice],
    *,
    pixels_per_mm: float,
    edges: str = "",
) -> bytes:
    def picture(volume: np.ndarray) -> np.ndarray:
        # RAS axes grow to the left edge (right, front) or to the upper edge (front, head) of the picture.
        return np.flip(np.take(volume, index, axis)[box]).T

    image = picture(scan.image)
    column_mm, row_mm = (mm for other, mm in enumerate(scan.spacing_mm) if other != axis)
    width_mm, height_mm = image.shape[1] * column_mm, image.shape[0] * row_mm
    width, height = (max(1, round(mm * pixels_per_mm)) for mm in (width_mm, height_mm))
    figure = Figure((width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low, high = scan.window
    axes.imshow(
        image,
        "gray",
        vmin=low,
        vmax=high,
        extent=(0, width_mm, height_mm, 0),
        interpolation="bilinear",
        aspect="auto",
    )
    # One voxel of background all round closes the outlines that end at the edge of the scan.
    grid_mm = [
        (np.arange(-1, count + 1) + 0.5) * mm
        for count, mm in zip(image.T.shape, (column_mm, row_mm), strict=True)
    ]
    for volume, colour in ((scan.mask, MASK_COLOUR), (scan.reference, REFERENCE_COLOUR)):
        if volume is not None and (inside := np.pad(picture(volume), 1).astype(float)).any():
            axes.contour(*grid_mm, inside, [0.5], colors=[colour], linewidths=width / 320)
            if volume is scan.mask:
                axes.contourf(*grid_mm, inside, [0.5, 1], colors=[colour], alpha=0.25)
    axes.set(xlim=(0, width_mm), ylim=(height_mm, 0))
    # A slab of a few slices leaves no room for more than its sides.
    if edges and height >= MIN_HEIGHT_PIXELS:
        _write_edges(axes, edges)
        _draw_scale_bar(axes, width_mm)
    elif edges:
        _write_edges(axes, edges[:2])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _write_edges(axes: Axes, edges: str) -> None:
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
    )
    for letter, (x, y, horizontal, vertical) in zip(edges, places, strict=False):
        text = axes.text(
            x,
            y,
            letter,
            color="white",
            size=18,
            ha=horizontal,
            va=vertical,
            transform=axes.transAxes,
        )
        text.set_path_effects([withStroke(linewidth=3, foreground="black")])


def _draw_scale_bar(axes: Axes, width_mm: float) -> None:
    length = SCALE_BAR_MM / width_mm
    black = [withStroke(linewidth=6, foreground="black")]
    axes.plot(
        [0.04, 0.04 + length],
        [0.04, 0.04],
        color="white",
        lw=3,
        transform=axes.transAxes,
        path_effects=black,
    )
    text = axes.text(
        0.04, 0.06, f"{SCALE_BAR_MM} mm", color="white", size=16, transform=axes.transAxes
    )
    text.set_path_effects([withStroke(linewidth=3, foreground="black")])
