"""Overlap, surface distances and volumes of one case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance

from liverseg.metrics.confusion import check_label_maps
from liverseg.transforms.morphology import NO_BOX, bounding_box


def case_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    class_names: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Return the metrics of every foreground class of one volume.

    - ``dice`` 2|P∩R| / (|P|+|R|) and ``iou`` |P∩R| / |P∪R|; NaN if the class is in neither, 0 if in
      one only.
    - ``hd95_mm``: the larger of the 95th percentiles of the distances prediction → reference and
      back (as in MONAI's `compute_hausdorff_distance`); ``assd_mm``: mean of the distances of both
      directions together (as in MONAI's `compute_average_surface_distance`). Distances run between
      centres of surface voxels: voxels of the mask with one of their six neighbours outside it;
      beyond the volume is outside. NaN if the class is missing from one or both: no number stands
      for that, and infinity would drown every mean. Summaries must count those cases beside the
      mean.
    - ``volume_ml``, ``reference_volume_ml``, ``volume_error_ml`` (predicted − reference) and
      ``volume_error_percent`` (of the reference; NaN without reference).

    Args:
        prediction: integer label map, (H, W, D), 0 is background.
        reference: integer label map of the same shape.
        spacing_mm: voxel size along the three axes.
        class_names: index = class, the background first.

    Returns:
        Class name → metric name → value, the background left out.

    Raises:
        InputError: shapes differ, not three axes, or a value is outside the classes.
    """
    check_label_maps(prediction, reference, len(class_names))
    box = bounding_box((prediction > 0) | (reference > 0)) or NO_BOX
    prediction, reference = prediction[box], reference[box]
    voxel_ml = math.prod(spacing_mm) / 1000
    metrics = {}
    for index, name in enumerate(class_names[1:], start=1):
        predicted, true = prediction == index, reference == index
        common, predicted_voxels, true_voxels = (
            np.count_nonzero(mask) for mask in (predicted & true, predicted, true)
        )
        both, error_voxels = predicted_voxels + true_voxels, predicted_voxels - true_voxels
        hd95_mm, assd_mm = math.nan, math.nan
        if predicted_voxels and true_voxels:
            hd95_mm, assd_mm = _surface_distances(predicted, true, spacing_mm)
        metrics[name] = {
            "dice": 2 * common / both if both else math.nan,
            "iou": common / (both - common) if both else math.nan,
            "hd95_mm": hd95_mm,
            "assd_mm": assd_mm,
            "volume_ml": predicted_voxels * voxel_ml,
            "reference_volume_ml": true_voxels * voxel_ml,
            "volume_error_ml": error_voxels * voxel_ml,
            "volume_error_percent": 100 * error_voxels / true_voxels if true_voxels else math.nan,
        }
    return metrics


def _surface_distances(
    predicted: np.ndarray, true: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """Return HD95 and ASSD in mm of two masks that are not empty."""
    # What MONAI's two metrics share, called once: each of them would find the surfaces and all the
    # distances again.
    _, distances, _ = get_edge_surface_distance(
        torch.from_numpy(predicted),
        torch.from_numpy(true),
        spacing=tuple(spacing_mm),
        symmetric=True,
    )
    hd95_mm = max(float(np.percentile(distance_mm.numpy(), 95)) for distance_mm in distances)
    return hd95_mm, float(torch.cat(distances).double().mean())
