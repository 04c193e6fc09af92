"""Measure one case of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils import convert_to_tensor

from liverseg.errors import InputError
from liverseg.metrics import (
    bf_scores,
    case_metrics,
    confusion_matrix,
    lesion_burden,
    lesion_metrics,
)


def measure_case(
    item: dict[str, torch.Tensor],
    label_key: str,
    pred_key: str,
    class_names: Sequence[str],
    lesion_class: str | None,
    organ_class: str | None,
) -> dict[str, Any]:
    """Compare prediction and reference of a decollated item in all that is reported.

    All other arguments are those of `SegmentationReport`.

    Returns:
        `confusion`, (C, C), of the voxels; `bf_scores`, by axial slice and class; `classes`, by the
        name of each foreground class its metrics.

    Raises:
        InputError: if a label map is not one channel of indices of `class_names`, the two differ in
            shape, or the label has no affine.
    """
    label = item[label_key]
    if not isinstance(label, MetaTensor):
        raise InputError(
            f'"{label_key}" is a {type(label).__name__} without an affine, expected a MetaTensor, '
            "which knows the spacing; load it with LoadVolumed."
        )
    spacing_mm = [float(length) for length in affine_to_spacing(label.affine)]
    prediction, reference = _label_map(item[pred_key], pred_key), _label_map(label, label_key)
    case: dict[str, Any] = {
        "confusion": confusion_matrix(prediction, reference, len(class_names)),
        "bf_scores": bf_scores(prediction, reference, len(class_names)),
        "classes": case_metrics(prediction, reference, spacing_mm, class_names),
    }
    if lesion_class is not None:
        index = class_names.index(lesion_class)
        lesions = case["classes"][lesion_class]
        lesions |= lesion_metrics(prediction == index, reference == index)
        if organ_class is not None:
            lesions |= lesion_burden(lesions, case["classes"][organ_class])
            both = [index, class_names.index(organ_class)]
            whole, reference = (
                np.isin(label_map, both).view(np.uint8) for label_map in (prediction, reference)
            )
            case["classes"][organ_class] = case_metrics(
                whole, reference, spacing_mm, ["background", organ_class]
            )[organ_class]
    return case


def _label_map(tensor: torch.Tensor, key: str) -> np.ndarray:
    plain = convert_to_tensor(tensor, track_meta=False)
    if plain.ndim != 4 or plain.shape[0] != 1:
        raise InputError(
            f'"{key}" has shape {tuple(plain.shape)}, expected one channel of class indices '
            "(1, H, W, D); turn several channels into one with AsDiscreted(argmax=True)."
        )
    indices = plain.to(torch.int16)
    if not torch.equal(indices.to(plain.dtype), plain):
        raise InputError(
            f'"{key}" holds values that are not class indices, expected whole numbers from 0; '
            "turn probabilities into classes with AsDiscreted."
        )
    return indices[0].cpu().numpy()
