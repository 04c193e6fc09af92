"""The ROC against counts by hand and Mann and Whitney's U."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from liverseg.metrics import count_probabilities, roc_curve


@pytest.fixture
def voxels():
    """Probabilities of a few levels, so that many tie, and a class that they tell of."""
    generator = np.random.default_rng(0)
    reference = generator.random((9, 8, 7)) < 0.2
    levels = np.clip(generator.normal(100 + 60 * reference, 50), 0, 255) // 20 * 20
    return levels.astype(np.uint8), reference


def test_each_point_counts_the_voxels_at_a_level_or_above(voxels):
    probability, reference = voxels
    false_positive_rate, true_positive_rate, _ = roc_curve(count_probabilities(*voxels))
    levels = range(256, -1, -1)
    inside = [np.mean(probability[reference] >= level) for level in levels]
    outside = [np.mean(probability[~reference] >= level) for level in levels]
    assert true_positive_rate == pytest.approx(inside)
    assert false_positive_rate == pytest.approx(outside)


def test_the_area_is_that_of_mann_and_whitney(voxels):
    probability, reference = voxels
    inside, outside = (probability[part].astype(float) for part in (reference, ~reference))
    u = mannwhitneyu(inside, outside).statistic
    area = roc_curve(count_probabilities(*voxels))[2]
    assert 0.6 < area < 0.95
    assert area == pytest.approx(u / (inside.size * outside.size), rel=1e-12)


def test_counts_of_cases_add_up(voxels):
    probability, reference = voxels
    parts = [count_probabilities(probability[part], reference[part]) for part in (
        slice(0, 4), slice(4, None))]  # fmt: skip
    assert np.array_equal(sum(parts), count_probabilities(*voxels))


@pytest.mark.parametrize("everything", [True, False])
def test_a_class_of_every_voxel_or_none_has_no_area(voxels, everything):
    probability, reference = voxels
    counts = count_probabilities(probability, np.full_like(reference, everything))
    assert np.isnan(roc_curve(counts)[2])
