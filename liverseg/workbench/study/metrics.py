"""Read what a cell reached out of the files that the bundle wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

POOLED = ("global_accuracy", "mean_accuracy", "mean_iou", "weighted_iou", "mean_bf_score")
OF_CASES = ("dice", "hd95_mm", "assd_mm")
OF_TRAINING = ("training_minutes", "epochs", "iterations", "memory_mb")
SECONDS = {"seconds_per_slice": "inference_per_slice", "postprocessing_seconds": "postprocessing_per_case"}
# Metrics from 0 to 1, whose differences are percentage points.
SHARES = (*POOLED, "iou", "dice", "case_iou")


def check_metric(metric: str, classes: Sequence[str]) -> bool:
    """Whether a network of these foreground classes has the metric."""
    kind, _, of = metric.partition(":")
    if kind == "iou":
        return of in ("background", *classes)
    if kind == "case_iou":
        return of.isdigit() and int(of) > 0
    return of in classes if kind in OF_CASES else not of and kind in (*POOLED, *OF_TRAINING, *SECONDS)


def is_share(metric: str) -> bool:
    """Whether the metric is a share from 0 to 1."""
    return metric.partition(":")[0] in SHARES


def read_metric(folder: Path, metric: str, postprocessings: Sequence[str]) -> float | None:
    """The value of a metric in one cell; with several post-processings, their seconds add up.

    Args:
        folder: the cell's.
        metric: its name; the words after the colon are the class.
        postprocessings: the evaluations to read.

    Returns:
        None where the value does not exist, as the IoU of a class that no mask holds.

    Raises:
        FileNotFoundError: when the cell has not come so far.
    """
    kind, _, of = metric.partition(":")
    if kind in OF_TRAINING:
        return _of_training(folder / "training", kind)
    summaries = [_read_json(folder / "evaluation" / name / "summary.json") for name in postprocessings]
    if kind in SECONDS:
        return sum(summary["seconds"][SECONDS[kind]]["mean"] for summary in summaries)
    summary = summaries[0]
    if kind == "iou":
        return summary["pooled"]["classes"][of]["iou"]
    return summary["cases"][of][kind]["mean"] if kind in OF_CASES else summary["pooled"][kind]


def read_cases(folder: Path, metric: str, postprocessing: str) -> dict[str, float] | None:
    """The counterpart of a metric for each case, by image: what a paired test compares.

    `iou:CLASS` and `dice:CLASS` are that class's, `mean_iou` is the mean IoU of the foreground classes, `case_iou:N`
    the first class's IoU. Other metrics have none, and give None.

    Raises:
        FileNotFoundError: when the cell has not come so far.
    """
    kind, _, of = metric.partition(":")
    if kind not in ("iou", "dice", "mean_iou", "case_iou") or of == "background":
        return None
    table = pd.read_csv(folder / "evaluation" / postprocessing / "cases.csv")
    if kind == "mean_iou":
        return table.groupby("case")["iou"].mean().to_dict()
    wanted = table[table["class"] == (table["class"].iloc[0] if kind == "case_iou" else of)]
    return wanted.set_index("case")["dice" if kind == "dice" else "iou"].to_dict()


def _of_training(folder: Path, kind: str) -> float:
    facts = _read_json(folder / "metrics.json")
    if kind == "training_minutes":
        return facts["seconds"] / 60
    if kind == "memory_mb":
        return 1000 * (facts["peak_gpu_memory_gb"] or facts["peak_memory_gb"])
    return float(last_epoch(folder)["epoch" if kind == "epochs" else "iteration"])


def last_epoch(folder: Path) -> dict[str, Any]:
    """The last line of a training's `history.csv`.

    Raises:
        FileNotFoundError: before the first epoch's end.
    """
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
