"""Write one HTML file to look at a scan and its mask in a browser, without a network."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import liverseg
from liverseg.files import write_text
from liverseg.outputs.overlays import PLANES, Scan
from liverseg.outputs.segmentation import Segmentation, boxes_of
from liverseg.outputs.shown import shown_scan, shown_voxel
from liverseg.outputs.viewer import viewer

UNITS = {"ml": "ml", "mm": "mm", "mm2": "mm²", "hu": "HU", "percent": "%", "seconds": "s"}
NO_VALUE = "–"
POINT = "_ras_mm"
# A tilt that nobody sees.
LEAST_TILT_DEGREES = 1.0


def write_page(
    path: str | os.PathLike[str],
    segmentation: Segmentation,
    image: np.ndarray,
    colours: Mapping[int, str],
    statistics: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write a page on which the scan scrolls in three planes and the mask's surface turns.

    It has the voxels of `shown_scan` in 8 bits. The planes are those of the scan's own grid, in the
    order nearest to RAS. Needs the extra `workbench`.

    Args:
        path: the file to write; what is there is replaced when the new one is whole.
        segmentation: the mask, its flags and warnings.
        image: (H, W, D), HU or intensities, the voxels of its scan.
        colours: "#rrggbb" of each class.
        statistics: its lists of rows and its mappings of rows by name become tables. A row has its
            figures by name, which ends with the unit, as in `volume_ml`. Points are left out; a
            `centroid_ras_mm` is where the row's button leads.
        facts: what else should be known: settings, time.

    Raises:
        InputError: as `shown_scan`, and for a `path` that cannot be written.
    """
    import jinja2

    scan = shown_scan(segmentation, image, colours)
    in_mask = boxes_of(segmentation.mask)
    names = {value: segmentation.name(value) for value in (*segmentation.class_names, *in_mask)}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = files(__package__)
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=Path(segmentation.scan).name,
        notices=[*segmentation.flags.values(), *segmentation.warnings],
        planes={plane: scan.image.shape[axis] for plane, (axis, _) in PLANES.items()},
        viewer=viewer(scan, names),
        too_small=[names[value] for value in in_mask if not (scan.mask == value).any()],
        absent=[name for value, name in names.items() if value not in in_mask],
        tables=_tables(statistics or {}, segmentation, scan),
        facts=_facts(segmentation, scan) | dict(facts or {}),
        script=(folder / "report.js").read_text(encoding="utf-8"),
    )
    write_text(path, page)


def _facts(segmentation: Segmentation, scan: Scan) -> dict[str, str]:
    affine = segmentation.affine
    spacing_mm = nib.affines.voxel_sizes(affine)
    stored = "".join(nib.aff2axcodes(affine))
    order = nib.io_orientation(affine)[:, 0].astype(int)
    along = np.abs(affine[order, range(3)]) / spacing_mm
    tilt_degrees = math.degrees(math.acos(min(1.0, float(along.min()))))
    facts = {
        "Bundle": f"{segmentation.bundle} {segmentation.version}".strip() or NO_VALUE,
        "liverseg": liverseg.__version__,
        "Grid of the scan": f"{_grid(segmentation.mask.shape, spacing_mm)}, stored as {stored}",
        "Grid of the pictures": _grid(scan.image.shape, scan.spacing_mm),
    }
    if tilt_degrees >= LEAST_TILT_DEGREES:
        facts["Planes"] = (
            f"The scan lies oblique: its planes are shown, which are tilted by up to "
            f"{tilt_degrees:.0f}° from those of the body, and the letters are the nearest ones."
        )
    return facts


def _grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> str:
    voxels, mm = " × ".join(map(str, shape)), " × ".join(f"{length:.2f}" for length in spacing_mm)
    return f"{voxels} voxels of {mm} mm"


def _tables(
    statistics: Mapping[str, Any], segmentation: Segmentation, scan: Scan
) -> list[dict[str, Any]]:
    """Return title, names of columns, and rows with their cells and place in the pictures."""
    tables = []
    for title, found in statistics.items():
        if not isinstance(found, list | Mapping):
            continue
        rows = (
            [{"name": name, **row} for name, row in found.items()]
            if isinstance(found, Mapping)
            else found
        )
        keys = [key for key in dict.fromkeys(itertools.chain(*rows)) if not key.endswith(POINT)]
        lines = [
            {
                "cells": [_cell(row.get(key)) for key in keys],
                "place": shown_voxel(scan, segmentation, row["centroid_ras_mm"])
                if row.get("centroid_ras_mm")
                else None,
            }
            for row in rows
        ]
        tables.append({"title": _title(title), "columns": list(map(_title, keys)), "rows": lines})
    return tables


def _title(key: str) -> str:
    """Return "Volume, ml" of `volume_ml`."""
    name, _, unit = key.rpartition("_")
    text = f"{name}, {UNITS[unit]}" if name and unit in UNITS else key
    return (text[:1].upper() + text[1:]).replace("_", " ")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
    return str(value)
