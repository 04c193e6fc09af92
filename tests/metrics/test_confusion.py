from __future__ import annotations

import numpy as np
import pytest

from liverseg.errors import InputError
from liverseg.metrics import confusion_matrix, pooled_metrics


def counted_by_hand(prediction, reference, num_classes):
    table = [[0] * num_classes for _ in range(num_classes)]
    for index in np.ndindex(prediction.shape):
        table[reference[index]][prediction[index]] += 1
    return table


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_confusion_matrix_counts_every_pair_of_classes(dtype):
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 4, (7, 6, 5)).astype(dtype)
    reference = rng.integers(0, 3, (7, 6, 5)).astype(dtype)  # class 3 is predicted, never true
    assert confusion_matrix(prediction, reference, 4).tolist() == counted_by_hand(
        prediction, reference, 4
    )


def test_many_classes_do_not_overflow_a_small_dtype():
    prediction = np.full((2, 2, 2), 117, dtype=np.uint8)
    reference = np.full((2, 2, 2), 116, dtype=np.uint8)
    confusion = confusion_matrix(prediction, reference, 118)
    assert confusion[116, 117] == 8
    assert confusion.sum() == 8


def test_pooled_metrics_of_a_matrix_worked_out_by_hand():
    # rows: truth; 100 background, 40 liver, 10 spleen voxels
    confusion = np.array([[90, 8, 2], [4, 36, 0], [5, 0, 5]])
    pooled = pooled_metrics(confusion, ["background", "liver", "spleen"])
    accuracies = {"background": 90 / 100, "liver": 36 / 40, "spleen": 5 / 10}
    ious = {"background": 90 / (100 + 9), "liver": 36 / (40 + 8), "spleen": 5 / (10 + 2)}
    dices = {"background": 180 / (100 + 99), "liver": 72 / (40 + 44), "spleen": 10 / (10 + 7)}
    precisions = {"background": 90 / 99, "liver": 36 / 44, "spleen": 5 / 7}
    # TN / (TN + FP): 41 of the 50 voxels that are not background, 102 of 110, 138 of 140.
    specificities = {"background": 41 / 50, "liver": 102 / 110, "spleen": 138 / 140}
    assert pooled["global_accuracy"] == pytest.approx(131 / 150)
    assert pooled["mean_accuracy"] == pytest.approx((0.9 + 0.9 + 0.5) / 3)
    assert pooled["mean_iou"] == pytest.approx(sum(ious.values()) / 3)
    weighted = (100 * ious["background"] + 40 * ious["liver"] + 10 * ious["spleen"]) / 150
    assert pooled["weighted_iou"] == pytest.approx(weighted)
    for name, values in pooled["classes"].items():
        assert values == pytest.approx(
            {
                "accuracy": accuracies[name],
                "precision": precisions[name],
                "specificity": specificities[name],
                "iou": ious[name],
                "dice": dices[name],
            }
        )


def test_precision_recall_and_specificity_are_those_of_the_voxels():
    """Equations 2 to 4 of Furtado n.d., counted voxel by voxel in float64."""
    rng = np.random.default_rng(1)
    prediction, reference = rng.integers(0, 3, (2, 6, 5, 4))
    names = ["background", "liver", "spleen"]
    pooled = pooled_metrics(confusion_matrix(prediction, reference, 3), names)
    for index, name in enumerate(names):
        found, true = (prediction == index).ravel(), (reference == index).ravel()
        tp, fp, fn, tn = (
            np.float64(sum(pair == wanted for pair in zip(found, true, strict=True)))
            for wanted in ((True, True), (True, False), (False, True), (False, False))
        )
        values = pooled["classes"][name]
        assert values["accuracy"] == pytest.approx(tp / (tp + fn), rel=1e-12)
        assert values["specificity"] == pytest.approx(tn / (tn + fp), rel=1e-12)
        assert values["precision"] == pytest.approx(tp / (tp + fp), rel=1e-12)


def test_pooling_is_not_the_mean_over_cases():
    small = np.array([[10, 0], [2, 2]])
    large = np.array([[1000, 0], [0, 400]])
    pooled = pooled_metrics(small + large, ["background", "liver"])
    assert pooled["classes"]["liver"]["iou"] == pytest.approx(402 / 404)
    assert pooled["classes"]["liver"]["dice"] == pytest.approx(804 / 806)


def test_class_without_a_voxel_is_left_out_of_the_means():
    confusion = np.array([[90, 0, 0, 10], [0, 50, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    pooled = pooled_metrics(confusion, ["background", "liver", "nowhere", "only predicted"])
    assert np.isnan(pooled["classes"]["nowhere"]["iou"])
    assert np.isnan(pooled["classes"]["nowhere"]["dice"])
    assert np.isnan(pooled["classes"]["nowhere"]["precision"])
    assert np.isnan(pooled["classes"]["only predicted"]["accuracy"])
    assert pooled["classes"]["only predicted"]["precision"] == 0
    assert pooled["classes"]["only predicted"]["specificity"] == pytest.approx(140 / 150)
    everywhere = pooled_metrics(np.array([[9, 1], [0, 0]]), ["background", "liver"])
    assert np.isnan(everywhere["classes"]["background"]["specificity"])
    assert pooled["mean_accuracy"] == pytest.approx((0.9 + 1) / 2)
    assert pooled["mean_iou"] == pytest.approx((0.9 + 1 + 0) / 3)
    assert pooled["weighted_iou"] == pytest.approx((100 * 0.9 + 50) / 150)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected_words"),
    [
        (np.zeros((4, 4, 3), int), np.zeros((4, 4, 2), int), r"\(4, 4, 3\).*\(4, 4, 2\)"),
        (np.zeros((4, 4), int), np.zeros((4, 4), int), r"\(4, 4\)"),
        (
            np.full((4, 4, 3), 2),
            np.zeros((4, 4, 3), int),
            "prediction holds label values from 2 to 2, expected 0 to 1",
        ),
        (
            np.zeros((4, 4, 3), int),
            np.full((4, 4, 3), -1),
            "reference holds label values from -1 to -1",
        ),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(prediction, reference, expected_words):
    with pytest.raises(InputError, match=expected_words):
        confusion_matrix(prediction, reference, 2)
