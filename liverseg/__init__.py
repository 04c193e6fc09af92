"""Networks, losses, transforms, inferers, metrics and handlers that the bundles' configs name."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "segment"]

if TYPE_CHECKING:
    from liverseg.workbench.segment.api import segment


def __getattr__(name: str) -> Any:
    # Not before it is asked for, as it takes seconds to import.
    if name == "segment":
        from liverseg.workbench.segment.api import segment

        return segment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
