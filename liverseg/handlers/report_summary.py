"""Summarise the cases of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import monai
import numpy as np
import pandas as pd
import torch

import liverseg
from liverseg.metrics import mean_bf_score, pooled_lesion_metrics, pooled_metrics


def summarise(
    cases: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    lesion_class: str | None,
    organ_class: str | None = None,
) -> dict[str, Any]:
    """Put the cases together, as the docstring of `SegmentationReport` says.

    Args:
        cases: what `CaseMeasures` gives of each, with its `seconds` by name.
        class_names: the background first.
        lesion_class: the class whose lesions were counted; None for none.
        organ_class: the class around the lesions; None for none.

    Returns:
        What `SegmentationReport` writes, NaN for what does not exist.
    """
    confusion = np.sum([case["confusion"] for case in cases], axis=0)
    pooled = pooled_metrics(confusion, class_names)
    pooled["mean_bf_score"] = mean_bf_score(np.concatenate([case["bf_scores"] for case in cases]))
    per_class: dict[str, dict[str, Any]] = {}
    for name in class_names[1:]:
        table = pd.DataFrame([case["classes"][name] for case in cases])
        per_class[name] = {
            **_statistics(table),
            "empty_predictions": int((table["volume_ml"] == 0).sum()),
            "empty_references": int((table["reference_volume_ml"] == 0).sum()),
        }
    targets = {
        name: _target(confusion, class_names, [name, *[lesion_class] * (name == organ_class)])
        for name in class_names[1:]
    }
    summary = {
        "number_of_cases": len(cases), "pooled": pooled, "targets": targets, "cases": per_class,
    }  # fmt: skip
    if lesion_class is not None:
        lesions = [case["classes"][lesion_class] for case in cases]
        summary["lesions"] = pooled_lesion_metrics(lesions)
    summary["seconds"] = _statistics(pd.DataFrame([case["seconds"] for case in cases]))
    summary["versions"] = {
        "torch": str(torch.__version__),
        "monai": monai.__version__,
        "liverseg": liverseg.__version__,
    }
    return summary


def _target(
    confusion: np.ndarray, class_names: Sequence[str], parts: Sequence[str | None]
) -> dict[str, float]:
    """Return accuracy, IoU and mean IoU of `parts` against the rest.

    As of one binary task (IJIES 2022, section 4.3): the mean is over the parts, together, and all
    other voxels.
    """
    inside = np.isin(class_names, [part for part in parts if part is not None])
    binary = np.array(
        [[confusion[np.ix_(row, column)].sum() for column in (~inside, inside)]
         for row in (~inside, inside)]
    )  # fmt: skip
    metrics = pooled_metrics(binary, ["rest", "target"])
    iou = metrics["classes"]["target"]["iou"]
    return {"accuracy": metrics["global_accuracy"], "iou": iou, "mean_iou": metrics["mean_iou"]}


def _statistics(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {
        str(name): {
            "mean": float(values.mean()),
            "sd": float(values.std()),
            "median": float(values.median()),
            "count": int(values.count()),
        }
        for name, values in table.items()
    }
