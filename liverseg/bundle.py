"""What a bundle's config needs of liverseg before anything else: the right version, the device, readable errors."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch
from monai.bundle import ReferenceResolver

import liverseg
from liverseg.errors import InputError


def require(version: str) -> ModuleType:
    """Return the package liverseg if it is of the version that a config was made for.

    From a `python -m monai.bundle` command line, errors in the user's input are from here on printed as one sentence;
    set LIVERSEG_TRACEBACK=1 to see where they came from.

    Args:
        version: `MAJOR.MINOR`, as in the config.

    Raises:
        InputError: when the liverseg found is of another version.
    """
    if is_command_line():
        sys.excepthook = _print_sentence
    if liverseg.__version__.split(".")[:2] != version.split(".")[:2]:
        raise InputError(
            f"{Path(liverseg.__file__).parent}: found liverseg {liverseg.__version__}, expected {version} for this "
            f"bundle: install liverseg {version}, or run bundles of different versions in processes of their own."
        )
    for room in ("chain", "data", "handlers", "networks"):
        importlib.import_module(f"liverseg.{room}")
    return liverseg


def is_true(value: bool | str) -> bool:
    """The meaning of `true` or `false` as a config or a command line gives it: there, `false` arrives as text.

    Raises:
        InputError: for anything else.
    """
    if str(value).lower() not in ("true", "false"):
        raise InputError(f"found {value!r} for a switch, expected true or false: write it as --amp false.")
    return str(value).lower() == "true"


def choose(key: str, value: str, choices: Mapping[str, Any]) -> Any:
    """The one of `choices` that `value`, the setting called `key`, names.

    Raises:
        InputError: for a name that is not there.
    """
    if value not in choices:
        raise InputError(f"{key}: found {value!r}, expected one of {', '.join(choices)}: set it to one of these.")
    return choices[value]


def select_device(name: str | torch.device | None = None) -> torch.device:
    """The device called `name`, or the first GPU if there is one and else the CPU.

    Raises:
        InputError: for a CUDA device that is not there.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {device} was asked for, found {torch.cuda.device_count()} CUDA devices: use --device cpu, or "
            "install the GPU's driver and a CUDA build of torch."
        )
    return device


def is_command_line() -> bool:
    """Whether this process was started as `python -m monai.bundle`."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main is not None and main.name == "monai.bundle.__main__"


def _print_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    found = sentence(error)
    if found is None or os.environ.get("LIVERSEG_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
    else:
        # A progress bar may have left the cursor at the end of its line.
        print(f"\nerror: {found}", file=sys.stderr)


def sentence(error: BaseException | None) -> str | None:
    """The sentence about the user's input that `error` was raised from, or `None` where the fault is not theirs."""
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        unknown = _unknown_choice(error)
        if unknown:
            return unknown
        error = error.__cause__ or error.__context__
    return None


def _unknown_choice(error: BaseException) -> str | None:
    """MONAI says which reference is undefined, not which ones are there: its resolver, in the traceback, knows."""
    if not isinstance(error, ValueError) or "is not defined in the config content" not in str(error):
        return None
    reference = str(error).split("`")[1].lstrip("@")
    group = reference.split("::")[0]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        resolver = frame.f_locals.get("self")
        if isinstance(resolver, ReferenceResolver):
            names = (key.split("::") for key in resolver.items if key.startswith(f"{group}::"))
            known = sorted(name[1] for name in names if len(name) == 2)
            if known:
                return (
                    f'{group}: found "@{reference.replace("::", "#")}", expected one of {", ".join(known)}: '
                    f'choose one as "@{group}#{known[0]}".'
                )
    return None
