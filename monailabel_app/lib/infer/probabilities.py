"""The probabilities of a bundle's networks, stored for the strokes that correct a mask."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pydoc
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray

from lib.bundle import Bundle
from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.inferers import KeepingInferer, VolumeInferer, on_scan_grid
from liverseg.transforms.morphology import NO_BOX, Box, bounding_box

logger = logging.getLogger(__name__)

# Some hundred scans; the one not asked for the longest goes first.
LIMIT_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Kept:
    """The probabilities of the last run of a bundle over a scan.

    Args:
        file: with them.
        fingerprint: of the weights that gave them.
        options: of the request that gave them.
    """

    file: Path
    fingerprint: str
    options: Mapping[str, Any]

    def regions(self, names: Collection[str], regions: Sequence[Box]) -> list[NDArray[np.float32]]:
        """Return the summed probabilities of some labels, 0 to 1, in boxes of the scan's grid."""
        totals = [
            np.zeros([part.stop - part.start for part in region], np.int32) for region in regions
        ]
        with np.load(self.file) as stored:
            for name in names:
                starts, values = stored[f"{name} starts"], stored[name]
                for region, total in zip(regions, totals, strict=True):
                    corner = [part.start for part in region]
                    begin = np.maximum(corner, starts)
                    end = np.minimum([part.stop for part in region], starts + values.shape)
                    if (begin < end).all():
                        there, here = (
                            tuple(map(slice, begin - origin, end - origin))
                            for origin in (starts, corner)
                        )
                        total[here] += values[there]
        return [(total / 255).astype(np.float32) for total in totals]


class ProbabilityStore:
    """A folder of probabilities, limited in size: one file for each bundle and scan.

    Args:
        folder: is made when there is something to keep.
        limit_bytes: of all files together.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def find(self, bundle: Bundle, scan: str) -> Kept | None:
        """Those of the last run of `bundle` over `scan`, a path, as it is on the disk now."""
        file = self._file(bundle, scan)
        try:
            os.utime(file)
            with np.load(file) as stored:
                return Kept(file, **json.loads(str(stored["basis"])))
        except FileNotFoundError:
            return None

    def watch(
        self, bundle: Bundle, scan: str, options: Mapping[str, Any]
    ) -> Callable[[SupervisedEvaluator], None]:
        """Return what keeps the probabilities of a run, if its inferer gives them.

        Args:
            bundle: that runs with the weights in use.
            scan: its path.
            options: of the request, for the next run.
        """
        # Before the weights are read: newer ones than these are found out, the other way round they
        # are not.
        basis = json.dumps({"fingerprint": bundle.fingerprint(), "options": dict(options)})

        def watch(evaluator: SupervisedEvaluator) -> None:
            if isinstance(evaluator.inferer, VolumeInferer):
                keep = partial(self._keep, evaluator, bundle=bundle, scan=scan, basis=basis)
                evaluator.inferer = KeepingInferer(evaluator.inferer, keep)

        return watch

    def _keep(
        self, evaluator: Any, found: torch.Tensor, bundle: Bundle, scan: str, basis: str
    ) -> None:
        key = bundle.config.get("image_key", "image")
        probabilities = on_scan_grid(evaluator, found[0], key)
        arrays: dict[str, np.ndarray] = {"basis": np.array(basis)}
        for name, value in bundle.labels.items():
            values = probabilities[value - 1]
            box = bounding_box(values > 0) or NO_BOX
            arrays[f"{name} starts"] = np.array([part.start for part in box])
            arrays[name] = values[box]
        try:
            check_writable(self.folder)
            with atomic_write(self._file(bundle, scan)) as file:
                np.savez_compressed(file, **arrays)
        # The mask is there all the same.
        except InputError as error:
            logger.warning("%s", error)
        self._forget()

    def _forget(self) -> None:
        files = []
        for path in self.folder.glob("*.npz"):
            # Another process may forget at the same time.
            with suppress(FileNotFoundError):
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = 0
        for _, size_bytes, path in sorted(files, reverse=True):
            total += size_bytes
            if total > max(self.limit_bytes, size_bytes):
                path.unlink(missing_ok=True)

    def _file(self, bundle: Bundle, scan: str) -> Path:
        path = Path(scan)
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = json.dumps([str(bundle.folder), str(path), states])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def gives_probabilities(bundle: Bundle) -> bool:
    """Whether the bundle's inferer is one of liverseg's, which returns them."""
    # Not built: what it is built of may load networks, or fail, when the server starts.
    inferer = bundle.config.get("inferer")
    target = inferer.get("_target_") if isinstance(inferer, Mapping) else None
    found = pydoc.locate(target) if isinstance(target, str) else None
    return isinstance(found, type) and issubclass(found, VolumeInferer)
