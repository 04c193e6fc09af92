"""Read what a cell reached out of the files that the bundle wrote."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

POOLED = ("global_accuracy", "mean_accuracy", "mean_iou", "weighted_iou", "mean_bf_score")
OF_CASES = ("dice", "hd95_mm", "assd_mm", "volume_error_percent")
OF_LESIONS = ("detection_precision", "detection_recall", "burden_rmse", "burden_max_error")
OF_TRAINING = ("training_minutes", "epochs", "iterations", "memory_mb")
SECONDS = {
    "seconds_per_slice": "inference_per_slice",
    "postprocessing_seconds": "postprocessing_per_case",
}
# Metrics from 0 to 1, whose differences are percentage points.
SHARES = (*POOLED, *OF_LESIONS, "iou", "dice", "dice_global", "case_iou")


def check_metric(metric: str, classes: Sequence[str]) -> bool:
    """Whether a network of these foreground classes has the metric."""
    kind, _, of = metric.partition(":")
    if kind in ("iou", "dice_global"):
        return of in ("background", *classes)
    if kind == "case_iou":
        return of.isdigit() and int(of) > 0
    if kind in OF_LESIONS:
        return not of and "lesion" in classes
    return (
        of in classes if kind in OF_CASES else not of and kind in (*POOLED, *OF_TRAINING, *SECONDS)
    )


def is_share(metric: str) -> bool:
    """Whether the metric is a share from 0 to 1."""
    return metric.partition(":")[0] in SHARES


def read_metric(folder: Path, metric: str, evaluations: Sequence[str]) -> float | None:
    """The value of a metric in one cell; with several post-processings, their seconds add up.

    Args:
        folder: the cell's.
        metric: its name; the words after the colon are the class.
        evaluations: the names of those to read.

    Returns:
        None where the value does not exist, as the IoU of a class that no mask holds.

    Raises:
        FileNotFoundError: when the cell has not come so far.
    """
    kind, _, of = metric.partition(":")
    if kind in OF_TRAINING:
        return _of_training(folder / "training", kind)
    summaries = [_read_json(folder / "evaluation" / name / "summary.json") for name in evaluations]
    if kind in SECONDS:
        return sum(summary["seconds"][SECONDS[kind]]["mean"] for summary in summaries)
    summary = summaries[0]
    if kind in ("iou", "dice_global"):
        return summary["pooled"]["classes"][of]["iou" if kind == "iou" else "dice"]
    if kind in OF_LESIONS:
        return summary["lesions"][kind]
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
    facts = [_read_json(path) for path in of_stages(folder, "metrics.json")]
    if kind == "training_minutes":
        return sum(stage["seconds"] for stage in facts) / 60
    if kind == "memory_mb":
        return 1000 * max(stage["peak_gpu_memory_gb"] or stage["peak_memory_gb"] for stage in facts)
    last = [_last_line(path) for path in of_stages(folder, "history.csv")]
    return float(sum(int(line["epoch" if kind == "epochs" else "iteration"]) for line in last))


def of_stages(folder: Path, name: str) -> list[Path]:
    """The files `name` of a training, the last written at the end: one, or one for each stage in a folder of its own.

    Raises:
        FileNotFoundError: where there is none.
    """
    found = sorted(folder.rglob(name), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / name))
    return found


def last_epoch(folder: Path) -> dict[str, Any]:
    """The last line of a training's `history.csv`; of a training by stages, that of the stage that came last.

    Raises:
        FileNotFoundError: before the first epoch's end.
    """
    return _last_line(of_stages(folder, "history.csv")[-1])


def _last_line(history: Path) -> dict[str, Any]:
    with history.open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
