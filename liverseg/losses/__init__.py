"""Losses that MONAI lacks."""

from liverseg.losses.clicks import ClickLoss, label_and_clicks
from liverseg.losses.focal_tversky import FocalTverskyLoss
from liverseg.losses.level_ramp import LevelRampLoss
from liverseg.losses.per_class import PerClassLoss
from liverseg.losses.top_k import DiceTopKLoss, TopKLoss

__all__ = [
    "ClickLoss",
    "DiceTopKLoss",
    "FocalTverskyLoss",
    "LevelRampLoss",
    "PerClassLoss",
    "TopKLoss",
    "label_and_clicks",
]
