"""Draw organs of a case as surfaces: the label, and what networks and postprocessing made of it."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from liverseg.io.masks import find_mask
from liverseg.outputs.overlays import in_ras_order
from liverseg.outputs.surface import lit_triangles, surface_mesh
from liverseg.transforms import LoadVolumed, MapLabelsd
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.plots import label_of

# Of the foreground classes, in their order.
COLOURS = (
    "#b5533c", "#e0a03a", "#6aa84f", "#3f7fbf", "#8e6bb5", "#c96a9b", "#3aa6a0", "#8a8f98",
)  # fmt: skip
PER_LINE = 4
MARGIN_MM = 10.0


def surfaces(
    folder: StudyFolder, plan: Mapping[str, Any], results: pd.DataFrame
) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, caption and PNG of a case of each table that has `surfaces`.

    Of the first fold and seed. `case_iou:N` draws the N-th case; other metrics the one with the
    middle mean IoU of its classes in the first row or column, neither the best nor the worst. The
    same masks are drawn once, whatever table they are in.
    """
    drawn = []
    for name, table in plan["tables"].items():
        for other, metric, sources in _figures(table):
            first = next(iter(sources.values()))
            case = _case(_ious(results, *first), metric)
            key = [case, *sources.values()]
            if case is None or key in drawn:
                continue
            run = plan["cells"][first[0]]
            png = _picture(folder, run, case, sources, results)
            if png:
                drawn.append(key)
                caption = f"{table['title']}; {run['data']}, {Path(case).name}"
                yield f"{name} {other} surfaces", caption, png


def surfaces_png(
    panels: Mapping[str, np.ndarray], spacing_mm: Sequence[float], classes: Sequence[str]
) -> bytes:
    """Return a PNG of label maps as lit surfaces from the front, one scale and view for all.

    Args:
        panels: by title, class indices (X, Y, Z) in RAS order of one grid, one of them not empty.
        spacing_mm: voxel size along the three axes.
        classes: names, from the class of index 1 on.
    """
    triangles = {}
    for title, label_map in panels.items():
        parts = [
            lit_triangles(
                surface_mesh(label_map == index, spacing_mm), COLOURS[(index - 1) % len(COLOURS)]
            )
            for index in range(1, len(classes) + 1)
            if (label_map == index).any()
        ]
        if parts:
            corners, colours = zip(*parts, strict=True)
            # In one collection, so that matplotlib sorts the triangles of all classes by depth.
            triangles[title] = np.concatenate(corners), np.concatenate(colours)
    low = np.min([corners.min((0, 1)) for corners, _ in triangles.values()], axis=0)
    high = np.max([corners.max((0, 1)) for corners, _ in triangles.values()], axis=0)
    lines = math.ceil(len(panels) / PER_LINE)
    columns = math.ceil(len(panels) / lines)
    legend = 0.35 if len(classes) > 1 else 0
    # A square for each panel, with two lines of text above it.
    titles, side = 0.4, 2.6
    height = (titles + side) * lines + legend
    figure = Figure((side * columns, height), dpi=130)
    for index, title in enumerate(panels):
        axes: Any = figure.add_subplot(lines, columns, index + 1, projection="3d")
        axes.set_axis_off()
        if title in triangles:
            _draw_triangles(axes, *triangles[title], low, high)
        # mplot3d takes 0.92 of y: this is a little below the square's upper edge.
        axes.set_title(title, fontsize=9, y=1.05)
    figure.subplots_adjust(
        0, legend / height, 1, 1 - titles / height, wspace=0, hspace=titles / side
    )
    if legend:
        patches = [
            Patch(color=COLOURS[index % len(COLOURS)], label=name.replace("_", " "))
            for index, name in enumerate(classes)
        ]
        figure.legend(
            handles=patches, loc="lower center", ncols=len(classes), frameon=False, fontsize=9
        )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_triangles(
    axes: Any, triangles: np.ndarray, colours: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """Draw triangles (N, 3, 3), mm in RAS order, from the front; `low` to `high` is shown."""
    axes.set_proj_type("ortho")
    # From in front and a little above: x grows to the patient's right, which is on
    # the picture's left.
    axes.view_init(elev=10, azim=90)
    axes.add_collection3d(
        Poly3DCollection(triangles, facecolors=colours, edgecolors=colours, linewidths=0.3)
    )
    reach = (high - low).max() / 2 + MARGIN_MM
    for set_limits, centre in zip(
        (axes.set_xlim, axes.set_ylim, axes.set_zlim), (high + low) / 2, strict=True
    ):
        set_limits(centre - reach, centre + reach)
    axes.set_box_aspect((1, 1, 1), zoom=1.5)
    axes.set_axis_off()


def _figures(table: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, tuple[str, str]]]]:
    """Yield the label and metric of each column, or row, and the run and evaluation of each panel.

    The panels are the places of the column, or row.
    """
    by, places = table.get("surfaces"), table["places"]
    for other in () if by is None else table["columns"] if by == "rows" else places:
        found = {row: of_row.get(other) for row, of_row in places.items()}
        chosen = {
            label: place
            for label, place in (found if by == "rows" else places[other]).items()
            # Not the networks of one class each.
            if place and len(place["parts"]) == 1
        }
        sources = {
            label: (place["parts"][0][0], place["evaluation"]) for label, place in chosen.items()
        }
        if len(set(sources.values())) > 1:
            yield other, next(iter(chosen.values()))["metric"], sources


def _case(ious: pd.Series, metric: str) -> str | None:
    """Return the case to draw, or None where it is not there."""
    if metric.startswith("case_iou:"):
        number = int(metric.partition(":")[2])
        return str(ious.index[number - 1]) if number <= len(ious) else None
    ious = ious.dropna().sort_values(kind="stable")
    return None if ious.empty else str(ious.index[len(ious) // 2])


def _ious(results: pd.DataFrame, run: str, evaluation: str) -> pd.Series:
    """Return the mean IoU of the classes of each case, in the order of the evaluation."""
    rows = results[
        (results["run"] == run)
        & (results["evaluation"] == evaluation)
        & (results["metric"] == "iou")
        & (results["case"] != "")
    ]
    return rows.groupby("case", sort=False)["value"].mean()


def _picture(
    folder: StudyFolder,
    run: Mapping[str, Any],
    case: str,
    sources: Mapping[str, tuple[str, str]],
    results: pd.DataFrame,
) -> bytes | None:
    """Return the PNG of a case, or None where one of its files is gone or all is empty."""
    label = label_of(case, run)
    masks = {
        title: find_mask(folder.run(name) / "evaluation" / evaluation / "masks", case)
        for title, (name, evaluation) in sources.items()
    }
    if label is None or None in masks.values():
        return None
    load = LoadVolumed("volume")
    classes = run["settings"]["classes"]
    reference = MapLabelsd("volume", classes)(load({"volume": label}))["volume"]
    volume, affine = in_ras_order(reference)
    panels = {"Label": volume}
    for title, source in sources.items():
        iou = _ious(results, *source).get(case, math.nan)
        caption = textwrap.fill(title, 34) + f"\nIoU {iou:.3f}"
        panels[caption] = in_ras_order(load({"volume": str(masks[title])})["volume"])[0]
    if not any(panel.any() for panel in panels.values()):
        return None
    return surfaces_png(panels, nib.affines.voxel_sizes(affine), list(classes)[1:])
