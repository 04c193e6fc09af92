"""Read network weights from files, and say in one sentence why a file does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from liverseg import __version__
from liverseg.errors import InputError
from liverseg.files import write_atomically

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | Path) -> Network:
    """Load the weights in ``path`` into ``network``, which stays as it was if they do not fit.

    Args:
        network: the network to fill, in place.
        path: a file that ``torch.save`` wrote: a state dict, or a training checkpoint that holds one under ``"model"``.

    Returns:
        ``network`` itself.

    Raises:
        InputError: the file is missing, damaged, holds no state dict, or holds the weights of another network.
    """
    advice = "give weights made with this network and config (check num_classes, in_channels and the network's options)"
    load_strictly(network, read_state_dict(path), str(path), advice)
    return network


def load_weights_by_name(networks: Mapping[str, nn.Module], paths: Mapping[str, str | os.PathLike[str]]) -> None:
    """Load weights of its own into each of several networks, as its training wrote them.

    Args:
        networks: the networks to fill, in place, by name.
        paths: path of the weights by the same names, in any order.

    Raises:
        InputError: for a network without path or a path without network, and as `load_weights`.
    """
    if set(paths) != set(networks):
        found = f"found weights for {', '.join(paths) or 'no network'}, expected {', '.join(networks)}"
        raise InputError(f"{found}: give one path for each network.")
    for name, network in networks.items():
        load_weights(network, os.fspath(paths[name]))


def merge_weights(paths: Mapping[str, str | os.PathLike[str]], merged: str | os.PathLike[str]) -> None:
    """Write the weights of several networks as those of one that holds them by name, such as `LiverLesionNetworks`.

    As long as one of them is not there, nothing is written; a file that is there already stays, with a warning.

    Args:
        paths: path of the weights of each, by name.
        merged: the file to write.

    Raises:
        InputError: as `read_state_dict`, and when the file cannot be written.
    """
    missing = [os.fspath(path) for path in paths.values() if not Path(path).is_file()]
    if missing and Path(merged).exists():
        logger.warning(
            "%s stays as it is, without what was trained since: there is no %s. Copy it there, or move %s away.",
            *(merged, ", ".join(missing), merged),
        )
    elif missing:
        logger.info("%s is made once there is %s.", merged, ", ".join(missing))
    if missing:
        return
    state = {
        f"{name}.{key}": value for name, path in paths.items() for key, value in read_state_dict(Path(path)).items()
    }
    write_atomically(Path(merged), lambda file: torch.save(state, file))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in ``path``, or the one under its key ``"model"``, onto the CPU.

    Only tensors and plain containers are unpickled (``weights_only=True``), so a file can not run code.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    wanted = "expected what torch.save(network.state_dict(), path) writes"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} can not be read ({reason}): check the path of the weights file, or train the network first."
        ) from error
    except Exception as error:  # the unpickler meets damaged bytes with a dozen types, KeyError and AssertionError too
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        if "GLOBAL" in str(error) or "TorchScript" in str(error):  # GLOBAL is pickle's opcode for a class or function
            found = "holds Python objects or TorchScript code, which are not loaded because they can run code"
            raise InputError(f"{path} {found}; {wanted}: save the state dict alone.") from error
        found = "is truncated, damaged or no weights file"
        raise InputError(f"{path} {found}; {wanted}: copy or download it again.") from error

    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}; {wanted}: save the state dict alone.")
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        found = f"no tensor under {len(others)} of {len(state)} keys (first: {others[0]!r})" if others else "no keys"
        raise InputError(f'{path} holds a dict with {found}; {wanted}, alone or under the key "model".')
    # A plain dict drops the version that a state dict carries, by which PyTorch would insist on batch norm's counters.
    return dict(state)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Load ``state`` into ``network`` if keys and shapes are equal; else change nothing and raise.

    Args:
        network: the network to fill, in place.
        state: tensors by parameter name.
        source: where ``state`` comes from, for the message.
        advice: what the user can do about a mismatch, for the message.

    Raises:
        InputError: how many keys are missing, unexpected and of another shape, with the first of each.
    """
    own = network.state_dict()
    # Files older than PyTorch 0.4.1, such as torchvision's ResNets, have no counters; PyTorch starts them at 0.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    found = []
    if missing:
        found.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if reshaped:
        key = reshaped[0]
        shapes = f"{tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        found.append(f"{len(reshaped)} of another shape (first: {key} is {shapes})")
    if found:
        name = f"{type(network).__name__} of liverseg {__version__}"
        raise InputError(f"{source} does not fit {name}: of its {len(own)} keys {', '.join(found)}; {advice}.")
    network.load_state_dict(state)
