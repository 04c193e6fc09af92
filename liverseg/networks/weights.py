"""Read network weights from files, and refuse in one message what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from liverseg import __version__
from liverseg.errors import InputError
from liverseg.files import atomic_write

logger = logging.getLogger(__name__)

# Under which checkpoints hold the network's state dict: those of MONAI and Ignite, Lightning, and
# of many a script.
STATE_KEYS = ("model", "state_dict", "model_state_dict", "network", "net")
COUNTER = "num_batches_tracked"
WANTED = "expected what torch.save(network.state_dict(), path) writes"

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | os.PathLike[str]) -> Network:
    """Load the weights in ``path`` into ``network``, which stays as it was if they do not fit.

    Args:
        network: the network to fill, in place.
        path: a file that ``torch.save`` wrote: a state dict, or a checkpoint that holds one under
            one of `STATE_KEYS`, in any precision. What DataParallel, ``torch.compile`` or a class
            around the network has put before all names, such as ``module.``, is left out.

    Returns:
        ``network`` itself.

    Raises:
        InputError: the file is missing, damaged, holds no state dict, the weights of another
            network, or NaN.
    """
    advice = (
        "give weights made with this network and config (check num_classes, in_channels and the "
        "network's options)"
    )
    load_strictly(network, read_state_dict(path), str(path), advice)
    return network


def merge_weights(
    paths: Mapping[str, str | os.PathLike[str]], merged: str | os.PathLike[str]
) -> None:
    """Merge the weights of several networks into a file for a `NetworkContainer` of them.

    As long as one of them is not there, nothing is written; a file that is there already stays,
    with a warning.

    Args:
        paths: path of the weights of each, by name.
        merged: the file to write.

    Raises:
        InputError: as `read_state_dict`, and when the file cannot be written.
    """
    if idist.get_rank() > 0:
        return
    missing = [os.fspath(path) for path in paths.values() if not Path(path).is_file()]
    if missing:
        if Path(merged).exists():
            logger.warning(
                "%s stays as it is, without what was trained since: there is no %s. Copy "
                "it there, or move %s away.",
                *(merged, ", ".join(missing), merged),
            )
        else:
            logger.info("%s is made once there is %s.", merged, ", ".join(missing))
        return
    state = {
        f"{name}.{key}": value
        for name, path in paths.items()
        for key, value in read_state_dict(Path(path)).items()
    }
    with atomic_write(Path(merged)) as file:
        torch.save(state, file)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict in ``path``, or in a checkpoint under one of `STATE_KEYS`, onto the CPU.

    Raises:
        InputError: as `read_checkpoint`, and when the file holds no state dict, several, or NaN and
            infinity.
    """
    state = content = read_checkpoint(path)
    if isinstance(content, Mapping):
        inside = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping)]
        if len(inside) > 1:
            raise InputError(
                f"{path} holds a dict with several state dicts, under {', '.join(inside)}; "
                f"{WANTED}: save one alone."
            )
        state = content[inside[0]] if inside else content
    if not isinstance(state, Mapping):
        raise InputError(
            f"{path} holds a {type(state).__name__}; {WANTED}: save the state dict alone."
        )
    others = [
        key for key, value in state.items() if not (isinstance(key, str) and _is_plain(value))
    ]
    if others or not state:
        found = (
            f"no plain tensor under {len(others)} of {len(state)} names (first: {others[0]!r})"
            if others
            else "no keys"
        )
        known = ", ".join(f'"{key}"' for key in STATE_KEYS)
        raise InputError(
            f"{path} holds a dict with {found}; {WANTED}, alone or under a key out of {known}."
        )
    check_finite(state, path)
    # A plain dict drops the version that a state dict carries, by which PyTorch would insist on
    # batch norm's counters.
    return dict(state)


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU.

    Only tensors and plain containers are unpickled (``weights_only=True``), so a file cannot run
    code.

    Raises:
        InputError: the file is missing, damaged, or something else.
    """
    try:
        with Path(path).open("rb") as file:
            other = _other_format(file.read(512))
        if other:
            raise InputError(f"{path} is {other[0]}; {WANTED}: {other[1]}.")
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be read ({reason}): check the path of the weights file, "
            "or train the network first."
        ) from error
    # Damaged bytes make the unpickler raise a dozen types, KeyError and AssertionError among them.
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        # GLOBAL is pickle's opcode for a class or function.
        if "GLOBAL" in str(error) or "TorchScript" in str(error):
            found = (
                "holds Python objects or TorchScript code, which are not loaded because they can "
                "run code"
            )
            raise InputError(f"{path} {found}; {WANTED}: save the state dict alone.") from error
        found = "is truncated, damaged or no weights file"
        raise InputError(f"{path} {found}; {WANTED}: copy or download it again.") from error


def check_finite(state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Check that weights are numbers.

    Args:
        state: tensors by parameter name.
        source: where they come from, for the message.

    Raises:
        InputError: for NaN or infinity, also of what is too large for float32, with the first
            tensor that has some.
    """
    for key, value in state.items():
        if value.is_floating_point() and not (finite := value.float().isfinite()).all():
            count = int((~finite).sum())
            raise InputError(
                f"{source}: found NaN or infinity for {count} of {value.numel()} numbers of "
                f"{key}, expected finite weights: the training that wrote them failed, so "
                "take those of another one."
            )


def _is_plain(value: Any) -> bool:
    """Return whether it is a tensor with a number in memory for each of its elements."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
    )


def _other_format(start: bytes) -> tuple[str, str] | None:
    """Return what else than a file of PyTorch begins so, and what to do."""
    if not start:
        return "empty", "copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS to the weights", "fetch the file itself with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page", "download the file itself, from the address that gives it raw"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 10**8:
        return (
            "a file of safetensors",
            "read it with safetensors.torch.load_file and save it with torch.save",
        )
    return None


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], source: str, advice: str
) -> None:
    """Load ``state`` into ``network`` if keys and shapes are equal; else change nothing and raise.

    `load_state_dict(strict=True)` copies what fits before it raises, lists every key over many
    lines, and takes whole numbers for weights.

    Args:
        network: the network to fill, in place.
        state: tensors by parameter name.
        source: where ``state`` comes from, for the message.
        advice: what the user can do about a mismatch, for the message.

    Raises:
        InputError: how many keys are missing, unexpected and of another shape, with the first of
            each.
    """
    own = network.state_dict()
    state = _without_prefix(state, own)
    # Files older than PyTorch 0.4.1, such as torchvision's ResNets, have no counters; PyTorch
    # starts them at 0.
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    integers = [
        key
        for key in own
        if key in state and own[key].is_floating_point() > state[key].is_floating_point()
    ]
    found = []
    if missing:
        found.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if reshaped:
        key = reshaped[0]
        shapes = f"{tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        found.append(f"{len(reshaped)} of another shape (first: {key} is {shapes})")
    if integers:
        found.append(f"{len(integers)} of whole numbers (first: {integers[0]})")
    if found:
        name = f"{type(network).__name__} of liverseg {__version__}"
        raise InputError(
            f"{source} does not fit {name}: of its {len(own)} keys {', '.join(found)}; {advice}."
        )
    network.load_state_dict(state)


def _without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return `state` with the names of `own`, without what a wrapper put before each of them."""
    first, first_own = (
        min((key for key in keys if not key.endswith(COUNTER)), default="") for keys in (state, own)
    )
    before = first.removesuffix(first_own)
    if not before.endswith(".") or not all(key.startswith(before) for key in state):
        return state
    return {key.removeprefix(before): value for key, value in state.items()}
