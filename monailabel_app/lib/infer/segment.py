"""Segment a scan with a bundle, as `python -m monai.bundle run inference` does."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monai.engines import SupervisedEvaluator
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list

from lib.bundle import IN_USE, Bundle, choose
from lib.infer.masks import NRRD_SUFFIXES, convert_mask
from lib.infer.probabilities import Kept, ProbabilityStore
from liverseg.errors import InputError, message
from liverseg.io.masks import recorded_scans
from liverseg.io.paths import NIFTI_SUFFIXES

logger = logging.getLogger(__name__)

SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES)
# Settings where no mask is asked for.
NO_MASK = dict.fromkeys(("postprocessing", "save_mask#transform"), "@postprocessings#none")


class Segmentation(InferTask):
    """The automatic segmentation of one bundle.

    Every request resolves the bundle's own config and loads the weights that are there at that
    moment: new weights need no restart, what runs keeps those it started with, and no two requests
    share a network. Against the inference itself that is short: on two CPU cores 0.3 s for
    `deeplabv3_liver` and 2.2 s for the eight networks of `cascade_lits`.

    Args:
        bundle: what runs.
        store: where its probabilities are kept.
    """

    def __init__(self, bundle: Bundle, store: ProbabilityStore | None = None) -> None:
        description = bundle.metadata.get("description", "")
        super().__init__(InferType.SEGMENTATION, dict(bundle.labels), 3, description)
        self.bundle, self.store = bundle, store

    def info(self) -> dict[str, Any]:
        """What clients show: labels, options, the bundle's version and whether it has weights."""
        return {
            **super().info(),
            "version": self.bundle.metadata.get("version"),
            "state": self.bundle.state(),
        }

    def config(self) -> dict[str, Any]:
        """The options, each a list with the default first."""
        choices = {key: list(known) for key, known in self.bundle.choices.items()}
        return {"device": device_list(), "version": self.bundle.versions(), **choices}

    def is_valid(self) -> bool:
        """Also without weights, so that clients see the bundle and can train it."""
        return True

    def get_path(self, validate: bool = True) -> str | None:
        """The weights that `/model` gives out and takes."""
        path = self.bundle.folder / "models" / "model.pt"
        return str(path) if path.is_file() or not validate else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`, the path of a NIfTI file or of a folder with a DICOM series.

        Args:
            request: also options by their names in `config`, `result_extension` and
                `result_compress`, and `warnings` of the DICOM series that the file was made of.

        Returns:
            The path of the mask, uint8 on the scan's own grid, which is the caller's to remove; and
            as `label_names` the values by name that occur in it; as `flags` why it may be wrong, by
            a short name a message each; as `warnings` what is odd about the scan and the messages
            of the flags, for clients show `warnings` alone.

        Raises:
            InputError: for an option that is no choice, and a scan that cannot be read.
            HTTPException: 409 without weights.
        """
        start = time.monotonic()
        suffix = request.get("result_extension") or SUFFIXES[0]
        if suffix not in SUFFIXES:
            raise InputError(
                f"model {self.bundle.name}, option result_extension: found {suffix!r}, expected "
                f"one of {', '.join(SUFFIXES)}: choose one."
            )
        with tempfile.TemporaryDirectory() as folder:
            self._run_over(request, {"output_dir": folder})
            scans = recorded_scans(folder)
            flags = {
                flag: message for scan in scans for flag, message in scan.get("flags", {}).items()
            }
            recorded = [warning for scan in scans for warning in scan["warnings"]]
            warnings = [*request.get("warnings", ()), *recorded, *flags.values()]
            (mask,) = (
                path for path in Path(folder).rglob("*") if path.name.endswith(NIFTI_SUFFIXES)
            )
            compress = request.get("result_compress", True)
            result, present = convert_mask(mask, suffix, self.bundle.labels, compress)
        seconds = round(time.monotonic() - start, 2)
        logger.info("%s segmented %s in %.2f s.", self.bundle.name, request["image"], seconds)
        known = {"label_names": present, "latencies": {"total": seconds}, "centroids": {}}
        return result, {**known, "warnings": warnings, "flags": flags}

    def settings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the config for a request.

        Raises:
            InputError: for an option that is no choice.
        """
        return {**self.bundle.device(request), **self.bundle.settings(request)}

    def run(
        self, settings: Mapping[str, Any], watch: Callable[[SupervisedEvaluator], Any] | None = None
    ) -> None:
        """Run the bundle's config with other settings.

        Args:
            settings: of the config; `dataset#data` says which scans.
            watch: sees the evaluator before it runs.

        Raises:
            HTTPException: 409 without weights.
        """
        with self.bundle.workflow(settings) as parser:
            evaluator = parser.get_parsed_content("evaluator")
            needed = self.bundle.weights_of(parser)
            missing = [path for path in needed if not path.is_file()]
            if missing:
                raise HTTPException(
                    409,
                    f"model {self.bundle.name}: found no weights "
                    f"{missing[0].relative_to(self.bundle.folder)} in its folder ({len(missing)} "
                    f"of {len(needed)} missing), expected them for segmenting: train it or copy "
                    "them there, and ask again.",
                )
            if watch is not None:
                watch(evaluator)
        parser.get_parsed_content("run")

    def probabilities(self, scan: str) -> Kept:
        """Those of the last run over `scan`, a path; it is run for those of the weights in use.

        Raises:
            InputError: for a scan that cannot be read, and if nothing can be kept.
            HTTPException: 409 without weights.
        """
        assert self.store is not None
        kept = self.store.find(self.bundle, scan)
        if kept is None or kept.fingerprint != self.bundle.fingerprint():
            with tempfile.TemporaryDirectory() as folder:
                own = {"output_dir": folder, **NO_MASK}
                self._run_over({**(kept.options if kept else {}), "image": scan}, own)
            kept = self.store.find(self.bundle, scan)
        if kept is None:
            raise InputError(
                f"model {self.bundle.name}: found no room for its probabilities, expected some in "
                f"{self.store.folder}: see the server's log."
            )
        return kept

    def _run_over(self, request: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Run over the scan of a request with settings of our own, and keep the probabilities."""
        bundle, scan = self.bundle, request["image"]
        version = choose(bundle.name, "version", request.get("version", IN_USE), bundle.versions())
        watch = None
        if self.store is not None and version == IN_USE:
            options = {
                key: request[key] for key in (*bundle.choices, *self.labels) if key in request
            }
            # Before `settings` says where the weights in use are.
            watch = self.store.watch(bundle, scan, options)
        settings = {**self.settings(request), **own}
        # Text would be read as the config's language, in which `#` is another sign.
        settings["dataset#data"] = [{bundle.config.get("image_key", "image"): Path(scan)}]
        try:
            self.run(settings, watch)
        except Exception as error:
            expected = message(error)
            if expected is None:
                raise
            raise InputError(f"model {bundle.name}: {expected}") from error
