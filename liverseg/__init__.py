"""Networks, losses, transforms, inferers, metrics and handlers that the bundles' configs name."""

__version__ = "0.1.0"
