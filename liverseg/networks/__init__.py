"""Networks, one file each."""

from liverseg.networks.deeplabv3plus import DeepLabV3Plus
from liverseg.networks.weights import load_weights

__all__ = ["DeepLabV3Plus", "load_weights"]
