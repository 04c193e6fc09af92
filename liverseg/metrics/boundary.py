"""Boundary F1 score of MATLAB's `bfscore` and `evaluateSemanticSegmentation`."""

from __future__ import annotations

import math

import cv2
import numpy as np

from liverseg.metrics.confusion import check_label_maps


def bf_scores(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the boundary F1 score of every class in every axial slice.

    Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013:
    precision is the share of the predicted boundary that lies within a tolerance of the reference
    boundary, recall the share of the reference boundary within the tolerance of the predicted one,
    the score 2PR / (P + R). As MATLAB documents it, the tolerance is 0.75 % of the diagonal of the
    image, in pixels; it is not rounded.

    MATLAB documents neither the boundary nor the empty cases; this is the reading here:

    - a boundary pixel belongs to the class and has a 4-neighbour that does not; outside the image
      nothing belongs to it (as `bwperim` has it), so the frame of the image bounds a class that
      touches it, the background included;
    - a distance equal to the tolerance is within it;
    - a class in neither slice scores NaN, in one only 0, and no match at all 0.

    Args:
        prediction: integer label map, (H, W, D); the slices are those of the last axis.
        reference: integer label map of the same shape.
        num_classes: number of classes with the background.

    Returns:
        (D, num_classes) float64.

    Raises:
        InputError: shapes differ, not three axes, or a value is outside the classes.
    """
    check_label_maps(prediction, reference, num_classes)
    tolerance_px = 0.0075 * math.hypot(*prediction.shape[:2])
    scores = np.full((prediction.shape[-1], num_classes), np.nan)
    # Slices one after the other in memory: reading them across the last axis takes several times as
    # long.
    slices = (
        np.ascontiguousarray(np.moveaxis(label_map, -1, 0)) for label_map in (prediction, reference)
    )
    for k, (predicted_slice, reference_slice) in enumerate(zip(*slices, strict=True)):
        same = np.array_equal(predicted_slice, reference_slice)
        for c in range(num_classes):
            predicted, true = predicted_slice == c, reference_slice == c
            if not predicted.any() and not true.any():
                continue
            if same:
                scores[k, c] = 1.0
            elif not predicted.any() or not true.any():
                scores[k, c] = 0.0
            else:
                scores[k, c] = _bf_score(_boundary(predicted), _boundary(true), tolerance_px)
    return scores


def mean_bf_score(scores: np.ndarray) -> float:
    """Return MATLAB's MeanBFScore: the mean over images of each image's mean over its classes.

    Args:
        scores: (images, classes), the rows of `bf_scores` of all cases; every image holds at least
            one class.
    """
    return float(np.nanmean(scores, axis=1).mean())


def _bf_score(predicted: np.ndarray, reference: np.ndarray, tolerance_px: float) -> float:
    precision = _matched_share(predicted, reference, tolerance_px)
    recall = _matched_share(reference, predicted, tolerance_px)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    pixels = mask.view(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside = cv2.erode(pixels, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)  # type: ignore[call-overload]
    return mask & (inside == 0)


def _matched_share(boundary: np.ndarray, other: np.ndarray, tolerance_px: float) -> float:
    total = np.count_nonzero(boundary)
    alone = boundary & ~other
    rows, columns = np.nonzero(alone)
    if not len(rows):
        return 1.0
    # Common pixels match, so distances are needed around the others only: what is farther than the
    # tolerance from them cannot match them.
    margin = math.ceil(tolerance_px)
    window = (
        slice(max(rows.min() - margin, 0), rows.max() + margin + 1),
        slice(max(columns.min() - margin, 0), columns.max() + margin + 1),
    )
    distance_px = cv2.distanceTransform(
        (~other[window]).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return 1 - np.count_nonzero(distance_px[alone[window]] > tolerance_px) / total
