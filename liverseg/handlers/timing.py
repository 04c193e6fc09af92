"""Measure how long an evaluator takes over a scan."""

from __future__ import annotations

from time import perf_counter

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents


class ScanTimer:
    """Take the time at the three ends of an iteration, inference and postprocessing.

    Ignite's `BasicTimeProfiler` times an iteration as a whole.

    Attributes:
        times_s: of this iteration, at its start, after the inferer, after the postprocessing.
    """

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Act on the events of `engine`, an evaluator."""
        # A scan that failed before may have left some.
        engine.add_event_handler(Events.ITERATION_STARTED, self.times_s.clear)
        # MONAI runs the postprocessing on MODEL_COMPLETED, and registered it before any handler.
        for event in (
            Events.ITERATION_STARTED,
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        ):
            engine.add_event_handler(event, self._note)

    def seconds(self, batch_size: int, num_slices: int) -> dict[str, float]:
        """Return the times of one scan of a batch, all of which count in equal parts.

        Args:
            batch_size: scans of this iteration.
            num_slices: axial slices of the scan.
        """
        started, inferred, processed = self.times_s
        return {
            "inference_per_slice": (inferred - started) / batch_size / num_slices,
            "postprocessing_per_case": (processed - inferred) / batch_size,
            "segmentation_per_case": (processed - started) / batch_size,
        }

    def _note(self) -> None:
        if torch.cuda.is_available():
            # The GPU works behind the program's back.
            torch.cuda.synchronize()
        self.times_s.append(perf_counter())
