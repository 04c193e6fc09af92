"""Handlers for MONAI's engines."""

from liverseg.handlers.checkpoints import Checkpoints
from liverseg.handlers.learning_rate import write_learning_rate
from liverseg.handlers.masks import MaskSummary
from liverseg.handlers.overlays import Overlays
from liverseg.handlers.progress import Progress
from liverseg.handlers.report import SegmentationReport
from liverseg.handlers.roc import RocCurves
from liverseg.handlers.run_summary import RunSummary
from liverseg.handlers.tracking import Tracking
from liverseg.handlers.weights import WeightsCheckpointLoader

__all__ = [
    "Checkpoints",
    "MaskSummary",
    "Overlays",
    "Progress",
    "RocCurves",
    "RunSummary",
    "SegmentationReport",
    "Tracking",
    "WeightsCheckpointLoader",
    "write_learning_rate",
]
