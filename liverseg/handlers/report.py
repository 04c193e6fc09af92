"""Write the metrics of an evaluation: a CSV row per case and class, and a JSON summary of the data set."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import IterationEvents
from monai.utils import convert_to_tensor

import liverseg
from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.io.masks import MaskFolder, open_summary, recorded_scans
from liverseg.metrics import (
    bf_scores,
    case_metrics,
    confusion_matrix,
    lesion_burden,
    lesion_metrics,
    mean_bf_score,
    pooled_lesion_metrics,
    pooled_metrics,
)
from liverseg.metrics.lesions import COUNTS
from liverseg.transforms.load import flags_of

logger = logging.getLogger(__name__)


class SegmentationReport:
    """Handler of MONAI's `SupervisedEvaluator` that writes ``cases.csv`` and ``summary.json`` at the end of each run.

    ``cases.csv`` has a row per case and foreground class with the values of `liverseg.metrics.case_metrics`; a value
    that does not exist (the distance to an empty mask) is an empty cell. ``summary.json``, where it is null, holds

    - ``number_of_cases``; ``versions`` of torch, monai and liverseg;
    - ``failures``, of a `ScanEvaluator`: ``image`` and ``error`` of each scan that failed, which is in none of the
      figures; ``warnings``, by case: sentences on what is odd about the scan or its label;
    - ``pooled``: `pooled_metrics` over all voxels and ``mean_bf_score`` over all axial slices, background included;
    - ``cases``: for each class and metric of ``cases.csv`` the mean, sd (of a sample, n − 1) and median over the
      ``count`` cases that have a value; for each class, ``empty_predictions`` and ``empty_references`` count the cases
      without a voxel of it;
    - ``seconds``: the same four figures over the cases of ``inference_per_slice`` (the inferer: resampling, network,
      label map; divided by the number of axial slices) and ``postprocessing_per_case`` (the evaluator's
      `postprocessing`). A batch of several scans counts in equal parts;
    - ``lesions``, with `lesion_class`: `pooled_lesion_metrics` over the lesions of all cases;
    - ``scans``, the record of the masks that lie in `output_dir`, see `MaskFolder`, which stays as it was.

    With `lesion_class` the rows of that class in ``cases.csv`` also have the values of `lesion_metrics`, and with
    `organ_class` those of `lesion_burden`; for the other classes these cells are empty. The rows of `organ_class` are
    then those of the organ with its lesions, as LiTS measures the liver; ``pooled`` keeps the classes apart.

    A case is known by its image file. One that comes twice, as a padded distributed sampler gives it, counts once. With
    several ranks the first one writes. Both files are replaced whole: no reader meets half of one.

    Args:
        output_dir: folder for the two files, made if it is not there.
        class_names: index = class, the background first, for example ``["background", "liver"]``.
        image_key: key of the image, a MetaTensor whose ``meta["filename_or_obj"]`` names the case.
        label_key: key of the reference, (1, H, W, D) class indices of any dtype; a MetaTensor, its affine gives the
            spacing.
        pred_key: key of the prediction, (1, H, W, D) class indices of any dtype, on the grid of the label.
        masks_dir: folder for the predictions as NIfTI, each on the grid of its label, where `find_mask` finds them;
            None writes none.
        lesion_class: the one of `class_names` whose components are counted as lesions, as LiTS does; None counts none.
        organ_class: the one of `class_names` that lies around the lesions; None leaves the burden out.

    Raises:
        InputError: if `lesion_class` or `organ_class` is no foreground class; when the run starts, if `output_dir`
            cannot be written to or its ``summary.json`` not be read; during the run, if a label map is not one channel
            of indices of `class_names`, the two differ in shape, the image names no file or the label has no affine; at
            its end, if no reference holds a voxel of any class.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        image_key: str = "image",
        label_key: str = "label",
        pred_key: str = "pred",
        masks_dir: str | os.PathLike[str] | None = None,
        lesion_class: str | None = None,
        organ_class: str | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.image_key = image_key
        self.label_key = label_key
        self.pred_key = pred_key
        self.masks = None if masks_dir is None else MaskFolder(masks_dir, "pred")
        for key, name in (("lesion_class", lesion_class), ("organ_class", organ_class)):
            if name is not None and name not in self.class_names[1:]:
                raise InputError(
                    f"{key}: found {name!r}, expected one of {', '.join(self.class_names[1:])}: name one of these, or "
                    "null for none."
                )
        self.lesion_class = lesion_class
        self.organ_class = organ_class
        self._cases: dict[str, dict[str, Any]] = {}
        self._times_s: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Hook into the evaluator, whose `decollate` must be on (MONAI's default)."""
        engine.add_event_handler(Events.STARTED, self._start)
        # A scan that failed before may have left some.
        engine.add_event_handler(Events.ITERATION_STARTED, self._times_s.clear)
        # MONAI runs the postprocessing on MODEL_COMPLETED, and registered it before any handler.
        for event in (
            Events.ITERATION_STARTED,
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        ):
            engine.add_event_handler(event, self._note_time)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._cases = {}
        check_writable(self.output_dir)
        # One that cannot be read is refused now, and not when all is computed.
        recorded_scans(self.output_dir)
        if self.masks:
            self.masks.check()

    def _note_time(self, engine: Engine) -> None:
        if torch.cuda.is_available():
            # The GPU works behind the program's back.
            torch.cuda.synchronize()
        self._times_s.append(time.perf_counter())

    def _measure(self, engine: Engine) -> None:
        items: list[Any] = engine.state.output  # type: ignore[assignment]
        started, inferred, processed = self._times_s
        for item in items:
            file = getattr(item[self.image_key], "meta", {}).get("filename_or_obj")
            if not file:
                raise InputError(
                    f'the image under "{self.image_key}" names no file in meta["filename_or_obj"], expected the file '
                    "that the case is known by; load it with LoadVolumed."
                )
            try:
                case = self._measure_case(item)
            except InputError as error:
                raise InputError(f"{file}: {error}") from error
            case["seconds"] = {
                "inference_per_slice": (inferred - started)
                / len(items)
                / item[self.label_key].shape[-1],
                "postprocessing_per_case": (processed - inferred) / len(items),
            }
            case["warnings"] = _warnings(item[self.image_key], item[self.label_key])
            if self.masks:
                mask = item[self.pred_key][0].to(torch.uint8).cpu().numpy()
                self.masks.save(
                    file, mask, item[self.label_key].affine.cpu().numpy(), case["warnings"]
                )
            self._cases[str(file)] = case

    def _measure_case(self, item: dict[str, torch.Tensor]) -> dict[str, Any]:
        label = item[self.label_key]
        if not isinstance(label, MetaTensor):
            raise InputError(
                f'"{self.label_key}" is a {type(label).__name__} without an affine, expected a MetaTensor, which '
                "knows the spacing; load it with LoadVolumed."
            )
        spacing_mm = [float(length) for length in affine_to_spacing(label.affine)]
        prediction = self._label_map(item[self.pred_key], self.pred_key)
        reference = self._label_map(label, self.label_key)
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

    @staticmethod
    def _label_map(tensor: torch.Tensor, key: str) -> np.ndarray:
        plain = convert_to_tensor(tensor, track_meta=False)
        if plain.ndim != 4 or plain.shape[0] != 1:
            raise InputError(
                f'"{key}" has shape {tuple(plain.shape)}, expected one channel of class indices (1, H, W, D); '
                "turn several channels into one with AsDiscreted(argmax=True)."
            )
        indices = plain.to(torch.int16)
        if not torch.equal(indices.to(plain.dtype), plain):
            raise InputError(
                f'"{key}" holds values that are not class indices, expected whole numbers from 0; '
                "turn probabilities into classes with AsDiscreted."
            )
        return indices[0].cpu().numpy()

    def _write(self, engine: Engine) -> None:
        parts = [self._cases]
        if dist.is_available() and dist.is_initialized():
            parts = [{}] * dist.get_world_size()
            dist.all_gather_object(parts, self._cases)
            if dist.get_rank() != 0:
                return
        # In order of name, so that the files are the same whatever the number of ranks.
        merged = {name: case for part in parts for name, case in part.items()}
        cases = {name: merged[name] for name in sorted(merged)}
        failures: list[dict[str, str]] = getattr(engine, "failures", [])
        if not cases and failures:
            return  # The evaluator says why.
        if not cases:
            raise InputError(
                "the evaluation read no case, expected at least one; check its data list."
            )
        names = self.class_names[1:]
        if not any(
            case["classes"][name]["reference_volume_ml"]
            for case in cases.values()
            for name in names
        ):
            raise InputError(
                f"the labels of all {len(cases)} cases hold no voxel of {', '.join(names)}, expected some to compare "
                "with: check which of their values `classes` takes for what."
            )
        rows = [
            {"case": name, "class": class_name, **metrics}
            for name, case in cases.items()
            for class_name, metrics in case["classes"].items()
        ]
        summary = self._summary(list(cases.values()))
        summary["failures"] = failures
        summary["warnings"] = {
            name: case["warnings"] for name, case in cases.items() if case["warnings"]
        }

        frame = pd.DataFrame(rows)
        # A column that is empty for some classes would turn whole numbers into 3.0.
        table = frame.astype({name: "Int64" for name in COUNTS if name in frame}).to_csv(
            index=False
        )
        with atomic_write(self.output_dir / "cases.csv") as file:
            file.write(table.encode())
        with open_summary(self.output_dir) as content:
            scans = content["scans"]
            content.clear()
            content.update(_null_for_nan(summary), scans=scans)
        dice = ", ".join(
            f"{name} Dice {values['dice']['mean']:.4f}" for name, values in summary["cases"].items()
        )
        logger.info(
            f"{len(cases)} cases: {dice}, mean IoU {summary['pooled']['mean_iou']:.4f}, "
            f"mean BFScore {summary['pooled']['mean_bf_score']:.4f}; {self.output_dir / 'summary.json'}"
        )

    def _summary(self, cases: list[dict[str, Any]]) -> dict[str, Any]:
        pooled = pooled_metrics(
            np.sum([case["confusion"] for case in cases], axis=0), self.class_names
        )
        pooled["mean_bf_score"] = mean_bf_score(
            np.concatenate([case["bf_scores"] for case in cases])
        )
        per_class: dict[str, dict[str, Any]] = {}
        for name in self.class_names[1:]:
            table = pd.DataFrame([case["classes"][name] for case in cases])
            per_class[name] = {
                **{str(metric): _statistics(values) for metric, values in table.items()},
                "empty_predictions": int((table["volume_ml"] == 0).sum()),
                "empty_references": int((table["reference_volume_ml"] == 0).sum()),
            }
        lesions = {}
        if self.lesion_class is not None:
            lesions = {
                "lesions": pooled_lesion_metrics(
                    [case["classes"][self.lesion_class] for case in cases]
                )
            }
        return {
            "number_of_cases": len(cases),
            "pooled": pooled,
            "cases": per_class,
            **lesions,
            "seconds": {
                str(name): _statistics(values)
                for name, values in pd.DataFrame([case["seconds"] for case in cases]).items()
            },
            "versions": {
                "torch": str(torch.__version__),
                "monai": monai.__version__,
                "liverseg": liverseg.__version__,
            },
        }


def _warnings(image: Any, label: Any) -> list[str]:
    return [
        *image.meta.get("warnings", "").splitlines(),
        *flags_of(image).values(),
        *(f"label: {warning}" for warning in label.meta.get("warnings", "").splitlines()),
    ]


def _statistics(values: pd.Series) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "median": float(values.median()),
        "count": int(values.count()),
    }


def _null_for_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _null_for_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
