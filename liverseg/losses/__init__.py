"""Losses that MONAI lacks."""

from liverseg.losses.focal_tversky import FocalTverskyLoss

__all__ = ["FocalTverskyLoss"]
