"""Losses that MONAI lacks."""

from liverseg.losses.clicks import ClickLoss, label_and_clicks
from liverseg.losses.focal_tversky import FocalTverskyLoss
from liverseg.losses.level_ramp import LevelRampLoss
from liverseg.losses.per_class import PerClassLoss
from liverseg.losses.per_pixel import PerPixelCrossEntropyLoss
from liverseg.losses.top_k import DiceTopKLoss, TopKLoss
from liverseg.losses.two_class import TwoClassLoss

__all__ = [
    "ClickLoss",
    "DiceTopKLoss",
    "FocalTverskyLoss",
    "LevelRampLoss",
    "PerClassLoss",
    "PerPixelCrossEntropyLoss",
    "TopKLoss",
    "TwoClassLoss",
    "label_and_clicks",
]
