"""Read the results of a study's runs from the files that the bundles wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from liverseg.workbench.study.folder import StudyFolder

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
# Metrics with a counterpart for each case.
PAIRED = ("iou", "dice", "mean_iou", "case_iou")

OF_RUN = ["run", "data", "network", "loss", "task", "fold", "seed"]
OF_VALUE = ["file", "evaluation", "case", "class", "metric", "value"]


def check_metric(metric: str, classes: Sequence[str]) -> bool:
    """Return whether a network of these foreground classes has the metric."""
    kind, _, of = metric.partition(":")
    if kind in ("iou", "dice_global"):
        return of in ("background", *classes)
    if kind == "case_iou":
        return of.isdigit() and int(of) > 0
    if kind in OF_LESIONS:
        return not of and "lesion" in classes
    if kind in OF_CASES:
        return of in classes
    return not of and kind in (*POOLED, *OF_TRAINING, *SECONDS)


def is_share(metric: str) -> bool:
    """Return whether the metric is a share from 0 to 1."""
    return metric.partition(":")[0] in SHARES


def files_of(metric: str, evaluations: Sequence[str]) -> list[str]:
    """Return the files of a run that a metric is read from."""
    kind, _, of = metric.partition(":")
    if kind in OF_TRAINING:
        counts = kind in ("epochs", "iterations")
        return ["training/metrics.json", *["training/history.csv"] * counts]
    cases = [f"evaluation/{evaluations[0]}/cases.csv"]
    if kind == "case_iou":
        return cases
    summaries = [f"evaluation/{name}/summary.json" for name in evaluations]
    return [*cases * (kind in PAIRED and of != "background"), *summaries]


def read_results(folder: StudyFolder, runs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return all results of the runs, one value a row.

    Args:
        folder: the study's.
        runs: by name, what each is: the plan's `cells`.

    Returns:
        The columns `run`, `data`, `network`, `loss`, `task`, `fold`, `seed`; `file`, where in the
        run's folder the value is from; `evaluation`, `case` (the image) and `class`, empty for a
        value of all; `metric` and `value`, NaN where it does not exist.
    """
    frames = [pd.DataFrame(columns=[*OF_RUN, *OF_VALUE])]
    for name, run in runs.items():
        path = folder.run(name)
        rows: list[tuple] = [*_of_training(path / "training")]
        for file in sorted(path.glob("evaluation/*/summary.json")):
            summary = json.loads(file.read_text(encoding="utf-8"))
            where = (str(file.relative_to(path)), file.parent.name)
            rows += [(*where, "", *value) for value in _of_summary(summary)]
        for file in sorted(path.glob("evaluation/*/cases.csv")):
            where = (str(file.relative_to(path)), file.parent.name)
            table = pd.read_csv(file).melt(["case", "class"])
            rows += [(*where, *value) for value in table.itertuples(index=False)]
        known = {key: run.get(key) for key in OF_RUN} | {"run": name}
        if rows:
            frames.append(pd.DataFrame(rows, columns=OF_VALUE).assign(**known))
    return pd.concat(frames, ignore_index=True).astype({"value": float})


def last_epoch(training: Path) -> dict[str, Any] | None:
    """Return the last line of a training's `history.csv`, or of that of its last stage.

    None before the first epoch's end.
    """
    lines = [_last_line(path) for path in of_stages(training, "history.csv")]
    return lines[-1] if lines else None


def of_stages(training: Path, name: str) -> list[Path]:
    """Return the files `name` of a training, written at the end: one, or one for each stage."""
    return sorted(training.rglob(name), key=lambda path: path.stat().st_mtime)


def _of_training(training: Path) -> Iterator[tuple[str, str, str, str, str, float]]:
    facts = [json.loads(path.read_text()) for path in of_stages(training, "metrics.json")]
    if facts:
        peaks = [stage["peak_gpu_memory_gb"] or stage["peak_memory_gb"] for stage in facts]
        minutes = sum(stage["seconds"] for stage in facts) / 60
        yield "training/metrics.json", "", "", "", "training_minutes", minutes
        yield "training/metrics.json", "", "", "", "memory_mb", 1000 * max(peaks)
    last = [_last_line(path) for path in of_stages(training, "history.csv")]
    for metric, column in (("epochs", "epoch"), ("iterations", "iteration")):
        if last:
            count = float(sum(int(line[column]) for line in last))
            yield "training/history.csv", "", "", "", metric, count


def _of_summary(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    """Yield class, metric and value."""
    for metric in POOLED:
        if metric in summary["pooled"]:
            yield "", metric, summary["pooled"][metric]
    for name, pooled in summary["pooled"]["classes"].items():
        yield name, "iou", pooled["iou"]
        yield name, "dice_global", pooled.get("dice")
    for name, metrics in summary.get("cases", {}).items():
        for metric in OF_CASES:
            yield name, metric, metrics[metric]["mean"]
    for metric, value in summary.get("lesions", {}).items():
        yield "", metric, value
    for metric, key in SECONDS.items():
        yield "", metric, summary["seconds"][key]["mean"]


def _last_line(history: Path) -> dict[str, Any]:
    return pd.read_csv(history).iloc[-1].to_dict()
