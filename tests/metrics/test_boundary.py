from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift
from scipy.spatial.distance import cdist

from liverseg.metrics import bf_scores, mean_bf_score


def boundary_points(mask):
    """Pixels of the mask with a 4-neighbour outside it, by looking at each."""
    points = []
    for y, x in np.argwhere(mask):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]) or not mask[v, u]:
                points.append((y, x))
                break
    return np.array(points, dtype=np.float64)


def bf_score_of_all_pairs(prediction, reference):
    if not prediction.any() and not reference.any():
        return math.nan
    if not prediction.any() or not reference.any():
        return 0.0
    distances = cdist(boundary_points(prediction), boundary_points(reference))
    tolerance = 0.0075 * math.sqrt(prediction.shape[0] ** 2 + prediction.shape[1] ** 2)
    precision = (distances.min(axis=1) <= tolerance).mean()
    recall = (distances.min(axis=0) <= tolerance).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(seed, shape, num_classes):
    """Smooth random regions that touch each other and the frame."""
    field = gaussian_filter(
        np.random.default_rng(seed).standard_normal((num_classes, *shape)), (0, 12, 12, 1)
    )
    return field.argmax(axis=0)


def test_equals_the_distances_of_all_pairs_of_boundary_pixels():
    shape = (150, 220, 4)  # tolerance 1.997 pixels
    reference = blobs(1, shape, 3)
    prediction = shift(reference, (2, 1, 0), order=0, mode="nearest")
    prediction[40:60, 100:130, 1] = 2
    prediction[..., 3] = reference[..., 3]
    prediction[reference == 2] = np.where(np.arange(4) == 2, 0, prediction)[
        reference == 2
    ]  # slice 2: class 2 lost
    prediction[..., 2][prediction[..., 2] == 2] = 0
    expected = [
        [bf_score_of_all_pairs(prediction[..., k] == c, reference[..., k] == c) for c in range(3)]
        for k in range(4)
    ]
    scores = bf_scores(prediction, reference, 3)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert 0.05 < scores[0].min() < scores[0].max() < 0.95  # the case is not a trivial one
    assert scores[2, 2] == 0
    assert (scores[3] == 1).all()


def test_a_distance_equal_to_the_tolerance_is_within_it():
    reference = np.zeros((240, 320, 2), int)  # diagonal 400, tolerance 3 pixels
    reference[100:130, 100:140] = 1
    prediction = np.zeros_like(reference)
    prediction[103:133, 100:140, 0] = 1
    prediction[104:134, 100:140, 1] = 1
    scores = bf_scores(prediction, reference, 2)
    assert scores[0, 1] == 1
    assert (
        0 < scores[1, 1] < 0.6
    )  # the rows above and below the tolerance are lost, the sides match


def test_masks_far_from_each_other_score_zero():
    reference = np.zeros((100, 100, 1), int)
    reference[5:15, 5:15] = 1
    prediction = np.zeros_like(reference)
    prediction[70:80, 70:80] = 1
    assert bf_scores(prediction, reference, 2)[0, 1] == 0


def test_class_in_neither_is_nan_and_in_one_only_is_zero():
    reference = np.zeros((64, 64, 3), int)
    prediction = np.zeros_like(reference)
    reference[20:30, 20:30, 1] = 1
    prediction[20:30, 20:30, 2] = 1
    scores = bf_scores(prediction, reference, 2)
    np.testing.assert_array_equal(scores[:, 1], [math.nan, 0, 0])
    assert scores[0, 0] == 1


def test_data_set_is_the_mean_over_images_of_the_mean_over_their_classes():
    scores = np.array([[1.0, math.nan, math.nan], [0.8, 0.4, 0.0], [1.0, 0.5, math.nan]])
    assert mean_bf_score(scores) == pytest.approx((1.0 + 0.4 + 0.75) / 3)
