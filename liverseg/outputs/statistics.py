"""Figures of a mask: volumes, intensities, and the size of each lesion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation
from scipy.ndimage import find_objects
from scipy.spatial import ConvexHull, cKDTree
from scipy.spatial.distance import cdist

from liverseg.bundle import choose
from liverseg.errors import InputError
from liverseg.outputs.parts import Part, class_parts
from liverseg.outputs.segmentation import Segmentation
from liverseg.transforms.morphology import connected_components

# What a voxel of a scan holds, for the names of figures.
UNITS = {"ct": "hu", "mr": "intensity"}
# Lengths that differ by less are equal, whatever the order in which they were added up.
SAME_MM = 1e-6


def statistics(
    segmentation: Segmentation, image: np.ndarray | None, modality: str
) -> dict[str, Any]:
    """Return the figures of a mask, ready for `write_json`; None is what does not exist.

    `classes` has, by our name of each class, absent ones included,

    - ``volume_ml``: voxels, times the volume of one; 0 for a class that is absent.
    - ``centroid_ras_mm``: mean of the centres of the voxels.
    - ``bounding_box_low_ras_mm``, ``bounding_box_high_ras_mm``: corners of the smallest box along
      right, anterior and superior that holds the voxels whole, whatever the axes of the scan.
    - ``mean_hu``, ``sd_hu`` (divided by the number of voxels), ``median_hu``; of MR
      ``mean_intensity`` and so on.

    Of `liver`, volume, centroid and box are of the liver with its lesions, the intensities of the
    rest, its parenchyma. It has besides

    - ``parenchyma_volume_ml``, without lesions, and ``tumour_burden_percent``, the lesions' share
      of ``volume_ml``; None without parenchyma, or a class of lesions.
    - ``liver_minus_spleen_hu``, ``liver_to_spleen_ratio``: difference and ratio of the mean HU of
      parenchyma and spleen, in CT; the ratio is None where the spleen's is not above 0.

    `lesion` has besides ``count``. With that class, `lesions` lists the components of voxels that
    share a face, edge or corner (26 neighbours), the largest first, each with the figures of a
    class and

    - ``lesion``: its number, from 1.
    - ``longest_diameter_mm``: after RECIST 1.1 (Eisenhauer et al., European Journal of Cancer 45
      (2009) 228–247), the longest distance between two points of the lesion's outline in one slice.
      Slices are the planes of voxels that are the nearest to axial. The outline is that of a piece
      of the lesion whose pixels share an edge or corner (8 neighbours); its points are the middles
      of the pixels' edges, where lesion ends. Between them, the line may leave a lesion that is
      concave.
    - ``perpendicular_diameter_mm``: the longest chord at right angles to it of the outline's convex
      hull. Of equal longest diameters, the one with the longest perpendicular counts.
    - ``…_start_ras_mm`` and ``…_end_ras_mm`` of both: where they lie.
    - ``distance_to_capsule_mm``: from the lesion's surface to the outer surface of the liver with
      its lesions, the shortest between the centres of two voxel faces; 0 where the lesion reaches
      it. The outer surface has what is not liver on its other side: vessels and cysts inside the
      liver do not count, and neither does the end of the scan. None without parenchyma.

    Args:
        segmentation: mask, affine and names of classes.
        image: (H, W, D), HU or intensities on the mask's grid; None leaves what needs it None.
        modality: "ct" or "mr".

    Raises:
        InputError: for another modality or shape, a value of the mask without a name, and voxels of
            a class that are not finite.
    """
    unit = choose("modality", modality, UNITS)
    part, values = class_parts(segmentation, image)
    parts = {name: part.of(of_class) for name, of_class in values.items()}
    classes = {name: _geometry(each) | _intensities(each, unit) for name, each in parts.items()}
    lesions, capsule = parts.get("lesion"), None
    if "liver" in classes:
        liver, whole = classes["liver"], part.of(values["liver"] + values.get("lesion", []))
        parenchyma_ml = liver["volume_ml"]
        liver |= _geometry(whole) | {"parenchyma_volume_ml": None, "tumour_burden_percent": None}
        if lesions is not None:
            liver["parenchyma_volume_ml"] = parenchyma_ml
            if parenchyma_ml:
                burden = classes["lesion"]["volume_ml"] / liver["volume_ml"]
                liver["tumour_burden_percent"] = 100 * burden
                capsule = _capsule(whole) if lesions.mask.any() else None
        liver |= _against_spleen(liver, classes.get("spleen", {}))
    found = [] if lesions is None else _lesions(lesions, capsule, unit)
    if lesions is not None:
        classes["lesion"]["count"] = len(found)
    bad = [name for name, figures in classes.items() if math.isnan(figures[f"mean_{unit}"] or 0)]
    if bad:
        raise InputError(
            f"{segmentation.scan}: found voxels of {', '.join(bad)} that are not finite, expected "
            "numbers: correct the scan."
        )
    return {
        "scan": segmentation.scan,
        "bundle": segmentation.bundle,
        "version": segmentation.version,
        "modality": modality,
        "classes": classes,
        # Where they were not looked for, none there says nothing.
        **({} if lesions is None else {"lesions": found}),
    }


def statistics_tables(cases: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the `statistics` of scans as two tables, one row for each class and for each lesion.

    Points have a column for each of right, anterior and superior: `centroid_r_mm`.
    """
    organs = [
        {"scan": case["scan"], "class": name} | _flat(figures)
        for case in cases
        for name, figures in case["classes"].items()
    ]
    lesions = [
        {"scan": case["scan"]} | _flat(each) for case in cases for each in case.get("lesions", [])
    ]
    # A file without a header is none that pandas reads.
    return pd.DataFrame(organs), pd.DataFrame(
        lesions, columns=None if lesions else ["scan", "lesion"]
    )


def _flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, figure in figures.items():
        if key.endswith("_ras_mm"):
            columns = [key.replace("_ras_mm", f"_{axis}_mm") for axis in "ras"]
            row |= dict(zip(columns, figure or [None] * 3, strict=True))
        else:
            row[key] = figure
    return row


def _geometry(part: Part) -> dict[str, Any]:
    mask, affine = part.mask, part.affine
    voxels = np.count_nonzero(mask)
    centroid = low = high = None
    if voxels:
        sums = (mask.sum(tuple({0, 1, 2} - {axis})) for axis in range(3))
        middle = [np.average(np.arange(len(each)), weights=each) for each in sums]
        centroid = apply_affine(affine, middle).tolist()
        # The ends of each line of voxels: of a linear function, the extremes are among them.
        rows = np.argwhere(mask.any(2))
        lines = mask[tuple(rows.T)]
        last = mask.shape[2] - 1 - lines[:, ::-1].argmax(1)
        ends = np.concatenate([np.c_[rows, lines.argmax(1)], np.c_[rows, last]])
        centres = apply_affine(affine, ends)
        half_voxel = np.abs(affine[:3, :3]).sum(1) / 2
        low = (centres.min(0) - half_voxel).tolist()
        high = (centres.max(0) + half_voxel).tolist()
    return {
        "volume_ml": float(voxels * abs(np.linalg.det(affine[:3, :3])) / 1000),
        "centroid_ras_mm": centroid,
        "bounding_box_low_ras_mm": low,
        "bounding_box_high_ras_mm": high,
    }


def _intensities(part: Part, unit: str) -> dict[str, float | None]:
    names = [f"{name}_{unit}" for name in ("mean", "sd", "median")]
    if part.image is None or not part.mask.any():
        return dict.fromkeys(names)
    inside = part.image[part.mask]
    if not np.isfinite(inside).all():
        return dict.fromkeys(names, math.nan)
    figures = inside.mean(dtype=np.float64), inside.std(dtype=np.float64), np.median(inside)
    return dict(zip(names, map(float, figures), strict=True))


def _against_spleen(liver: Mapping[str, Any], spleen: Mapping[str, Any]) -> dict[str, float | None]:
    one, other = liver.get("mean_hu"), spleen.get("mean_hu")
    if one is None or other is None:
        return {"liver_minus_spleen_hu": None, "liver_to_spleen_ratio": None}
    return {
        "liver_minus_spleen_hu": one - other,
        "liver_to_spleen_ratio": one / other if other > 0 else None,
    }


def _lesions(part: Part, capsule: cKDTree | None, unit: str) -> list[dict[str, Any]]:
    if not part.mask.any():
        return []
    components, _ = connected_components(part.mask, 26)
    found = []
    for number, box in enumerate(find_objects(components), start=1):
        lesion = part.cut(box, components[box] == number)
        distance_mm = None
        if capsule is not None:
            surface_mm = apply_affine(lesion.affine, _faces(np.pad(lesion.mask, 1)) - 1)
            # Some points bound the search for the others, which is several times as fast.
            bound_mm = capsule.query(surface_mm[::50])[0].min()
            nearest_mm = capsule.query(surface_mm, distance_upper_bound=bound_mm)[0].min()
            # 0 where it is the same face, whose place was reckoned twice.
            distance_mm = round(float(min(bound_mm, nearest_mm)), 6)
        found.append(
            _geometry(lesion)
            | _intensities(lesion, unit)
            | _diameters(lesion)
            | {"distance_to_capsule_mm": distance_mm}
        )
    # Of equals the uppermost, so that the axes of the file do not decide.
    found.sort(key=lambda each: (-each["volume_ml"], -round(each["centroid_ras_mm"][2], 3)))
    return [{"lesion": number} | each for number, each in enumerate(found, start=1)]


def _faces(mask: np.ndarray) -> np.ndarray:
    """Return the indices of the centres of faces that divide a mask from the rest, (N, axes)."""
    faces = [np.argwhere(np.diff(mask, axis=axis)).astype(float) for axis in range(mask.ndim)]
    for axis, index in enumerate(faces):
        index[:, axis] += 0.5
    return np.concatenate(faces)


def _capsule(liver: Part) -> cKDTree | None:
    """Return the centres of the faces of a liver's outer surface; None where it has none."""
    rest, _ = connected_components(~liver.mask, 6)
    # What surrounds a liver reaches an edge of its box; a vessel that the scan cuts off ends in the
    # middle of a side.
    edges = [np.moveaxis(rest, axis, 0)[:, [0, -1]][:, :, [0, -1]].ravel() for axis in range(3)]
    around = np.unique(np.concatenate(edges))
    faces = _faces(np.isin(rest, around[around > 0]))
    return cKDTree(apply_affine(liver.affine, faces)) if len(faces) else None


def _diameters(lesion: Part) -> dict[str, Any]:
    """Return both diameters of the slice that shows the longest."""
    upwards = int(np.flatnonzero(io_orientation(lesion.affine)[:, 0] == 2)[0])
    plane = [axis for axis in range(3) if axis != upwards]
    # In-plane indices to mm: the axes' lengths and the angle between them, without the plane's own
    # place in space.
    to_mm = np.linalg.qr(lesion.affine[:3, plane])[1].T
    best_mm, best, index = (0.0, 0.0), np.zeros((4, 2)), 0
    for k, section in enumerate(np.moveaxis(lesion.mask, upwards, 0)):
        if not section.any():
            continue
        pieces, _ = connected_components(section, 8)
        for number, box in enumerate(find_objects(pieces), start=1):
            outline = _faces(np.pad(pieces[box] == number, 1)) - 1 + [side.start for side in box]
            lengths_mm, ends = _longest(outline @ to_mm)
            if _is_longer(lengths_mm, best_mm):
                best_mm, best, index = lengths_mm, ends, k
    points = np.insert(best @ np.linalg.inv(to_mm), upwards, index, axis=1)
    ends_mm = apply_affine(lesion.affine, points).tolist()
    figures: dict[str, Any] = {}
    for name, length_mm, start, end in (
        ("longest_diameter", best_mm[0], *ends_mm[:2]),
        ("perpendicular_diameter", best_mm[1], *ends_mm[2:]),
    ):
        figures |= {
            f"{name}_mm": float(length_mm),
            f"{name}_start_ras_mm": start,
            f"{name}_end_ras_mm": end,
        }
    return figures


def _is_longer(one: tuple[float, float], other: tuple[float, float]) -> bool:
    if abs(one[0] - other[0]) > SAME_MM:
        return one[0] > other[0]
    return one[1] > other[1] + SAME_MM


def _longest(outline: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
    """Return longest diameter and perpendicular of points (N, 2), and the ends of both (4, 2)."""
    hull = outline[ConvexHull(outline).vertices]
    distances = cdist(hull, hull)
    best_mm, best = (0.0, 0.0), np.zeros((4, 2))
    for start, end in np.argwhere(np.triu(distances >= distances.max() - SAME_MM)):
        length = float(distances[start, end])
        direction = (hull[end] - hull[start]) / length
        chord = _longest_chord(hull, np.array([-direction[1], direction[0]]))
        lengths = length, float(np.linalg.norm(chord[1] - chord[0]))
        if _is_longer(lengths, best_mm):
            best_mm, best = lengths, np.concatenate([hull[[start, end]], chord])
    return best_mm, best


def _longest_chord(hull: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return the ends (2, 2) of the longest chord of a convex polygon (N, 2) in a direction.

    One of them goes through a corner, for between corners a chord's length is linear.
    """
    axes = np.array([[direction[1], -direction[0]], direction])
    x, y = axes @ hull.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (x[:, None] - x) / (next_x - x)
        cut = y + share * (next_y - y)
    # No edge along the chord: its ends are those of its neighbours, too.
    on_edge = (share >= 0) & (share <= 1)
    high = np.where(on_edge, cut, -np.inf).max(1)
    low = np.where(on_edge, cut, np.inf).min(1)
    line = int((high - low).argmax())
    return np.array([[x[line], low[line]], [x[line], high[line]]]) @ axes
