"""What a run of an inference leaves beside its masks."""

from __future__ import annotations

from ignite.engine import Engine, Events

from liverseg.engines import ScanEvaluator
from liverseg.io.masks import MaskFolder


class MaskSummary:
    """Check the folder of the masks before the first scan is read, and at the end record in it the scans that failed.

    Args:
        masks: the folder that the masks go to.

    Raises:
        InputError: when the run starts, as `MaskFolder.check`.
    """

    def __init__(self, masks: MaskFolder) -> None:
        self.masks = masks

    def attach(self, engine: ScanEvaluator) -> None:
        """Act at the start and at the end of `engine`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def start(self, engine: Engine) -> None:
        """Look whether masks can be written."""
        self.masks.check()

    def completed(self, engine: ScanEvaluator) -> None:
        """Record the scans that failed."""
        for failure in engine.failures:
            self.masks.record_failure(failure["image"], failure["error"])
