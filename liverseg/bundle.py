"""Check versions and read options, for the expressions of a bundle's config."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import liverseg
from liverseg.command_line import check_command, is_command_line, print_message
from liverseg.devices import local_device, select_device, sync_batch_norm
from liverseg.errors import InputError

__all__ = ["choose", "is_true", "local_device", "require", "select_device", "sync_batch_norm"]


def require(version: str) -> ModuleType:
    """Return the package liverseg, once its version and the command are checked.

    On a `python -m monai.bundle` command line, errors in the user's input are printed as one
    message from here on; set LIVERSEG_TRACEBACK=1 to see where they came from. The log takes any
    character, even where the terminal does not.

    Args:
        version: `MAJOR.MINOR`, as in the config; an archive adds the patch number,
            as it holds the code.

    Raises:
        InputError: when the liverseg found is of another version, and as `check_command`.
    """
    if is_command_line():
        sys.excepthook = print_message
        # The log goes there, in whose encoding a scan's name or a × may not be; MONAI lets no
        # logging.conf say so.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not is_version(version):
        raise InputError(
            f"{Path(liverseg.__file__).parent}: found liverseg {liverseg.__version__}, expected "
            f"{version} for this bundle: run it in its own process, started in its folder if there "
            f"is a liverseg in it, and else with liverseg {version} installed."
        )
    for part in ("chain", "data", "handlers", "networks"):
        importlib.import_module(f"liverseg.{part}")
    check_command()
    return liverseg


def is_version(version: str) -> bool:
    """Return whether this liverseg is of `version`: all 0.1.x are of 0.1."""
    return liverseg.__version__.split(".")[: len(version.split("."))] == version.split(".")


def is_true(value: bool | str) -> bool:
    """Return the bool that a config or a command line means, where `false` may be text.

    Raises:
        InputError: for anything else.
    """
    if str(value).lower() not in ("true", "false"):
        raise InputError(
            f"found {value!r} for a switch, expected true or false: write it as --amp false."
        )
    return str(value).lower() == "true"


def choose(key: str, value: str, choices: Mapping[str, Any]) -> Any:
    """Return the one of `choices` that `value` names; `key` is the setting.

    Raises:
        InputError: for a name that is not there.
    """
    if value not in choices:
        raise InputError(
            f"{key}: found {value!r}, expected one of {', '.join(choices)}: set it to one of these."
        )
    return choices[value]
