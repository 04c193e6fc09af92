"""Overlap metrics pooled over a data set, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from liverseg.errors import InputError


def check_label_maps(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> None:
    """Check that two label maps (H, W, D) have one shape and values from 0 to `num_classes` - 1.

    Raises:
        InputError: when they do not.
    """
    if prediction.shape != reference.shape:
        raise InputError(
            f"the prediction has shape {prediction.shape} and the reference {reference.shape}, "
            "expected the same (H, W, D); bring the prediction back to the reference's grid "
            "before the metrics (Invertd)."
        )
    if prediction.ndim != 3:
        raise InputError(
            f"the label maps have {prediction.ndim} axes, shape {prediction.shape}, expected three "
            "(H, W, D); pass one volume at a time, without a channel axis."
        )
    for what, label_map in (("prediction", prediction), ("reference", reference)):
        if label_map.size and (label_map.min() < 0 or label_map.max() >= num_classes):
            raise InputError(
                f"the {what} holds label values from {label_map.min()} to {label_map.max()}, "
                f"expected 0 to {num_classes - 1}; correct the file, map its values, or name "
                "every class in class_names."
            )


def confusion_matrix(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the voxels of each pair of classes.

    Args:
        prediction: integer label map, (H, W, D), 0 is background.
        reference: integer label map of the same shape.
        num_classes: number of classes with the background.

    Returns:
        (num_classes, num_classes) int64; entry (i, j) counts voxels of class i (reference)
        predicted as j. Matrices of several cases add up.

    Raises:
        InputError: shapes differ, not three axes, or a value is outside the classes.
    """
    check_label_maps(prediction, reference, num_classes)
    counts = np.zeros(num_classes**2, dtype=np.int64)
    # One plane at a time: bincount turns its input into int64, eight times the
    # size of the label map.
    for predicted, true in zip(prediction, reference, strict=True):
        counts += np.bincount(
            (true.astype(np.int64) * num_classes + predicted).ravel(), minlength=num_classes**2
        )
    return counts.reshape(num_classes, num_classes)


def pooled_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the overlap metrics of a whole data set, as MATLAB's `evaluateSemanticSegmentation`.

    - ``global_accuracy``: correct voxels / all voxels.
    - ``classes[name]["accuracy"]``: TP / (TP + FN), the recall or sensitivity of the class;
      ``mean_accuracy`` is their mean.
    - ``classes[name]["precision"]``: TP / (TP + FP), and ``classes[name]["specificity"]``:
      TN / (TN + FP), not MATLAB's; equations 4 and 3 of Furtado n.d.
    - ``classes[name]["iou"]``: TP / (TP + FP + FN); ``mean_iou`` is their mean,
      background included.
    - ``classes[name]["dice"]``: 2 TP / (2 TP + FP + FN), not MATLAB's; what LiTS calls Dice global.
    - ``weighted_iou``: mean of the IoUs weighted by the number of reference voxels of the class.

    Each class is compared with all others together. Where a ratio is 0/0 (accuracy: the class is
    not in the reference; precision: not in the prediction; IoU and Dice: in neither; specificity:
    nothing else is in the reference) it is NaN and left out of the mean.

    Args:
        confusion: (C, C) sum of `confusion_matrix` over the data set.
        class_names: C names, index = class, the background first.
    """
    true_positive = np.diag(confusion).astype(np.float64)
    reference = confusion.sum(axis=1).astype(np.float64)
    predicted = confusion.sum(axis=0).astype(np.float64)
    voxels = reference.sum()
    false_positive = predicted - true_positive
    with np.errstate(invalid="ignore"):
        accuracy = true_positive / reference
        by_class = {
            "accuracy": accuracy,
            "precision": true_positive / predicted,
            "specificity": 1 - false_positive / (voxels - reference),
            "iou": true_positive / (reference + false_positive),
            "dice": 2 * true_positive / (reference + predicted),
        }
        iou = by_class["iou"]
        return {
            "global_accuracy": float(true_positive.sum() / voxels),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "mean_iou": float(np.nanmean(iou)),
            "weighted_iou": float(np.nansum(reference * iou) / voxels),
            "classes": {
                name: {metric: float(values[index]) for metric, values in by_class.items()}
                for index, name in enumerate(class_names)
            },
        }
