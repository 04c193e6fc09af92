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


class CaseMeasures:
    """Compare a prediction with its reference in all that `SegmentationReport` reports.

    Args:
        class_names: of `SegmentationReport`, as the others.
        label_key: key of the reference.
        pred_key: key of the prediction.
        lesion_class: whose components are counted; None counts none.
        organ_class: what lies around the lesions; None leaves the burden out.

    Raises:
        InputError: if `lesion_class` or `organ_class` is no foreground class.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        label_key: str,
        pred_key: str,
        lesion_class: str | None,
        organ_class: str | None,
    ) -> None:
        self.class_names = list(class_names)
        self.label_key = label_key
        self.pred_key = pred_key
        for key, name in (("lesion_class", lesion_class), ("organ_class", organ_class)):
            if name is not None and name not in self.class_names[1:]:
                raise InputError(
                    f"{key}: found {name!r}, expected one of {', '.join(self.class_names[1:])}: "
                    "name one of these, or null for none."
                )
        self.lesion_class = lesion_class
        self.organ_class = organ_class

    def __call__(self, item: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Measure a decollated item.

        Returns:
            `confusion`, (C, C), of the voxels; `bf_scores`, by axial slice and class; `classes`,
            by the name of each foreground class its metrics.

        Raises:
            InputError: if a label map is not one channel of indices of `class_names`, the two
                differ in shape, or the label has no affine.
        """
        label = item[self.label_key]
        if not isinstance(label, MetaTensor):
            raise InputError(
                f'"{self.label_key}" is a {type(label).__name__} without an affine, expected a '
                "MetaTensor, which knows the spacing; load it with LoadVolumed."
            )
        spacing_mm = [float(length) for length in affine_to_spacing(label.affine)]
        prediction = _label_map(item[self.pred_key], self.pred_key)
        reference = _label_map(label, self.label_key)
        num_classes = len(self.class_names)
        case: dict[str, Any] = {
            "confusion": confusion_matrix(prediction, reference, num_classes),
            "bf_scores": bf_scores(prediction, reference, num_classes),
            "classes": case_metrics(prediction, reference, spacing_mm, self.class_names),
        }
        if self.lesion_class is not None:
            index = self.class_names.index(self.lesion_class)
            lesions = case["classes"][self.lesion_class]
            lesions |= lesion_metrics(prediction == index, reference == index)
            if self.organ_class is not None:
                organ = self.organ_class
                lesions |= lesion_burden(lesions, case["classes"][organ])
                both = [index, self.class_names.index(organ)]
                whole, reference = (
                    np.isin(label_map, both).view(np.uint8) for label_map in (prediction, reference)
                )
                case["classes"][organ] = case_metrics(
                    whole, reference, spacing_mm, ["background", organ]
                )[organ]
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
