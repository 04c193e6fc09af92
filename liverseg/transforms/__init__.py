"""Transforms that MONAI lacks."""

from liverseg.transforms.labels import MapLabelsd
from liverseg.transforms.load import LoadVolumed
from liverseg.transforms.slices import RandSlicesd, stack_slices

__all__ = ["LoadVolumed", "MapLabelsd", "RandSlicesd", "stack_slices"]
