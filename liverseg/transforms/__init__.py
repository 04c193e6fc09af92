"""Transforms that MONAI lacks."""

from liverseg.transforms.augment import RandCutOffd, RandSliceThicknessd, RandSyntheticLesionsd
from liverseg.transforms.clicks import AddClicksd, SimulateClickd, draw_clicks, find_error
from liverseg.transforms.crf import DenseCRF, DenseCRFd
from liverseg.transforms.crop import CropToBodyd, CropToLabeld, foreground_box
from liverseg.transforms.intensity import (
    EqualizeHistogramd,
    MedianSlicesd,
    ScaleFromMinimumd,
    ScaleWindowd,
)
from liverseg.transforms.labels import MapLabelsd
from liverseg.transforms.load import LoadVolumed
from liverseg.transforms.localise import LocalisePriord
from liverseg.transforms.patches import RandPatchesd
from liverseg.transforms.plausibility import CheckPlausibilityd
from liverseg.transforms.postprocessing import (
    CleanSlices,
    CleanSlicesd,
    ErodeKeepLargestDilate,
    ErodeKeepLargestDilated,
    FillBackgroundHoles,
    FillBackgroundHolesd,
    SmoothEdges,
    SmoothEdgesd,
)
from liverseg.transforms.quality import FlagMaskd, SampleVoxelsd
from liverseg.transforms.save import SaveMaskd
from liverseg.transforms.slices import RandSlicesd, stack_slices
from liverseg.transforms.spacing import ResampleVolumed, resize_volume, spaced_size

__all__ = [
    "AddClicksd",
    "CheckPlausibilityd",
    "CleanSlices",
    "CleanSlicesd",
    "CropToBodyd",
    "CropToLabeld",
    "DenseCRF",
    "DenseCRFd",
    "EqualizeHistogramd",
    "ErodeKeepLargestDilate",
    "ErodeKeepLargestDilated",
    "FillBackgroundHoles",
    "FillBackgroundHolesd",
    "FlagMaskd",
    "LoadVolumed",
    "LocalisePriord",
    "MapLabelsd",
    "MedianSlicesd",
    "RandCutOffd",
    "RandPatchesd",
    "RandSliceThicknessd",
    "RandSlicesd",
    "RandSyntheticLesionsd",
    "ResampleVolumed",
    "SampleVoxelsd",
    "SaveMaskd",
    "ScaleFromMinimumd",
    "ScaleWindowd",
    "SimulateClickd",
    "SmoothEdges",
    "SmoothEdgesd",
    "draw_clicks",
    "find_error",
    "foreground_box",
    "resize_volume",
    "spaced_size",
    "stack_slices",
]
