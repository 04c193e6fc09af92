"""Segment a scan with a bundle that takes an annotator's clicks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.bundle import Bundle
from lib.infer.probabilities import ProbabilityStore
from lib.infer.segment import Segmentation
from liverseg.errors import InputError


class ClickSegmentation(Segmentation):
    """What 3D Slicer lists under *SmartEdit* and OHIF under *Point Prompts*.

    Each request gives the bundle's setting `clicks`.

    A request has for each class, the background included, a list of clicks `[i, j, k]` in voxels of
    the scan's file, and all of them each time. Without clicks the result is the automatic one.

    Args:
        bundle: what runs; its config has the setting `clicks`.
        store: where its probabilities are kept.
    """

    def __init__(self, bundle: Bundle, store: ProbabilityStore | None = None) -> None:
        super().__init__(bundle, store)
        self.type = InferType.DEEPEDIT
        # 3D Slicer takes clicks for these, and none for a background that is not among them.
        self.labels = {"background": 0, **bundle.labels}

    def settings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As for the automatic one, and the clicks.

        Raises:
            InputError: also for a click that is no list of three numbers.
        """
        clicks = {name: request[name] for name in self.labels if request.get(name)}
        for name, positions in clicks.items():
            # Checked before the config has them: there, text may be code.
            for position in positions if isinstance(positions, list) else [positions]:
                numbers = isinstance(position, list) and all(
                    type(value) in (int, float) for value in position
                )
                if not numbers or len(position) != 3:
                    raise InputError(
                        f"model {self.bundle.name}, clicks for {name}: found {position!r}, "
                        "expected a list of clicks, each three numbers [i, j, k]: fix it."
                    )
        return {**super().settings(request), "clicks": clicks}
