from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from liverseg.errors import InputError
from liverseg.metrics import case_metrics

NAMES = ["background", "liver", "spleen"]
SPACING_MM = (0.7, 1.3, 5.0)


def surface_points_mm(mask, spacing_mm):
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inside) * np.array(spacing_mm)


def random_pair(seed=0, shape=(24, 20, 9)):
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((3, *shape)), (0, 3, 3, 1.5))
    noise = gaussian_filter(rng.standard_normal((3, *shape)), (0, 2, 2, 1))
    return (field + 0.4 * noise).argmax(axis=0), field.argmax(axis=0)


def test_every_value_equals_the_one_from_its_definition():
    prediction, reference = random_pair()
    metrics = case_metrics(prediction, reference, SPACING_MM, NAMES)
    assert list(metrics) == ["liver", "spleen"]
    for index, name in ((1, "liver"), (2, "spleen")):
        p, r = prediction == index, reference == index
        distances = cdist(surface_points_mm(p, SPACING_MM), surface_points_mm(r, SPACING_MM))
        there, back = distances.min(axis=1), distances.min(axis=0)
        voxel_ml = 0.7 * 1.3 * 5.0 / 1000
        assert metrics[name] == pytest.approx(
            {
                "dice": 2 * (p & r).sum() / (p.sum() + r.sum()),
                "iou": (p & r).sum() / (p | r).sum(),
                "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
                "assd_mm": np.concatenate((there, back)).mean(),
                "volume_ml": p.sum() * voxel_ml,
                "reference_volume_ml": r.sum() * voxel_ml,
                "volume_error_ml": (p.sum() - r.sum()) * voxel_ml,
                "volume_error_percent": 100 * (p.sum() - r.sum()) / r.sum(),
            },
            rel=1e-6,
        )
        assert metrics[name]["hd95_mm"] > 1


def test_distances_are_those_of_monai():
    prediction, reference = random_pair(seed=3)
    metrics = case_metrics(prediction, reference, SPACING_MM, NAMES)
    one_hot = [
        torch.stack([torch.from_numpy(x == c) for c in range(3)])[None]
        for x in (prediction, reference)
    ]
    hd95_mm = compute_hausdorff_distance(*one_hot, percentile=95, spacing=SPACING_MM)[0]
    assd_mm = compute_average_surface_distance(*one_hot, symmetric=True, spacing=SPACING_MM)[0]
    assert [metrics[name]["hd95_mm"] for name in NAMES[1:]] == pytest.approx(
        hd95_mm.tolist(), rel=1e-5
    )
    assert [metrics[name]["assd_mm"] for name in NAMES[1:]] == pytest.approx(
        assd_mm.tolist(), rel=1e-5
    )


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 0.7), (1, 1.3), (2, 5.0)])
def test_each_axis_has_its_own_spacing(axis, expected_mm):
    reference = np.zeros((10, 10, 10), int)
    reference[4, 5, 6] = 1
    prediction = np.roll(reference, 1, axis)
    liver = case_metrics(prediction, reference, SPACING_MM, NAMES)["liver"]
    assert liver["hd95_mm"] == pytest.approx(expected_mm)
    assert liver["assd_mm"] == pytest.approx(expected_mm)


def test_same_masks_are_perfect_even_at_the_border_and_in_a_single_slice():
    for shape in ((6, 5, 4), (6, 5, 1)):
        full = np.ones(shape, int)
        liver = case_metrics(full, full, SPACING_MM, NAMES)["liver"]
        assert (liver["dice"], liver["iou"], liver["hd95_mm"], liver["assd_mm"]) == (1, 1, 0, 0)


def test_empty_masks():
    nothing = np.zeros((8, 8, 4), int)
    reference = nothing.copy()
    reference[2:5, 2:5, 1:3] = 1
    missed = case_metrics(nothing, reference, SPACING_MM, NAMES)
    assert (missed["liver"]["dice"], missed["liver"]["iou"]) == (0, 0)
    assert missed["liver"]["volume_ml"] == 0
    assert missed["liver"]["volume_error_percent"] == -100
    invented = case_metrics(reference, nothing, SPACING_MM, NAMES)["liver"]
    assert (invented["dice"], invented["iou"]) == (0, 0)
    assert invented["volume_error_ml"] == pytest.approx(18 * 0.7 * 1.3 * 5 / 1000)
    assert math.isnan(invented["volume_error_percent"])
    for metrics in (missed["liver"], invented, missed["spleen"]):
        assert math.isnan(metrics["hd95_mm"]) and math.isnan(metrics["assd_mm"])
    for neither in (missed["spleen"], case_metrics(nothing, nothing, SPACING_MM, NAMES)["liver"]):
        assert math.isnan(neither["dice"]) and math.isnan(neither["iou"])
        assert neither["volume_error_ml"] == 0


def test_value_outside_the_classes_is_refused():
    with pytest.raises(InputError, match="from 3 to 3, expected 0 to 2"):
        case_metrics(np.full((4, 4, 4), 3), np.zeros((4, 4, 4), int), SPACING_MM, NAMES)
