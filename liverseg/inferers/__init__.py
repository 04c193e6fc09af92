"""Ways to run a network over what does not fit it in one piece."""

from liverseg.inferers.autocast import AutocastInferer, bf16_autocast
from liverseg.inferers.cascade import CascadeInferer
from liverseg.inferers.two_stage import TwoStageInferer
from liverseg.inferers.volume_slices import VolumeSliceInferer

__all__ = ["AutocastInferer", "CascadeInferer", "TwoStageInferer", "VolumeSliceInferer", "bf16_autocast"]
