"""Handlers for MONAI's engines."""

from liverseg.handlers.checkpoints import Checkpoints
from liverseg.handlers.progress import Progress
from liverseg.handlers.report import SegmentationReport
from liverseg.handlers.run_summary import RunSummary
from liverseg.handlers.weights import WeightsLoader

__all__ = ["Checkpoints", "Progress", "RunSummary", "SegmentationReport", "WeightsLoader"]
