"""Synthetic abdominal scans and data sets of them."""

from liverseg.workbench.phantoms.files import write_phantoms
from liverseg.workbench.phantoms.phantom import make_phantom

__all__ = ["make_phantom", "write_phantoms"]
