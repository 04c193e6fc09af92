from __future__ import annotations

import json
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from helpers.bundle_runs import write_dataset

from liverseg.data import load_datalist
from liverseg.io.masks import MaskFolder
from liverseg.outputs.surface import lit_triangles, surface_mesh
from liverseg.workbench.study import surfaces as module
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.report import write_report
from liverseg.workbench.study.results import read_results
from liverseg.workbench.study.surfaces import surfaces, surfaces_png

SPACING_MM = (1.5, 2.0, 4.0)


def ball(centre_mm, radius_mm: float, shape=(80, 60, 30)) -> np.ndarray:
    """Voxels of SPACING_MM whose centre lies in the ball."""
    centres = np.stack(np.indices(shape), -1) + 0.5
    return np.linalg.norm(centres * SPACING_MM - centre_mm, axis=-1) <= radius_mm


def test_triangles_lie_on_the_surface_in_mm():
    centre_mm, radius_mm = np.array([70.0, 55.0, 62.0]), 30.0
    mesh = surface_mesh(ball(centre_mm, radius_mm), SPACING_MM)
    triangles, colours = lit_triangles(mesh, "#ff0000")
    radii_mm = np.linalg.norm(triangles - centre_mm, axis=-1)
    # Within half a slice.
    assert np.abs(radii_mm - radius_mm).max() < 2.0
    assert triangles.mean((0, 1)) == pytest.approx(centre_mm, abs=0.5)
    sides = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(sides, axis=1).sum() / 2
    assert area == pytest.approx(4 * np.pi * radius_mm**2, rel=0.05)
    # Lit from the patient's left, in front and above; x grows to the right.
    towards = (triangles.mean(1) - centre_mm) @ (-1, 1, 1)
    assert colours[towards > 45, 0].min() > 0.8
    assert colours[towards < -30, 0].max() == pytest.approx(0.35)
    assert not colours[:, 1:].any()


def test_panels_have_one_view_one_scale_and_the_colours_of_the_classes():
    right, left = ball((95, 60, 80), 20), ball((25, 60, 40), 15)
    both = right + 2 * left.astype(np.uint8)
    panels = {"Label": both, "a": right.astype(np.uint8), "nothing": 0 * both}
    png = surfaces_png(panels, SPACING_MM, ["liver", "spleen"])
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    # A square of 2.6 inches for each panel, at 130 dots an inch, below 0.4 inches of title.
    shown, single, empty = (
        picture[60 : 52 + 338, 338 * index : 338 * (index + 1)] for index in range(3)
    )
    assert (empty == 255).all()
    red = [(part[..., 0] - part[..., 2]) > 40 for part in (shown, single)]
    amber = (shown[..., 0] > 1.2 * shown[..., 1]) & (shown[..., 1] > 1.5 * shown[..., 2])
    assert red[0].any()
    assert np.array_equal(shown[:, :150], single[:, :150])
    rows, columns = np.nonzero(red[1])
    # Patient's right on the left, head up.
    assert columns.mean() < 150
    assert columns.mean() < np.nonzero(amber)[1].mean()
    assert rows.mean() < np.nonzero(amber)[0].mean()


@pytest.fixture
def study(tmp_path) -> Path:
    """A run with two kinds of postprocessing on three cases, and its table."""
    scans = write_dataset(tmp_path / "scans", num_cases=6)
    items = load_datalist(scans / "dataset.json", "validation", 0)
    for name, ious in (("none", (0.9, 0.2, 0.5)), ("clean", (0.8, 0.3, 0.6))):
        folder = tmp_path / "cells" / "cell" / "evaluation" / name
        masks = MaskFolder(folder / "masks", "pred")
        rows = []
        for item, iou in zip(items, ious, strict=True):
            mask = nib.load(item["label"])
            masks.save(item["image"], np.asarray(mask.dataobj) > 0, mask.affine)
            rows.append({"case": item["image"], "class": "liver", "iou": iou})
        pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False)
        pooled = {"classes": {"liver": {"iou": 0.5, "dice": 0.6}}}
        (folder / "summary.json").write_text(json.dumps({"pooled": pooled, "seconds": {}}))
    cell = {
        "data": "ct", "network": "A", "loss": "dice", "task": "liver", "fold": 0,
        "dataset": {"dataset_dir": str(scans)},
        "settings": {"classes": {"background": None, "liver": [1, 2]}},
    }  # fmt: skip
    table = {
        "title": "Steps", "rows": ["raw", "step", "gain"], "paper": {}, "surfaces": "rows",
        "derived": {"gain": {"difference": ["raw", "step"]}}, "columns": ["IoU", "Dice", "2"],
        "places": {
            row: {
                column: {
                    "metric": metric, "evaluation": evaluation, "parts": [["cell"]],
                    "reference": None,
                }
                for column, metric in (
                    ("IoU", "iou:liver"), ("Dice", "dice_global:liver"), ("2", "case_iou:2")
                )
            }
            for row, evaluation in (("raw", "none"), ("step", "clean"))
        },
    }  # fmt: skip
    content = {"phantoms": False, "cells": {"cell": cell}, "tables": {"own": table}}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    return tmp_path


def drawn(study: Path, monkeypatch) -> dict[str, tuple[str, dict]]:
    """By name the caption of each picture, and its panels."""
    panels = []
    monkeypatch.setattr(module, "surfaces_png", lambda *args: panels.append(args) or b"png")
    folder = StudyFolder(study)
    plan = folder.read_plan()
    found = list(surfaces(folder, plan, read_results(folder, plan["cells"])))
    return {
        name: (caption, args[0])
        for (name, caption, _), args in zip(found, panels, strict=True)
    }  # fmt: skip


def test_the_middle_case_and_the_numbered_one_are_drawn_once(study, monkeypatch):
    pictures = drawn(study, monkeypatch)
    # Dice is of the same masks as IoU.
    assert list(pictures) == ["own IoU surfaces", "own 2 surfaces"]
    caption, panels = pictures["own IoU surfaces"]
    assert caption == "Steps; ct, volume-4.nii"
    assert list(panels) == ["Label", "raw\nIoU 0.500", "step\nIoU 0.600"]
    label = nib.as_closest_canonical(nib.load(study / "scans" / "segmentation-4.nii"))
    for panel in panels.values():
        assert np.array_equal(panel, np.asarray(label.dataobj) > 0)
    caption, panels = pictures["own 2 surfaces"]
    assert caption.endswith("volume-2.nii")
    assert list(panels) == ["Label", "raw\nIoU 0.200", "step\nIoU 0.300"]


def test_columns_are_compared_where_the_table_says_so(study, monkeypatch):
    plan = json.loads((study / "plan.json").read_text())
    table = plan["tables"]["own"]
    for row in table["places"].values():
        row["Dice"]["evaluation"] = "clean"
        row["2"]["parts"] = [["cell"], ["cell"]]
    (study / "plan.json").write_text(json.dumps(plan))
    assert len(drawn(study, monkeypatch)) == 1
    table["surfaces"] = "columns"
    (study / "plan.json").write_text(json.dumps(plan))
    pictures = drawn(study, monkeypatch)
    assert list(pictures) == ["own raw surfaces"]
    # Networks of one class each have no picture.
    assert list(pictures["own raw surfaces"][1]) == ["Label", "IoU\nIoU 0.500", "Dice\nIoU 0.600"]


def test_the_page_shows_surfaces_while_the_masks_are_there(study):
    page = write_report(StudyFolder(study)).read_text()
    assert 'src="plots/own_IoU_surfaces.png"' in page
    assert '<a href="#surfaces">' in page
    for mask in study.rglob("*volume-[24]*pred*"):
        mask.unlink()
    assert "#surfaces" not in write_report(StudyFolder(study)).read_text()
