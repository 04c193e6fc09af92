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

# Parts of other libraries' messages, and what is wrong in words that help.
FOREIGN = {
    "gloo/transport": (
        "the connection to another process of this training is lost, expected all to run to the end: see the other "
        "processes' output for the first error, and go on with --resume true."
    ),
    "the dataset length is less than the number of participating ranks": (
        "validation: found fewer scans than processes, expected at least one for each: start fewer processes, or hold "
        "out more scans."
    ),
}


def require(version: str) -> ModuleType:
    """Return the package liverseg if it is of the version that a config was made for.

    From a `python -m monai.bundle` command line, errors in the user's input are from here on printed as one sentence;
    set LIVERSEG_TRACEBACK=1 to see where they came from.

    Args:
        version: `MAJOR.MINOR`, as in the config; in an archive with the patch, for the code is in the archive.

    Raises:
        InputError: when the liverseg found is of another version.
    """
    if is_command_line():
        sys.excepthook = _print_sentence
    if not is_version(version):
        raise InputError(
            f"{Path(liverseg.__file__).parent}: found liverseg {liverseg.__version__}, expected {version} for this "
            "bundle: run it in a process of its own, started in its folder if there is a liverseg in it, and else with "
            f"liverseg {version} installed."
        )
    for room in ("chain", "data", "handlers", "networks"):
        importlib.import_module(f"liverseg.{room}")
    return liverseg


def is_version(version: str) -> bool:
    """Whether this liverseg is of `version`, as far as that says: of 0.1 are all 0.1.x."""
    return liverseg.__version__.split(".")[: len(version.split("."))] == version.split(".")


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


def local_device() -> torch.device:
    """The device of this one of the processes that torchrun started: its own GPU, or the CPU on a machine without one.

    Raises:
        InputError: outside torchrun, and for more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            "multi_gpu_train.json: found no LOCAL_RANK in the environment, expected torchrun to set it: start with "
            "`torchrun --nproc_per_node 2 -m monai.bundle run …`, or leave this file out for one process."
        )
    rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if 0 < gpus <= rank:
        raise InputError(
            f"nproc_per_node: found {gpus} GPUs for {os.environ['LOCAL_WORLD_SIZE']} processes, expected one each: "
            f"start {gpus} processes on this machine."
        )
    return torch.device("cuda", rank) if gpus else torch.device("cpu")


def sync_batch_norm(network: torch.nn.Module) -> torch.nn.Module:
    """`network` with batch norm over the batches of all processes; on the CPU as it is, as torch has none there.

    The names of its weights stay, so what is saved loads into a network without.
    """
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network) if torch.cuda.is_available() else network


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
    """The sentence that says what is wrong outside the code behind `error`, or `None` where none is known."""
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        unknown = _unknown_choice(error) or next((said for part, said in FOREIGN.items() if part in str(error)), None)
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
