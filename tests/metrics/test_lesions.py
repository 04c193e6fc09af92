from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from liverseg.errors import InputError
from liverseg.metrics import case_metrics, lesion_burden, lesion_metrics, pooled_lesion_metrics


def mask(*boxes, shape=(30, 12, 8)):
    """A mask of boxes along the first axis, each given by where it starts and ends."""
    found = np.zeros(shape, bool)
    for start, end in boxes:
        found[start:end, 3:9, 2:6] = True
    return found


def counts(prediction, reference):
    found = lesion_metrics(prediction, reference)
    return found["reference_lesions"], found["predicted_lesions"], found["true_positive_lesions"]


def counted_one_by_one(prediction, reference):
    """The definition, with one mask for each lesion."""
    predicted, true = (
        [labels == n for n in range(1, num + 1)]
        for labels, num in map(label, (prediction, reference))
    )
    merged = {}
    for lesion in true:
        shared = [np.count_nonzero(lesion & other) for other in predicted]
        if any(shared):
            merged.setdefault(shared.index(max(shared)), []).append(lesion)
    groups = [np.any(merged[n], axis=0) for n in sorted(merged)]
    covering = [np.zeros_like(prediction) for _ in groups]
    for lesion in predicted:
        shared = [np.count_nonzero(lesion & group) for group in groups]
        if any(shared):
            covering[shared.index(max(shared))] |= lesion
    ious = [(p & g).sum() / (p | g).sum() for p, g in zip(covering, groups, strict=True)]
    return len(true), len(predicted), sum(iou > 0.5 for iou in ious)


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((26, 22, 12)), 1.2)
    noisy = field + (0.02 + 0.01 * seed) * rng.standard_normal(field.shape)
    reference, prediction = field > np.quantile(field, 0.85), noisy > np.quantile(noisy, 0.87)
    expected = counted_one_by_one(prediction, reference)
    assert counts(prediction, reference) == expected
    assert counts(prediction.astype(np.int16), reference.astype(np.uint8)) == expected
    assert expected[2] < expected[0] > 8  # some found, some not


def test_found_missed_and_invented_lesions():
    reference = mask((1, 5), (8, 12), (15, 19))
    prediction = mask((1, 5), (9, 12), (22, 24), (26, 28))
    found = lesion_metrics(prediction, reference)
    assert found == {
        "reference_lesions": 3,
        "predicted_lesions": 4,
        "true_positive_lesions": 2,
        "detection_precision": 2 / 4,
        "detection_recall": 2 / 3,
    }


def test_an_overlap_of_exactly_half_is_no_detection():
    assert counts(mask((4, 6)), mask((4, 8))) == (1, 1, 0)
    assert counts(mask((4, 7)), mask((4, 8))) == (1, 1, 1)


def test_overlap_is_intersection_over_union():
    # The whole lesion lies in the prediction, which is three times as long.
    assert counts(mask((2, 14)), mask((6, 10))) == (1, 1, 0)


def test_lesions_that_touch_at_a_face_are_one_and_at_an_edge_two():
    reference = np.zeros((10, 10, 4), bool)
    reference[1:4, 1:4, 1:3] = reference[4:7, 4:7, 1:3] = True
    assert counts(reference, reference) == (2, 2, 2)
    reference[4, 3, 1] = True
    assert counts(reference, reference) == (1, 1, 1)


def test_one_prediction_over_two_lesions_finds_one():
    assert counts(mask((4, 13)), mask((4, 8), (9, 13))) == (2, 1, 1)
    # Far apart, the bridge between them is most of the prediction.
    assert counts(mask((4, 22)), mask((4, 8), (18, 22))) == (2, 1, 0)


def test_a_lesion_predicted_in_two_pieces_is_found_once():
    assert counts(mask((4, 8), (9, 13)), mask((4, 13))) == (1, 2, 1)
    assert counts(mask((4, 5), (11, 13)), mask((4, 13))) == (1, 2, 0)


def test_a_prediction_belongs_to_the_lesion_that_it_shares_most_with():
    # The long prediction covers the second lesion and one voxel row of the first, which has a
    # prediction of its own.
    reference, prediction = mask((2, 8), (10, 16)), mask((2, 6), (7, 16))
    assert counts(prediction, reference) == (2, 2, 2)


def test_nothing_to_find_and_nothing_found():
    nothing, lesion = mask(), mask((4, 8))
    missed, invented, clean = (
        lesion_metrics(*pair) for pair in ((nothing, lesion), (lesion, nothing), (nothing, nothing))
    )
    assert math.isnan(missed["detection_precision"]) and missed["detection_recall"] == 0
    assert invented["detection_precision"] == 0 and math.isnan(invented["detection_recall"])
    assert math.isnan(clean["detection_precision"]) and math.isnan(clean["detection_recall"])
    assert [case["true_positive_lesions"] for case in (missed, invented, clean)] == [0, 0, 0]


def test_pooled_figures_are_those_of_all_lesions_together():
    cases = [
        lesion_metrics(mask((1, 5)), mask((1, 5), (8, 12), (15, 19), (22, 26))),
        lesion_metrics(mask((1, 5), (8, 12)), mask((1, 5))),
        lesion_metrics(mask(), mask()),
    ]
    assert pooled_lesion_metrics(cases) == {
        "reference_lesions": 5,
        "predicted_lesions": 3,
        "true_positive_lesions": 2,
        "detection_precision": 2 / 3,
        "detection_recall": 2 / 5,
    }


def burden(prediction, reference, spacing_mm=(0.7, 0.8, 5.0)):
    classes = case_metrics(prediction, reference, spacing_mm, ["background", "liver", "lesion"])
    return lesion_burden(classes["lesion"], classes["liver"])


def label_map(liver, lesion):
    """So many voxels of both classes."""
    voxels = np.zeros(1000, int)
    voxels[:liver], voxels[liver : liver + lesion] = 1, 2
    return voxels.reshape(10, 10, 10)


def test_burden_is_a_share_of_voxels_whatever_their_size():
    shares = burden(label_map(90, 30), label_map(150, 50))
    assert shares == pytest.approx({"burden": 30 / 120, "reference_burden": 50 / 200})
    assert burden(label_map(90, 30), label_map(150, 50), (3, 1, 1)) == pytest.approx(shares)
    assert burden(label_map(60, 0), label_map(0, 0)) == pytest.approx(
        {"burden": 0, "reference_burden": math.nan}, nan_ok=True
    )


def test_errors_of_the_burden():
    none = lesion_metrics(mask(), mask())
    pairs = [((75, 25), (90, 10)), ((60, 40), (50, 50)), ((0, 0), (50, 50))]
    cases = [
        none | burden(label_map(*prediction), label_map(*reference))
        for prediction, reference in pairs
    ]
    pooled = pooled_lesion_metrics(cases)
    assert pooled["burden_rmse"] == pytest.approx(math.sqrt((0.15**2 + 0.1**2) / 2))
    assert pooled["burden_max_error"] == pytest.approx(0.15)
    assert math.isnan(pooled_lesion_metrics(cases[2:])["burden_rmse"])


def test_a_map_of_several_classes_is_refused():
    with pytest.raises(InputError, match="from 0 to 2, expected 0 to 1"):
        lesion_metrics(label_map(3, 3), label_map(3, 0))
