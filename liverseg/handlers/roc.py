"""Write the ROC of each class of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from liverseg.errors import InputError
from liverseg.files import check_writable, write_text
from liverseg.inferers import KeepingInferer
from liverseg.io.masks import open_summary
from liverseg.metrics import count_probabilities, roc_curve
from liverseg.metrics.roc import LEVELS


class RocCurves:
    """Write ``roc.csv``, and the area under each curve into ``summary.json``.

    A handler of MONAI's `SupervisedEvaluator`; put it after `SegmentationReport`, which makes
    ``summary.json``. The curves are those of the network, without postprocessing: of each class
    against all other voxels, pooled over all cases. ``roc.csv`` has ``class``, ``threshold``,
    ``false_positive_rate`` and ``true_positive_rate`` of the voxels whose probability is at least
    the threshold, for 256 probabilities in descending order; ``summary.json`` gets
    ``pooled#classes#NAME#auc``, null for a class that no voxel, or every voxel, is of.

    The inferer gives the probabilities of all classes beside the label map, which needs a byte for
    each class and voxel of a scan.

    Args:
        output_dir: folder for the file, the one of `SegmentationReport`.
        class_names: index = class, the background first.

    Raises:
        InputError: during the run, for probabilities of other classes; when it starts, for a folder
            that cannot be written.
    """

    def __init__(self, output_dir: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.probabilities: Tensor | None = None
        self.cases: dict[str, np.ndarray] = {}

    def attach(self, engine: Engine) -> None:
        """Hook into the evaluator, whose `inferer` must be a `VolumeInferer`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def start(self, engine: Engine) -> None:
        """Come between the evaluator and its inferer, and look whether the file can be written."""
        inferer = engine.inferer  # type: ignore[attr-defined]
        if getattr(inferer, "keep", None) != self.keep:
            engine.inferer = KeepingInferer(inferer, self.keep)  # type: ignore[attr-defined]
        self.cases = {}
        check_writable(self.output_dir)

    def keep(self, probabilities: Tensor) -> None:
        """Take the probabilities of a batch, until it has been counted."""
        self.probabilities = probabilities

    def iteration_completed(self, engine: Engine) -> None:
        """Count the voxels of the batch."""
        items: list[Any] = engine.state.output  # type: ignore[assignment]
        assert self.probabilities is not None
        for item, probabilities in zip(items, self.probabilities, strict=True):
            found = probabilities.cpu().numpy()
            count = len(self.class_names) - 1
            # Those of a cascade that finds the liver alone have a lesion of probability 0.
            if len(found) < count or found[count:].any():
                raise InputError(
                    f"roc: found probabilities of {len(found)} classes, expected those of "
                    f"{', '.join(self.class_names[1:])}: set classes to what the networks find."
                )
            found = found[:count]
            # Rounded, the classes may add up to a little more than one.
            background = 255 - np.minimum(found.sum(0, dtype=np.int64), 255)
            label = item["label"][0].to(torch.int64).cpu().numpy()
            self.cases[str(item["image"].meta["filename_or_obj"])] = np.stack(
                [
                    count_probabilities(probability, label == index)
                    for index, probability in enumerate([background.astype(np.uint8), *found])
                ]
            )

    def completed(self) -> None:
        """Write the curves, of the cases of all ranks."""
        parts: list[Any] = idist.all_gather(self.cases)  # type: ignore[assignment]
        # By image, as a padded sampler gives a scan twice.
        cases = {image: counts for part in parts for image, counts in part.items()}
        if idist.get_rank() > 0 or not cases:
            return
        tables, areas = [], {}
        thresholds = np.append(np.inf, np.arange(LEVELS - 1, -1, -1) / (LEVELS - 1))
        for name, counts in zip(self.class_names, np.sum([*cases.values()], axis=0), strict=True):
            false_positive_rate, true_positive_rate, areas[name] = roc_curve(counts)
            tables.append(
                pd.DataFrame(
                    {
                        "class": name,
                        "threshold": thresholds,
                        "false_positive_rate": false_positive_rate,
                        "true_positive_rate": true_positive_rate,
                    }
                )
            )
        write_text(self.output_dir / "roc.csv", pd.concat(tables).to_csv(index=False))
        with open_summary(self.output_dir) as summary:
            for name, area in areas.items():
                summary["pooled"]["classes"][name]["auc"] = None if np.isnan(area) else area
