"""Write the metrics of an evaluation: a CSV row per case and class, and a JSON summary."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.handlers.report_case import CaseMeasures
from liverseg.handlers.report_summary import summarise
from liverseg.handlers.timing import ScanTimer
from liverseg.io.masks import MaskFolder, open_summary, recorded_scans
from liverseg.metrics.lesions import COUNTS
from liverseg.transforms.load import flags_of

logger = logging.getLogger(__name__)


class SegmentationReport:
    """Write ``cases.csv`` and ``summary.json``; a handler of MONAI's `SupervisedEvaluator`.

    ``cases.csv`` has a row per case and foreground class with the values of
    `liverseg.metrics.case_metrics`; a value that does not exist (the distance to an empty mask) is
    an empty cell. ``summary.json``, where it is null, holds

    - ``number_of_cases``; ``versions`` of torch, monai and liverseg;
    - ``failures``, of a `ScanEvaluator`: ``image`` and ``error`` of each scan that failed,
      which is in none of the figures; ``warnings``, by case: messages on what is odd about
      the scan or its label;
    - ``pooled``: `pooled_metrics` over all voxels and ``mean_bf_score`` over all axial slices,
      background included;
    - ``cases``: for each class and metric of ``cases.csv`` the mean, sd (of a sample, n − 1) and
      median over the ``count`` cases that have a value; for each class, ``empty_predictions`` and
      ``empty_references`` count the cases without a voxel of it;
    - ``seconds``: the same four figures over the cases of ``inference_per_slice`` (the inferer:
      resampling, network, label map; divided by the number of axial slices),
      ``postprocessing_per_case`` (the evaluator's `postprocessing`) and ``segmentation_per_case``
      (both, over the whole case). A batch of several scans counts in equal parts;
    - ``lesions``, with `lesion_class`: `pooled_lesion_metrics` over the lesions of all cases;
    - ``scans``, the record of the masks that lie in `output_dir`, see `MaskFolder`, which stays as
      it was.

    With `lesion_class` the rows of that class in ``cases.csv`` also have the values of
    `lesion_metrics`, and with `organ_class` those of `lesion_burden`; for the other classes these
    cells are empty. The rows of `organ_class` are then those of the organ with its lesions, as LiTS
    measures the liver; ``pooled`` keeps the classes apart.

    A case is known by its image file. One that comes twice, as a padded distributed sampler gives
    it, counts once. With several ranks the first one writes. Both files are replaced whole: no
    reader meets half of one.

    Args:
        output_dir: folder for the two files, made if it is not there.
        class_names: index = class, the background first, for example ``["background", "liver"]``.
        image_key: key of the image, a MetaTensor whose ``meta["filename_or_obj"]`` names the case.
        label_key: key of the reference, (1, H, W, D) class indices of any dtype; a MetaTensor, its
            affine gives the spacing.
        pred_key: key of the prediction, (1, H, W, D) class indices of any dtype, on the grid of the
            label.
        masks_dir: folder for the predictions as NIfTI, each on the grid of its label, where
            `find_mask` finds them; None writes none.
        lesion_class: the one of `class_names` whose components are counted as lesions, as LiTS
            does; None counts none.
        organ_class: the one of `class_names` that lies around the lesions; None leaves the burden
            out.

    Raises:
        InputError: if `lesion_class` or `organ_class` is no foreground class; when the run starts,
            if `output_dir` cannot be written to or its ``summary.json`` not be read; during the
            run, if a label map is not one channel of indices of `class_names`, the two differ in
            shape, the image names no file or the label has no affine; at its end, if no reference
            holds a voxel of any class.
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
        self.image_key = image_key
        self.label_key = label_key
        self.pred_key = pred_key
        self.masks = None if masks_dir is None else MaskFolder(masks_dir, "pred")
        self.measure = CaseMeasures(class_names, label_key, pred_key, lesion_class, organ_class)
        self.timer = ScanTimer()
        self.cases: dict[str, dict[str, Any]] = {}

    def attach(self, engine: Engine) -> None:
        """Hook into the evaluator, whose `decollate` must be on (MONAI's default)."""
        engine.add_event_handler(Events.STARTED, self.start)
        self.timer.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def start(self) -> None:
        """Look whether all can be written."""
        self.cases = {}
        check_writable(self.output_dir)
        # One that cannot be read is refused now, and not when all is computed.
        recorded_scans(self.output_dir)
        if self.masks:
            self.masks.check()

    def iteration_completed(self, engine: Engine) -> None:
        """Measure the scans of the batch."""
        items: list[Any] = engine.state.output  # type: ignore[assignment]
        for item in items:
            image, label = item[self.image_key], item[self.label_key]
            file = getattr(image, "meta", {}).get("filename_or_obj")
            if not file:
                raise InputError(
                    f'the image under "{self.image_key}" names no file in meta["filename_or_obj"], '
                    "expected the file that the case is known by; load it with LoadVolumed."
                )
            try:
                case = self.measure(item)
            except InputError as error:
                raise InputError(f"{file}: {error}") from error
            case["seconds"] = self.timer.seconds(len(items), label.shape[-1])
            case["warnings"] = _warnings(image, label)
            if self.masks:
                mask = item[self.pred_key][0].to(torch.uint8).cpu().numpy()
                self.masks.save(file, mask, label.affine.cpu().numpy(), case["warnings"])
            self.cases[str(file)] = case

    def completed(self, engine: Engine) -> None:
        """Write both files, of the cases of all ranks."""
        parts = [self.cases]
        if dist.is_available() and dist.is_initialized():
            parts = [{}] * dist.get_world_size()
            dist.all_gather_object(parts, self.cases)
            if dist.get_rank() != 0:
                return
        # In order of name, so that the files are the same whatever the number of ranks.
        merged = {name: case for part in parts for name, case in part.items()}
        cases = {name: merged[name] for name in sorted(merged)}
        failures: list[dict[str, str]] = getattr(engine, "failures", [])
        if not cases and failures:
            return  # The evaluator says why.
        self._check(cases)
        measure = self.measure
        summary = summarise([*cases.values()], measure.class_names, measure.lesion_class)
        summary["failures"] = failures
        warnings = {name: case["warnings"] for name, case in cases.items()}
        summary["warnings"] = {name: found for name, found in warnings.items() if found}
        table = _table(cases).to_csv(index=False)
        with atomic_write(self.output_dir / "cases.csv") as file:
            file.write(table.encode())
        with open_summary(self.output_dir) as content:
            scans = content["scans"]
            content.clear()
            content.update(_null_for_nan(summary), scans=scans)
        _log(summary, self.output_dir / "summary.json")

    def _check(self, cases: dict[str, dict[str, Any]]) -> None:
        if not cases:
            raise InputError(
                "the evaluation read no case, expected at least one; check its data list."
            )
        classes = [metrics for case in cases.values() for metrics in case["classes"].values()]
        if not any(metrics["reference_volume_ml"] for metrics in classes):
            raise InputError(
                f"the labels of all {len(cases)} cases hold no voxel of "
                f"{', '.join(self.measure.class_names[1:])}, expected some to compare with: check "
                "which of their values `classes` takes for what."
            )


def _table(cases: dict[str, dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"case": name, "class": class_name, **metrics}
        for name, case in cases.items()
        for class_name, metrics in case["classes"].items()
    )
    # A column that is empty for some classes would turn whole numbers into 3.0.
    return frame.astype({name: "Int64" for name in COUNTS if name in frame})


def _log(summary: dict[str, Any], path: Path) -> None:
    dice = ", ".join(
        f"{name} Dice {values['dice']['mean']:.4f}" for name, values in summary["cases"].items()
    )
    pooled = summary["pooled"]
    logger.info(
        f"{summary['number_of_cases']} cases: {dice}, mean IoU {pooled['mean_iou']:.4f}, "
        f"mean BFScore {pooled['mean_bf_score']:.4f}; {path}"
    )


def _warnings(image: Any, label: Any) -> list[str]:
    return [
        *image.meta.get("warnings", "").splitlines(),
        *flags_of(image).values(),
        *(f"label: {warning}" for warning in label.meta.get("warnings", "").splitlines()),
    ]


def _null_for_nan(value: Any) -> Any:
    """Replace NaN by None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _null_for_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
