"""Run networks over whole volumes."""

from liverseg.inferers.autocast import AutocastInferer, bf16_autocast
from liverseg.inferers.base import VolumeInferer
from liverseg.inferers.cascade import CascadeInferer
from liverseg.inferers.clicks import ClickWindowInferer, EvaluateWithClicks, both_predictions
from liverseg.inferers.context_windows import BodyWindowInferer, ContextTileInferer
from liverseg.inferers.keep import KeepingInferer, on_scan_grid
from liverseg.inferers.localise import Localisation, Localiser
from liverseg.inferers.mirror_check import MirrorCheckInferer
from liverseg.inferers.patches import predict_volumes
from liverseg.inferers.two_stage import TwoStageInferer
from liverseg.inferers.volume_slices import VolumeSliceInferer
from liverseg.inferers.volume_windows import VolumeWindowInferer

__all__ = [
    "AutocastInferer",
    "BodyWindowInferer",
    "CascadeInferer",
    "ClickWindowInferer",
    "ContextTileInferer",
    "EvaluateWithClicks",
    "KeepingInferer",
    "Localisation",
    "Localiser",
    "MirrorCheckInferer",
    "TwoStageInferer",
    "VolumeInferer",
    "VolumeSliceInferer",
    "VolumeWindowInferer",
    "bf16_autocast",
    "both_predictions",
    "on_scan_grid",
    "predict_volumes",
]
