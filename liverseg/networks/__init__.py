"""The networks that the bundles' configs name, and how to load their weights."""

from liverseg.networks.cascade import CascadeNetworks, cascade_weights
from liverseg.networks.deeplabv3plus import DeepLabV3Plus
from liverseg.networks.ensemble import NetworkEnsemble
from liverseg.networks.fcn import FCN8s
from liverseg.networks.liver_lesion import LiverLesionNetworks
from liverseg.networks.postprocessed import WithPostprocessing
from liverseg.networks.preactivation_unet3d import PreactivationUNet3D
from liverseg.networks.simple import SimpleNet
from liverseg.networks.tuning import TuningNet
from liverseg.networks.unet import UNet
from liverseg.networks.unet3d import UNet3D
from liverseg.networks.uniclass import UniclassNetworks
from liverseg.networks.weights import load_weights, merge_weights

__all__ = [
    "CascadeNetworks",
    "DeepLabV3Plus",
    "FCN8s",
    "LiverLesionNetworks",
    "NetworkEnsemble",
    "PreactivationUNet3D",
    "SimpleNet",
    "TuningNet",
    "UNet",
    "UNet3D",
    "UniclassNetworks",
    "WithPostprocessing",
    "cascade_weights",
    "load_weights",
    "merge_weights",
]
