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
    cases: Sequence[dict[str, Any]], class_names: Sequence[str], lesion_class: str | None
) -> dict[str, Any]:
    """Put the cases together, as the docstring of `SegmentationReport` says.

    Args:
        cases: what `CaseMeasures` gives of each, with its `seconds` by name.
        class_names: the background first.
        lesion_class: the class whose lesions were counted; None for none.

    Returns:
        What `SegmentationReport` writes, NaN for what does not exist.
    """
    pooled = pooled_metrics(np.sum([case["confusion"] for case in cases], axis=0), class_names)
    pooled["mean_bf_score"] = mean_bf_score(np.concatenate([case["bf_scores"] for case in cases]))
    per_class: dict[str, dict[str, Any]] = {}
    for name in class_names[1:]:
        table = pd.DataFrame([case["classes"][name] for case in cases])
        per_class[name] = {
            **_statistics(table),
            "empty_predictions": int((table["volume_ml"] == 0).sum()),
            "empty_references": int((table["reference_volume_ml"] == 0).sum()),
        }
    summary = {"number_of_cases": len(cases), "pooled": pooled, "cases": per_class}
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
