"""Read the results of a study's runs from the files that the bundles wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from liverseg.workbench.study.folder import StudyFolder

POOLED = ("global_accuracy", "mean_accuracy", "mean_iou", "weighted_iou", "mean_bf_score")
# Of a class, pooled, and their keys in summary.json.
OF_CLASSES = {
    "iou": "iou",
    "dice_global": "dice",
    "precision": "precision",
    "recall": "accuracy",
    "specificity": "specificity",
    "auc": "auc",
}
OF_CASES = ("dice", "hd95_mm", "assd_mm", "volume_error_percent")
OF_LESIONS = ("detection_precision", "detection_recall", "burden_rmse", "burden_max_error")
# Of a class against all other voxels; the liver with its lesions.
OF_TARGETS = {
    "target_accuracy": "accuracy", "target_iou": "iou", "target_mean_iou": "mean_iou",
}  # fmt: skip
OF_TRAINING = ("training_minutes", "training_hours", "epochs", "iterations", "memory_mb")
# How long until the validation accuracy stays within 2 % of its last value.
OF_CONVERGENCE = (
    "converged_minutes", "converged_epochs", "converged_iterations", "final_validation_accuracy",
)  # fmt: skip
CONVERGED = 0.02
SECONDS = {
    "seconds_per_slice": "inference_per_slice",
    "seconds_per_case": "segmentation_per_case",
    "postprocessing_seconds": "postprocessing_per_case",
}
# Metrics from 0 to 1, whose differences are percentage points.
SHARES = (
    *POOLED, *OF_LESIONS, *OF_CLASSES, *OF_TARGETS, "dice", "case_iou",
    "final_validation_accuracy",
)  # fmt: skip
# Those that a column of the best can choose by.
LARGEST_IS_BEST = (*POOLED, *OF_CLASSES, "dice")
# Metrics with a counterpart for each case.
PAIRED = ("iou", "dice", "mean_iou", "case_iou")

OF_RUN = ["run", "data", "network", "loss", "task", "fold", "seed"]
OF_VALUE = ["file", "evaluation", "case", "class", "metric", "value"]


def check_metric(metric: str, classes: Sequence[str]) -> bool:
    """Return whether a network of these foreground classes has the metric."""
    kind, _, of = metric.partition(":")
    if kind in OF_CLASSES:
        return of in ("background", *classes)
    if kind == "case_iou":
        return of.isdigit() and int(of) > 0
    if kind in OF_LESIONS:
        return not of and "lesion" in classes
    if kind in (*OF_CASES, *OF_TARGETS):
        return of in classes
    return not of and kind in (*POOLED, *OF_TRAINING, *OF_CONVERGENCE, *SECONDS)


def is_share(metric: str) -> bool:
    """Return whether the metric is a share from 0 to 1."""
    return metric.partition(":")[0] in SHARES


def files_of(metric: str, evaluation: str) -> list[str]:
    """Return the files of a run that a metric is read from."""
    kind, _, of = metric.partition(":")
    if kind in OF_TRAINING:
        counts = kind in ("epochs", "iterations")
        return ["training/metrics.json", *["training/history.csv"] * counts]
    if kind in OF_CONVERGENCE:
        return ["training/metrics.json", "training/history.csv"]
    cases = [f"evaluation/{evaluation}/cases.csv"]
    if kind == "case_iou":
        return cases
    paired = kind in PAIRED and of != "background"
    return [*cases * paired, f"evaluation/{evaluation}/summary.json"]


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
        rows: list[tuple] = [*_of_training(path / "training", run.get("protocol"))]
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


def iterations_done(training: Path) -> int:
    """Return the iterations of a training so far, of all its stages; 0 before the first epoch."""
    return sum(
        int(pd.read_csv(path)["iteration"].iloc[-1]) for path in of_stages(training, "history.csv")
    )


def of_stages(training: Path, name: str) -> list[Path]:
    """Return the files `name` of a training, written at the end: one, or one for each stage."""
    return sorted(training.rglob(name), key=lambda path: path.stat().st_mtime)


def _of_training(
    training: Path, protocol: Mapping[str, Any] | None
) -> Iterator[tuple[str, str, str, str, str, float]]:
    facts = [json.loads(path.read_text()) for path in of_stages(training, "metrics.json")]
    if facts:
        peaks = [stage["peak_gpu_memory_gb"] or stage["peak_memory_gb"] for stage in facts]
        minutes = sum(stage["seconds"] for stage in facts) / 60
        yield "training/metrics.json", "", "", "", "training_minutes", minutes
        yield "training/metrics.json", "", "", "", "training_hours", minutes / 60
        yield "training/metrics.json", "", "", "", "memory_mb", 1000 * max(peaks)
    histories = [pd.read_csv(path) for path in of_stages(training, "history.csv")]
    for metric, column in (("epochs", "epoch"), ("iterations", "iteration")):
        if histories:
            count = float(sum(int(history[column].iloc[-1]) for history in histories))
            yield "training/history.csv", "", "", "", metric, count
    # Several networks converge at several times.
    if len(histories) == 1:
        for metric, value in _convergence(histories[0], protocol).items():
            yield "training/history.csv", "", "", "", metric, value


def _convergence(history: pd.DataFrame, protocol: Mapping[str, Any] | None) -> dict[str, float]:
    """Return when the validation accuracy came within 2 % of its last value, to stay there.

    Of the epochs that were validated; epochs are those of the paper where there is a protocol.
    """
    if "val_accuracy" not in history:
        return {}
    curve = history.dropna(subset="val_accuracy")
    final = curve["val_accuracy"].iloc[-1] if len(curve) else math.nan
    away = (curve["val_accuracy"] - final).abs() > CONVERGED * final
    row = curve.iloc[int(away.to_numpy().nonzero()[0].max(initial=-1)) + 1] if len(curve) else None
    if row is None:
        return dict.fromkeys(OF_CONVERGENCE, math.nan)
    epochs = float(row["epoch"])
    if protocol and isinstance(protocol["samples"], int):
        epochs = row["iteration"] * protocol["batch_size"] / protocol["samples"]
    values = (row["seconds"] / 60, epochs, float(row["iteration"]), final)
    return dict(zip(OF_CONVERGENCE, values, strict=True))


def _of_summary(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    """Yield class, metric and value."""
    for metric in POOLED:
        if metric in summary["pooled"]:
            yield "", metric, summary["pooled"][metric]
    for name, pooled in summary["pooled"]["classes"].items():
        for metric, key in OF_CLASSES.items():
            yield name, metric, pooled.get(key)
    for name, metrics in summary.get("targets", {}).items():
        for metric, key in OF_TARGETS.items():
            yield name, metric, metrics[key]
    for name, metrics in summary.get("cases", {}).items():
        for metric in OF_CASES:
            yield name, metric, metrics[metric]["mean"]
    for metric, value in summary.get("lesions", {}).items():
        yield "", metric, value
    for metric, key in SECONDS.items():
        yield "", metric, summary["seconds"].get(key, {}).get("mean")
