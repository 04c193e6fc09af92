"""Detection of single lesions, as the LiTS challenge counts it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cc3d
import numpy as np

from liverseg.metrics.confusion import check_label_maps
from liverseg.transforms.morphology import NO_BOX, bounding_box, count_values

COUNTS = ("reference_lesions", "predicted_lesions", "true_positive_lesions")


def lesion_metrics(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Count the lesions of one volume that were found.

    Bilic et al., "The Liver Tumor Segmentation Benchmark (LiTS)", Medical Image Analysis 84 (2023),
    as the challenge's evaluation does it (github.com/PatrickChrist/lits-challenge-scoring,
    `detect_lesions`):

    - a lesion is a component of voxels connected by their faces (6 neighbours);
    - each reference lesion goes to the predicted lesion that shares most voxels with it; those of
      one predicted lesion become one;
    - each predicted lesion goes to the reference lesion, merged or not, that it shares most voxels
      with; those of one reference lesion become one;
    - such a pair is one true positive if its intersection over union is above 0.5.

    So a prediction that fits two lesions counts as one found and one missed, and two pieces that
    fit one lesion as one found and one piece too many. Among equals the component numbered first is
    taken.

    Two faults of that program are not repeated, so its own figures can differ, most where there are
    many lesions: it takes the union with the voxels of another lesion (its author fixed this later,
    in github.com/veugene/lits-challenge-scoring), and subtracts a pair that is not above 0.5 once
    for each of its reference lesions.

    Args:
        prediction: binary mask of the lesions, (H, W, D).
        reference: binary mask of the same shape.

    Returns:
        ``reference_lesions``, ``predicted_lesions``, ``true_positive_lesions``;
        ``detection_precision``, true positives of the predicted lesions, NaN if there are none;
        ``detection_recall``, true positives of the reference lesions, NaN if there are none.

    Raises:
        InputError: shapes differ, not three axes, or a value is neither 0 nor 1.
    """
    check_label_maps(prediction, reference, 2)
    box = bounding_box((prediction > 0) | (reference > 0)) or NO_BOX
    (predicted, num_predicted), (true, num_true) = (
        cc3d.connected_components(
            np.ascontiguousarray(mask[box]), connectivity=6, return_N=True, binary_image=True
        )
        if mask[box].any()
        else (np.zeros(mask[box].shape, np.uint16), 0)
        for mask in (prediction, reference)
    )
    predicted_voxels = count_values(predicted, num_predicted + 1)
    true_voxels = count_values(true, num_true + 1)

    common = (predicted > 0) & (true > 0)
    of_predicted, of_true, shared = _count_pairs(
        predicted[common], true[common], np.ones(np.count_nonzero(common))
    )
    # A merged reference lesion bears the number of the predicted lesion that its parts went to.
    best = _first_largest(of_true, shared)
    merged = np.zeros(num_true + 1, dtype=np.int64)
    merged[of_true[best]] = of_predicted[best]
    merged_voxels = np.bincount(merged, weights=true_voxels, minlength=num_predicted + 1)

    of_predicted, of_merged, shared = _count_pairs(of_predicted, merged[of_true], shared)
    best = _first_largest(of_predicted, shared)
    of_predicted, of_merged = of_predicted[best], of_merged[best]
    intersection = np.bincount(of_merged, weights=shared[best], minlength=num_predicted + 1)
    covering = np.bincount(
        of_merged, weights=predicted_voxels[of_predicted], minlength=num_predicted + 1
    )
    # I / U > 1/2, in whole numbers.
    true_positive = int(np.count_nonzero(3 * intersection > covering + merged_voxels))
    counts = dict(zip(COUNTS, (num_true, num_predicted, true_positive), strict=True))
    return counts | _precision_and_recall(*counts.values())


def lesion_burden(lesions: dict[str, float], organ: dict[str, float]) -> dict[str, float]:
    """Return the share of an organ that is lesion: LiTS's tumour burden.

    Args:
        lesions: `case_metrics` of the lesions.
        organ: `case_metrics` of the rest of the organ.

    Returns:
        ``burden`` of the prediction and ``reference_burden``, lesion / (lesion + organ); NaN
        without either.
    """
    burden = {}
    for mask in ("", "reference_"):
        lesion_ml, rest_ml = lesions[f"{mask}volume_ml"], organ[f"{mask}volume_ml"]
        burden[f"{mask}burden"] = (
            lesion_ml / (lesion_ml + rest_ml) if lesion_ml + rest_ml else math.nan
        )
    return burden


def pooled_lesion_metrics(cases: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the figures of `lesion_metrics` over all lesions of a data set, as LiTS ranks them.

    Args:
        cases: `lesion_metrics` of each case, and its `lesion_burden` if wanted: then
            ``burden_rmse`` and ``burden_max_error`` (without its sign) are over the cases where
            neither burden is NaN, NaN if there are none.
    """
    counts = {name: sum(case[name] for case in cases) for name in COUNTS}
    pooled = counts | _precision_and_recall(*counts.values())
    if "burden" in cases[0]:
        errors = np.array([case["burden"] - case["reference_burden"] for case in cases])
        errors = np.abs(errors[~np.isnan(errors)])
        pooled["burden_rmse"] = float(np.sqrt((errors**2).mean())) if len(errors) else math.nan
        pooled["burden_max_error"] = float(errors.max()) if len(errors) else math.nan
    return pooled


def _precision_and_recall(
    reference: float, predicted: float, true_positive: float
) -> dict[str, float]:
    return {
        "detection_precision": true_positive / predicted if predicted else math.nan,
        "detection_recall": true_positive / reference if reference else math.nan,
    }


def _count_pairs(
    first: np.ndarray, second: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the different pairs of component numbers, in order, and the sum of weights of each."""
    base = int(second.max(initial=0)) + 1
    pairs, index = np.unique(first.astype(np.int64) * base + second, return_inverse=True)
    return pairs // base, pairs % base, np.bincount(index, weights=weights, minlength=len(pairs))


def _first_largest(owners: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return the position of the largest `shared` of each of `owners`, the first among equals."""
    order = np.lexsort((-shared, owners))
    _, first = np.unique(owners[order], return_index=True)
    return order[first]
