"""Scores of scans: computed in the background, kept with the scan in the datastore."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import Orientation
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.bundle import Bundle
from lib.infer.segment import Segmentation
from lib.score.entropy import mean_entropy
from lib.store.dicom_server import DicomServerError
from lib.store.volumes import grid_of, read_label
from lib.train.scans import items
from liverseg.engines import is_of_machine
from liverseg.errors import InputError, message
from liverseg.metrics import confusion_matrix, pooled_metrics
from liverseg.transforms.load import check_same_grid

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL


class Scores(ScoringMethod):
    """A score for each scan, kept until what gave it changes: the weights in use, or the label.

    It is kept in the scan's info under `name`, as `{"value": …, "basis": …, "ts": …}` or, for a
    scan that cannot be scored, `{"error": message, …}`. What fails for another reason, such as
    want of memory or disk, is tried again.

    Args:
        name: of the method.
        description: for clients.
        bundles: by name.
        preferred: the bundle to score with; "" for the first with weights.
    """

    needs = "a bundle with weights"

    def __init__(
        self, name: str, description: str, bundles: Mapping[str, Bundle], preferred: str = ""
    ) -> None:
        super().__init__(description)
        self.name, self.bundles, self.preferred = name, bundles, preferred

    @abstractmethod
    def score(self, image: str, datastore: Datastore) -> dict[str, Any]:
        """Return at least the `value` of one scan."""

    def models(self) -> list[Bundle]:
        """The bundles with weights that score; none means that nothing can be scored yet."""
        names = [self.preferred] if self.preferred else self.bundles
        return [self.bundles[name] for name in names if self.bundles[name].weights()][:1]

    def images(self, datastore: Datastore) -> list[str]:
        """Return the scans to score."""
        return list(datastore.get_unlabeled_images())

    def basis(self, image: str, datastore: Datastore) -> str:
        """Return what a score depends on beside the weights."""
        return ""

    def current(self, datastore: Datastore) -> dict[str, dict[str, Any]]:
        """Return the scores that are up to date, by scan."""
        weights = self._weights()
        kept = {
            image: datastore.get_image_info(image).get(self.name, {})
            for image in self.images(datastore)
        }
        return {
            image: score
            for image, score in kept.items()
            if score.get("basis") == [*weights, self.basis(image, datastore)]
        }

    def pending(self, datastore: Datastore) -> list[str]:
        """Return the scans whose score is missing or out of date."""
        if not self.models():
            return []
        current = self.current(datastore)
        return [image for image in self.images(datastore) if image not in current]

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score what is pending; a scan that fails does not end the rest.

        Returns:
            how many were `scored`, and the messages of those that `failed`, by scan.
        """
        failed = {}
        images = self.pending(datastore)
        server = os.getppid()
        for number, image in enumerate(images, 1):
            if os.getppid() != server:
                raise RuntimeError("The server that asked for scores is gone.")
            # The weights may change meanwhile.
            basis = [*self._weights(), self.basis(image, datastore)]
            try:
                if not datastore.get_image_uri(image):
                    raise InputError(
                        f"image {image}: found no scan, expected one: it was removed meanwhile."
                    )
                result = self.score(image, datastore)
            # A damaged scan may raise anything.
            except Exception as error:
                expected = message(error)
                reason = expected or f"{type(error).__name__}: {error}".splitlines()[0]
                odd = expected is None
                logger.warning("%s of %s: %s", self.name, image, reason, exc_info=odd)
                failed[image] = reason
                # It says nothing of the scan.
                if odd or isinstance(error, DicomServerError) or is_of_machine(error):
                    continue
                result = {"error": reason}
            try:
                datastore.update_image_info(
                    image, {self.name: {**result, "basis": basis, "ts": time.time()}}
                )
            # Removed meanwhile, or no volume on a DICOM server.
            except (ImageNotFoundException, InputError) as error:
                logger.warning("%s of %s is not kept: %s", self.name, image, error)
                failed.setdefault(image, str(error))
            logger.info("%s of %s: %d / %d", self.name, image, number, len(images))
        return {"scored": len(images) - len(failed), "failed": failed}

    def _weights(self) -> list[str]:
        return [f"{bundle.name} {bundle.fingerprint()}" for bundle in self.models()]


class Uncertainty(Scores):
    """How unsure the model is of each scan without a final label; see `EntropyMeter`."""

    def score(self, image: str, datastore: Datastore) -> dict[str, Any]:
        """Mean entropy in the body, 0 to 1."""
        (bundle,) = self.models()
        return {"value": mean_entropy(bundle, datastore.get_image_uri(image))}


class Disagreement(Scores):
    """How much the planes of the model, or else all models, disagree on each unlabelled scan."""

    needs = "several bundles with weights, or one that can be asked for single planes"

    def models(self) -> list[Bundle]:
        """The one whose planes can be asked one by one, else all with weights if several are."""
        first = super().models()
        if first and len(_planes(first[0])) > 1:
            return first
        ready = [bundle for bundle in self.bundles.values() if bundle.weights()]
        return ready if len(ready) > 1 else []

    def score(self, image: str, datastore: Datastore) -> dict[str, Any]:
        """1 − Dice, 0 to 1, of each pair in the mean."""
        bundles = self.models()
        asked: list[tuple[Bundle, dict[str, str]]] = [(bundle, {}) for bundle in bundles]
        if len(bundles) == 1:
            asked = [(bundles[0], {"planes": plane}) for plane in _planes(bundles[0])]
        scan = datastore.get_image_uri(image)
        return {
            "value": disagreement(
                [(_mask(bundle, scan, **params), bundle.labels) for bundle, params in asked]
            )
        }


class DiceScores(Scores):
    """How well the model segments each scan with a final label, by class."""

    def images(self, datastore: Datastore) -> list[str]:
        """Those with a final label."""
        return list(datastore.get_labeled_images())

    def basis(self, image: str, datastore: Datastore) -> str:
        """When the label was saved; "" for one that is not there, of which `score` says why."""
        try:
            return str(os.stat(datastore.get_label_uri(image, FINAL)).st_mtime_ns)
        except (FileNotFoundError, InputError):
            return ""

    def score(self, image: str, datastore: Datastore) -> dict[str, Any]:
        """`dice` of each class, None where neither names it, and their mean as `value`.

        Raises:
            InputError: for a label on another grid than the scan, or with values that the model
                does not know.
        """
        (bundle,) = self.models()
        scan = datastore.get_image_uri(image)
        mask = _mask(bundle, scan)
        known = [name for other in self.bundles.values() for name in other.labels]
        with tempfile.TemporaryDirectory() as folder:
            # Their values as training has them.
            (item,) = items(datastore, [image], bundle.labels, Path(folder), known)
            grid, label = grid_of(scan), read_label(item["label"])
        # An error is about the label of the store, not about its copy.
        label.meta["filename_or_obj"] = datastore.get_label_uri(image, FINAL)
        label = check_same_grid(grid, label)
        codes = "".join(nib.aff2axcodes(grid.affine.numpy()))
        values = Orientation(axcodes=codes, labels=None)(label)[0].numpy()
        names = {value: name for name, value in bundle.labels.items()}
        classes = [names.get(value, str(value)) for value in range(max(names) + 1)]
        metrics = pooled_metrics(confusion_matrix(mask, values, len(classes)), classes)["classes"]
        dice = {name: _or_none(metrics[name]["dice"]) for name in bundle.labels}
        found = [value for value in dice.values() if value is not None]
        return {
            "value": float(np.mean(found)) if found else None,
            "dice": dice,
            "model": bundle.name,
        }


def find_scores(bundles: Mapping[str, Bundle], preferred: str) -> dict[str, Scores]:
    """Return the scores by name, given by `preferred`; "" for the first bundle with weights.

    Raises:
        InputError: for a bundle that is not there.
    """
    if preferred and preferred not in bundles:
        known = ", ".join(bundles) or "none"
        raise InputError(
            f"score_model: found {preferred!r}, expected one of {known}: fix --conf score_model."
        )
    methods = (
        Uncertainty(
            "uncertainty", "How unsure the model is of each unlabelled scan", bundles, preferred
        ),
        Disagreement("disagreement", "How much planes or models disagree", bundles, preferred),
        DiceScores("dice", "Dice of the model against final labels, by class", bundles, preferred),
    )
    return {method.name: method for method in methods}


def disagreement(masks: Sequence[tuple[np.ndarray, Mapping[str, int]]]) -> float:
    """1 − mean Dice over all pairs of masks and all classes that both of a pair know.

    A class that neither finds is left out, and what nobody finds is agreed on. Where only one knows
    lesions, they are liver.

    Args:
        masks: label maps on one grid, each with its values by name.

    Raises:
        InputError: if no pair knows a common class.
    """
    dices, common = [], False
    for (one, known), (other, also_known) in combinations(masks, 2):
        names = known.keys() & also_known.keys()
        common |= bool(names)
        for name in names:
            first, second = (
                _region(one, known, name, names),
                _region(other, also_known, name, names),
            )
            voxels = np.count_nonzero(first) + np.count_nonzero(second)
            if voxels:
                dices.append(2 * np.count_nonzero(first & second) / voxels)
    if not common:
        raise InputError(
            "disagreement: found models without a common class, expected one: narrow --conf models."
        )
    return 1 - float(np.mean(dices)) if dices else 0.0


def _region(mask: np.ndarray, labels: Mapping[str, int], name: str, common: Any) -> np.ndarray:
    values = [labels[name]]
    if name == "liver" and "lesion" in labels and "lesion" not in common:
        values.append(labels["lesion"])
    return np.isin(mask, values)


def _planes(bundle: Bundle) -> list[str]:
    return [text for text, planes in bundle.choices.get("planes", {}).items() if len(planes) == 1]


def _mask(bundle: Bundle, scan: str, **params: str) -> np.ndarray:
    path, _ = Segmentation(bundle)({"image": scan, **params})
    try:
        return read_label(path)[0].numpy()
    finally:
        Path(path).unlink()


def _or_none(value: float) -> float | None:
    # JSON knows no NaN.
    return None if math.isnan(value) else value
