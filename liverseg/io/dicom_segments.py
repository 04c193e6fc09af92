"""Read DICOM SEGs on the grid of a scan: needs pydicom (extra `dicom`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from liverseg.errors import InputError

# Inside the other and often segmented both as a part of it and alone.
PARTS = {"lesion": "liver"}
# Frames closer than this lie in one plane.
SAME_PLANE_MM = 0.01
# Of a voxel: what lies halfway between two goes to the same side everywhere.
HALFWAY = 1e-3


def label_map(
    segmentations: Sequence[Dataset], affine: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, dict[int, str]]:
    """Put DICOM SEGs on a grid, as one label map (H, W, D), uint8.

    A fractional segment is where it is at least half. Each voxel is that of the nearest frame at
    its centre, and 0 where no frame is.

    Args:
        segmentations: with pixels; BINARY, FRACTIONAL or LABELMAP.
        affine: (4, 4), voxel index to RAS mm.
        shape: of the grid, (H, W, D).

    Returns:
        The label map, and the name of each value.

    Raises:
        InputError: for what cannot be read, segments that overlap, except a lesion in the liver,
            and for those that do not lie in the grid.
    """
    label = np.zeros(shape, np.uint8)
    names: dict[str, str] = {}
    for dataset in segmentations:
        what = f"DICOM SEG {dataset.get('SOPInstanceUID')}"
        try:
            frames = _read(dataset, names)
            _add(label, frames.on_grid(affine, label.shape), list(names))
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        # pydicom and its codecs raise whatever they like for what is damaged.
        except Exception as error:
            raise InputError(
                f"{what}: found one that cannot be read ({type(error).__name__}: {error}), "
                "expected a whole DICOM SEG: export it anew."
            ) from error
    return label, dict(enumerate(names.values(), 1))


def segment_name(label: Any, number: Any) -> str:
    """Return what a segment is called."""
    return str(label or f"segment {number}")


def compared(name: str) -> str:
    """Return a name as it is compared with others."""
    return " ".join(name.lower().replace("_", " ").split())


@dataclass(frozen=True)
class _Frames:
    """Label maps in parallel planes.

    Attributes:
        voxels: (planes, rows, columns), uint8.
        names: of the values 1, 2, ….
        origins: (planes, 3), mm in LPS, of the first pixel of each, in the order of their distances
            along the normal.
        axes: (3, 3), unit vectors in LPS along a row, along a column, and the normal.
        spacing_mm: between pixels of a row, pixels of a column, and planes.
    """

    voxels: np.ndarray
    names: Sequence[str]
    origins: np.ndarray
    axes: np.ndarray
    spacing_mm: np.ndarray

    def on_grid(self, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The value at the centre of each voxel of a grid, (H, W, D).

        Raises:
            InputError: for segments that do not lie in the grid.
        """
        to_lps = np.diag([-1.0, -1, 1, 1]) @ affine
        self._check_inside(np.linalg.inv(to_lps), shape)
        # Place of a voxel index, in pixels along a row, along a column, and in planes.
        to_pixels = self.axes / self.spacing_mm[:, None]
        steps, start = to_pixels @ to_lps[:3, :3], to_pixels @ to_lps[:3, 3]
        origins = self.origins @ to_pixels.T
        between = (origins[1:, 2] + origins[:-1, 2]) / 2
        # Where the grids are parallel, a place depends on one index: numpy then does each row and
        # column once.
        steps[np.abs(steps) * shape < HALFWAY / 10] = 0
        i, j = np.arange(shape[0])[:, None], np.arange(shape[1])[None]
        found, voxels_found = np.zeros(shape, np.uint8, order="F"), np.zeros(256, int)
        _, rows, columns = self.voxels.shape
        for k in range(shape[2]):
            x, y, z = (
                start[axis]
                - HALFWAY
                + _along(steps[axis, 0], i)
                + _along(steps[axis, 1], j)
                + steps[axis, 2] * k
                for axis in range(3)
            )
            plane = np.searchsorted(between, z)
            column, row = (
                np.floor(place - origins[plane, axis] + 0.5).astype(int)
                for axis, place in ((0, x), (1, y))
            )
            there = np.abs(z - origins[plane, 2] + HALFWAY / 2) < 0.5
            there = there & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            if there.any():
                values = self.voxels[plane, row.clip(0, rows - 1), column.clip(0, columns - 1)]
                found[:, :, k] = np.where(there, values, 0)
                voxels_found += np.bincount(found[:, :, k].ravel("K"), minlength=256)
        drawn = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in self.voxels], axis=0)
        lost = [
            name
            for value, name in enumerate(self.names, 1)
            if drawn[value] and not voxels_found[value]
        ]
        if lost:
            raise InputError(
                f"found no voxel of {', '.join(lost)} on the scan's grid, expected some: segment "
                "this scan itself."
            )
        return found

    def _check_inside(self, to_index: np.ndarray, shape: Sequence[int]) -> None:
        drawn = np.flatnonzero(self.voxels)
        # So many tell as well as all.
        plane, row, column = np.unravel_index(
            drawn[:: 1 + len(drawn) // 100_000], self.voxels.shape
        )
        x_mm, y_mm, _ = self.spacing_mm
        places = (
            self.origins[plane]
            + np.outer(column * x_mm, self.axes[0])
            + np.outer(row * y_mm, self.axes[1])
        )
        index = places @ to_index[:3, :3].T + to_index[:3, 3]
        # Half a voxel, and half of one of the DICOM SEG's where it is coarser.
        margin = 0.5 + 0.5 * np.abs(to_index[:3, :3] @ self.axes.T * self.spacing_mm).sum(axis=1)
        inside = ((index >= -margin) & (index <= np.array(shape) - 1 + margin)).all(axis=1)
        if not inside.all():
            raise InputError(
                f"found {100 * (1 - inside.mean()):.3g} % of its segments outside the scan, "
                "expected all in it: it belongs to another series, or the scan was not whole "
                "when it was copied."
            )


def _read(dataset: Dataset, names: dict[str, str]) -> _Frames:
    """The frames of a DICOM SEG.

    Args:
        dataset: with pixels.
        names: by what they are compared with, in the order of the values; grows by those of this
            one.
    """
    kind = dataset.SegmentationType
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise InputError(
            f"found the type {kind}, expected BINARY, FRACTIONAL or LABELMAP: export it anew."
        )
    background = int(dataset.get("PixelPaddingValue", 0))
    values = {}
    for segment in dataset.SegmentSequence:
        number = int(segment.SegmentNumber)
        if kind != "LABELMAP" or number != background:
            name = segment_name(segment.get("SegmentLabel"), number)
            names.setdefault(compared(name), name)
            values[number] = 1 + list(names).index(compared(name))
    if len(names) > 255:
        raise InputError(f"found {len(names)} segments, expected 255 at most: export fewer.")
    groups = [_Groups(dataset, frame) for frame in dataset.PerFrameFunctionalGroupsSequence]
    axes = _axes(groups)
    places = np.array(
        [group.get("PlanePositionSequence").ImagePositionPatient for group in groups], float
    )
    distances = places @ axes[2]
    order = np.argsort(distances, kind="stable")
    plane_of = np.empty(len(groups), int)
    plane_of[order] = np.cumsum(
        np.diff(distances[order], prepend=distances[order[0]]) > SAME_PLANE_MM
    )
    origins = np.array([places[plane_of == plane][0] for plane in range(plane_of.max() + 1)])
    if np.abs(places - origins[plane_of]).max() > SAME_PLANE_MM:
        raise InputError(
            "found frames beside each other, expected one frame for each plane: export it anew."
        )

    voxels = np.zeros((len(origins), dataset.Rows, dataset.Columns), np.uint8)
    for plane, group, pixels in zip(plane_of, groups, _pixels(dataset, len(groups)), strict=True):
        if kind == "LABELMAP":
            found = np.zeros(pixels.shape, np.uint8)
            for number in set(np.unique(pixels).tolist()) - {background}:
                if number not in values:
                    raise InputError(
                        f"found the value {number}, expected segments' numbers: export it anew."
                    )
                found[pixels == number] = values[number]
        else:
            threshold = dataset.MaximumFractionalValue / 2 if kind == "FRACTIONAL" else 0.5
            number = int(group.get("SegmentIdentificationSequence").ReferencedSegmentNumber)
            found = np.where(pixels >= threshold, np.uint8(values[number]), np.uint8(0))
        _add(voxels[plane], found, list(names))
    return _Frames(voxels, list(names), origins, axes, _spacing_mm(groups, origins @ axes[2]))


class _Groups:
    """The functional groups of a frame: its own, or those of all."""

    def __init__(self, dataset: Dataset, frame: Dataset) -> None:
        self.frame, self.shared = frame, dataset.SharedFunctionalGroupsSequence[0]

    def get(self, keyword: str) -> Dataset:
        """The item of one of them."""
        found = self.frame.get(keyword) or self.shared.get(keyword)
        if not found:
            raise InputError(f"found a frame without {keyword}, expected one: export it anew.")
        return found[0]


def _axes(groups: Sequence[_Groups]) -> np.ndarray:
    cosines = np.array(
        [group.get("PlaneOrientationSequence").ImageOrientationPatient for group in groups], float
    )
    if np.abs(cosines - cosines[0]).max() > 1e-3:
        raise InputError(
            "found frames of several orientations, expected parallel ones: export it anew."
        )
    row, column = cosines[0, :3], cosines[0, 3:]
    return np.stack([row, column, np.cross(row, column)])


def _spacing_mm(groups: Sequence[_Groups], distances: np.ndarray) -> np.ndarray:
    measures = groups[0].get("PixelMeasuresSequence")
    y_mm, x_mm = (float(value) for value in measures.PixelSpacing)
    # Frames may be left out where nothing is; then what is declared is less than the least
    # distance.
    given = [measures.get("SpacingBetweenSlices"), measures.get("SliceThickness")]
    declared = [abs(float(value)) for value in given if value][:1]
    steps = [*declared, *np.diff(distances)]
    if not steps:
        raise InputError(
            "found one plane without a thickness, expected SliceThickness: export it anew."
        )
    return np.array([x_mm, y_mm, min(steps)])


def _pixels(dataset: Dataset, frames: int) -> Iterator[np.ndarray]:
    """One frame after the other: single bits unpacked at once take eight times the memory."""
    shape = (dataset.Rows, dataset.Columns)
    if dataset.BitsAllocated != 1 or dataset.file_meta.TransferSyntaxUID.is_compressed:
        yield from dataset.pixel_array.reshape(-1, *shape)
        return
    bits, size = np.frombuffer(dataset.PixelData, np.uint8), shape[0] * shape[1]
    if 8 * len(bits) < frames * size:
        raise InputError(
            f"found {8 * len(bits) // size} frames, expected {frames}: export it anew."
        )
    for start in range(0, frames * size, size):
        some = np.unpackbits(bits[start // 8 : (start + size + 7) // 8], bitorder="little")
        yield some[start % 8 :][:size].reshape(shape)


def _add(below: np.ndarray, above: np.ndarray, names: Sequence[str]) -> None:
    """Put one label map on another, in place.

    Raises:
        InputError: where segments overlap of which none is a part of the other.
    """
    both = (below > 0) & (above > 0) & (below != above)
    for low, high in np.unique(np.stack([below[both], above[both]]), axis=1).T.tolist():
        name, other = names[low - 1], names[high - 1]
        if other == PARTS.get(name):
            above[both & (above == high) & (below == low)] = low
        elif name != PARTS.get(other):
            voxels = np.count_nonzero(both & (above == high) & (below == low))
            raise InputError(
                f"found that {name} and {other} overlap in {voxels} voxels, expected each voxel "
                "in one segment: export it without overlap."
            )
    np.copyto(below, above, where=above > 0)


def _along(step: float, index: np.ndarray) -> np.ndarray:
    return step * index if step else np.zeros((1, 1))
