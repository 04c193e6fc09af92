"""The receiver operating characteristic (ROC) of a class's probabilities, pooled over voxels."""

from __future__ import annotations

import numpy as np
from scipy.integrate import trapezoid

LEVELS = 256


def count_probabilities(probability: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Count the voxels outside and inside a class by their probability.

    Args:
        probability: of the class, 255 for 1: uint8, any shape.
        reference: whether a voxel is in the class: bool, the same shape.

    Returns:
        (2, 256) int64: the voxels outside and inside. Counts of several cases add up.
    """
    return np.stack(
        [np.bincount(probability[part], minlength=LEVELS) for part in (~reference, reference)]
    )


def roc_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the ROC of what `count_probabilities` has counted, and the area under it.

    Figure 3 of Furtado 2021. Voxels of one of the 256 levels count half, so the area is the
    probability that a voxel inside has a higher level than one outside, plus half that of the same.

    Args:
        counts: (2, 256).

    Returns:
        False positive rates and true positive rates, 257 each, of the voxels at level k or above
        for k = 256, …, 0; and the area. NaN where no voxel is outside, or none inside.
    """
    found = np.zeros((2, LEVELS + 1))
    found[:, 1:] = counts[:, ::-1].cumsum(1)
    with np.errstate(invalid="ignore"):
        false_positive_rate, true_positive_rate = found / found[:, -1:]
    area = trapezoid(true_positive_rate, false_positive_rate)
    return false_positive_rate, true_positive_rate, float(area)
