"""Record what a run of an inference leaves beside its masks."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events

from liverseg.engines import ScanEvaluator, reason_of
from liverseg.io.masks import MaskFolder


class MaskSummary:
    """Check the folder of the masks before the first scan, and record the failed scans at the end.

    Args:
        masks: the folder that the masks go to.

    Raises:
        InputError: when the run starts, as `MaskFolder.check`.
    """

    def __init__(self, masks: MaskFolder) -> None:
        self.masks = masks

    def attach(self, engine: ScanEvaluator) -> None:
        """Act at the start and at the end of `engine`."""
        engine.add_event_handler(Events.STARTED, self.masks.check)
        engine.add_event_handler(Events.COMPLETED, self.completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def completed(self, engine: ScanEvaluator) -> None:
        """Record the scans that failed."""
        for failure in engine.failures:
            self.masks.record_failure(failure["image"], failure["error"])

    def failed(self, engine: Any, error: Exception) -> None:
        """Record the error that ends a run over a single scan, and raise it as Ignite asks."""
        scans = engine.data_loader.dataset.data
        # Before the epoch, when weights are loaded, nothing is the scan's fault.
        if len(scans) == 1 and engine.state.epoch > 0:
            self.masks.record_failure(scans[0]["image"], reason_of(error))
        raise error
