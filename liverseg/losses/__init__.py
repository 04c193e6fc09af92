"""Losses that MONAI lacks."""

from liverseg.losses.focal_tversky import FocalTverskyLoss
from liverseg.losses.per_class import PerClassLoss

__all__ = ["FocalTverskyLoss", "PerClassLoss"]
