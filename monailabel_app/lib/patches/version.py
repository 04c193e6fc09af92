"""The version of MONAI Label that the patches are for; nothing of MONAI Label is imported here."""

from __future__ import annotations

from importlib.metadata import version

from liverseg.errors import InputError

VERSION = "0.8.5"


def check_version() -> None:
    """Refuse any other version of MONAI Label.

    Raises:
        InputError: for it.
    """
    found = version("monailabel")
    if found != VERSION:
        raise InputError(
            f"found monailabel {found}, expected {VERSION}, parts of which this app replaces: pip "
            f"install monailabel=={VERSION}."
        )
