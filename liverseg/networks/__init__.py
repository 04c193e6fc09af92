"""The networks that the bundles' configs name, and how to load their weights."""

from liverseg.networks.deeplabv3plus import DeepLabV3Plus
from liverseg.networks.uniclass import UniclassNetworks
from liverseg.networks.weights import load_weights

__all__ = ["DeepLabV3Plus", "UniclassNetworks", "load_weights"]
