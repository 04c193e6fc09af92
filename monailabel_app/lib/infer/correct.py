"""Correct the label that the annotator holds."""

from __future__ import annotations

import logging
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, affine_to_spacing
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from lib.bundle import Bundle, choose
from lib.infer.masks import convert_mask
from lib.infer.probabilities import gives_probabilities
from lib.infer.scribbles import LIKELIHOODS, correct_region, inner_of, regions_of
from lib.infer.segment import SUFFIXES, Segmentation
from lib.store.volumes import grid_of, read_boxes, read_label
from liverseg.errors import InputError
from liverseg.io.nifti import write_nifti
from liverseg.transforms import CleanSlicesd, ErodeKeepLargestDilated, SmoothEdgesd
from liverseg.transforms.load import check_same_grid

logger = logging.getLogger(__name__)

STROKES = ("foreground_scribbles", "background_scribbles")
METHODS = {
    "erode_keep_largest_dilate": ErodeKeepLargestDilated,
    "clean_slices": CleanSlicesd,
    "smooth_edges": SmoothEdgesd,
}


class Correction(InferTask):
    """What 3D Slicer lists under scribbles.

    It sends all segments as one labelmap and gets the selected one back.

    A request has `image`, the path of the scan; `label`, that of the labelmap; `label_info`, a list
    of `{"name": …, "id": …}` that says which value of the labelmap is which segment;
    `selected_label_name`; and options by their names in `config`. The answer is a uint8 mask on the
    scan's own grid, 1 for the selected segment.

    Args:
        name: the model's name.
        description: for clients.
        options: by name, what may be chosen, the default first.
    """

    def __init__(self, name: str, description: str, options: Mapping[str, list[str]]) -> None:
        super().__init__(InferType.SCRIBBLES, {}, 3, description, dict(options))
        self.name = name

    def is_valid(self) -> bool:
        """Needs no weights."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The path of the mask, which the caller removes, and as `label_names` the segment.

        Raises:
            InputError: for a request without labelmap or names, another grid, or an option that is
                no choice.
        """
        start = time.monotonic()
        for key in ("label", "label_info", "selected_label_name"):
            if not request.get(key):
                raise InputError(
                    f"model {self.name}: found no {key}, expected a labelmap (label), the names "
                    "of its values (label_info) and the segment to correct "
                    "(selected_label_name): send all three."
                )
        name = str(request["selected_label_name"])
        values = _values(request["label_info"])
        if name not in values:
            raise InputError(
                f"selected_label_name: found {name!r}, expected one of {', '.join(values)}: "
                "choose one of label_info."
            )
        chosen = {
            key: choose(self.name, key, request.get(key, known), known)
            for key, known in self.config().items()
        }
        suffix = choose(
            self.name, "result_extension", request.get("result_extension") or SUFFIXES[0], SUFFIXES
        )
        scan, file = str(request["image"]), str(request["label"])
        grid = grid_of(scan)
        try:
            labels = check_same_grid(grid, read_label(file))
        except InputError as error:
            # The server keeps what it gets under a name of its own.
            raise InputError(str(error).replace(file, "label")) from error
        labels = _in_order_of(grid, labels)
        mask = self.correct(scan, labels, values, name, chosen)
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "mask.nii.gz"
            write_nifti(saved, mask.view(np.uint8), grid.affine.numpy())
            result, present = convert_mask(saved, suffix, {name: 1})
        seconds = round(time.monotonic() - start, 2)
        logger.info("%s corrected %s of %s in %.2f s.", self.name, name, request["image"], seconds)
        return result, {"label_names": present, "latencies": {"total": seconds}}

    @abstractmethod
    def correct(
        self,
        scan: str,
        labels: MetaTensor,
        values: Mapping[str, int],
        name: str,
        chosen: Mapping[str, str],
    ) -> np.ndarray:
        """The selected segment as bool (H, W, D).

        Args:
            scan: its path.
            labels: the labelmap, uint8, (1, H, W, D).
            values: of the labelmap, by segment name.
            name: the selected segment.
            chosen: the options.
        """


class Scribbles(Correction):
    """Strokes on what belongs to a segment and what does not, and a graph cut around them.

    Args:
        segmentations: by name, those whose probabilities may be the prior, as far as their bundles
            give them.
    """

    def __init__(self, segmentations: Mapping[str, Segmentation]) -> None:
        self.segmentations = {
            name: task for name, task in segmentations.items() if gives_probabilities(task.bundle)
        }
        super().__init__(
            "scribbles",
            "Draw on what belongs to the segment and on what does not: the region around the "
            "strokes is cut anew, starting from the segment as it is (prior: label), from what a "
            "model says of the scan (its name) or from the strokes alone (none).",
            {
                "prior": ["label", *self.segmentations, "none"],
                "likelihood": list(LIKELIHOODS),
                "region_mm": ["30", "15", "60"],
                "smoothness": ["1", "0.3", "3"],
            },
        )

    def correct(
        self,
        scan: str,
        labels: MetaTensor,
        values: Mapping[str, int],
        name: str,
        chosen: Mapping[str, str],
    ) -> np.ndarray:
        """As `lib.infer.scribbles.cut` does in each region; outside, the segment stays."""
        voxels = labels[0].numpy()
        foreground, background = (voxels == values.get(key, -1) for key in STROKES)
        mask = voxels == values[name]
        spacing_mm = affine_to_spacing(labels.affine).tolist()
        region_mm = float(chosen["region_mm"])
        task = self.segmentations.get(chosen["prior"])
        names = _names(name, values, task.bundle) if task else []
        regions = regions_of(foreground | background, spacing_mm, region_mm)
        prior: Any = "label" if chosen["prior"] == "label" else None
        priors = (
            task.probabilities(scan).regions(names, regions) if task else [prior] * len(regions)
        )
        for region, prior, image in zip(regions, priors, read_boxes(scan, regions), strict=True):
            mask[region] = correct_region(
                image,
                mask[region],
                foreground[region],
                background[region],
                spacing_mm,
                prior,
                likelihood=chosen["likelihood"],
                reach_mm=region_mm / 2,
                smoothness=float(chosen["smoothness"]),
                inner=inner_of(region, mask.shape),
            )
        return mask


class CleanUp(Correction):
    """Algorithms 1 to 3 on the selected segment."""

    def __init__(self) -> None:
        super().__init__(
            "clean_up",
            "Cleans the selected segment: erode, keep the largest part and dilate (Algorithm 1); "
            "the same slice by slice, with holes filled and edges smoothed (Algorithm 2); smooth "
            "the edges (Algorithm 3).",
            {"method": list(METHODS), "radius": ["3", "1", "2", "5"]},
        )

    def correct(
        self,
        scan: str,
        labels: MetaTensor,
        values: Mapping[str, int],
        name: str,
        chosen: Mapping[str, str],
    ) -> np.ndarray:
        """As `liverseg.transforms` does; the radius is in voxels, and smoothing has none."""
        smooth = chosen["method"] == "smooth_edges"
        radius: dict[str, Any] = {} if smooth else {"radius": int(chosen["radius"])}
        mask = (labels == values[name]).to(torch.uint8)
        cleaned = METHODS[chosen["method"]](keys="mask", **radius)({"mask": mask})["mask"]
        return cleaned[0].numpy().astype(bool)


def _in_order_of(grid: MetaTensor, labels: MetaTensor) -> MetaTensor:
    """Labels with their voxels in the order of the scan: clients have their own for a series."""
    turn = ornt_transform(
        io_orientation(labels.affine.numpy()), io_orientation(grid.affine.numpy())
    )
    voxels = apply_orientation(labels[0].numpy(), turn).copy("K")
    return MetaTensor(torch.from_numpy(voxels)[None], affine=grid.affine)


def _names(segment: str, values: Mapping[str, int], bundle: Bundle) -> list[str]:
    """The labels of a bundle that a segment of the labelmap covers."""
    name = segment.lower()
    if name not in bundle.labels:
        raise InputError(
            f"prior: found {bundle.name!r}, which knows {', '.join(bundle.labels)}, for the "
            f"segment {segment!r}, expected one that knows it: choose another prior."
        )
    # Where the labelmap knows no lesions, they are liver.
    whole = name == "liver" and "lesion" in bundle.labels and "lesion" not in map(str.lower, values)
    return [name, "lesion"] if whole else [name]


def _values(label_info: Any) -> dict[str, int]:
    try:
        return {str(item["name"]): int(item["id"]) for item in label_info}
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f'label_info: found {label_info!r}, expected a list of {{"name": …, "id": …}}: send it '
            "as 3D Slicer does."
        ) from error
