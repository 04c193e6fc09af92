"""Read weights from files, strictly."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import torch
from torch import nn

from liverseg.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | os.PathLike[str]) -> Network:
    """Load a state dict, or the `model` of a checkpoint, into `network` and return it.

    Raises:
        InputError: for a missing or unreadable file, or weights whose keys or shapes are not the network's.
    """
    load_state_dict(network, read_state_dict(path), str(path))
    return network


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dict from a file, or the one under `model` in a training checkpoint, onto the CPU.

    Raises:
        InputError: for a file that is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there are no weights: train first, or set the path to a file of weights.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{path}: not readable as weights ({str(error).splitlines()[0] if str(error) else type(error).__name__}), "
            "expected a state dict saved by torch.save: replace the file."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict (a {type(state).__name__}): save the network's state_dict().")
    return state


def load_state_dict(network: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load `state` into `network` if keys and shapes are the same.

    Raises:
        InputError: naming `source` and the first key of each kind of difference.
    """
    own = network.state_dict()
    differences = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    found = [f"{len(keys)} keys are {kind} (first: {keys[0]})" for kind, keys in differences.items() if keys]
    if found:
        raise InputError(
            f"{source}: these are weights of another network than {type(network).__name__}: {', '.join(found)}; "
            "take the config that they were trained with (num_classes, in_channels, network), or other weights."
        )
    network.load_state_dict(state)


def fetch(source: str, sha256: str | None) -> Path:
    """The local path of `source`, a path or a URL; a URL is downloaded once into torch's hub folder.

    Raises:
        InputError: for a missing file, a URL without sha256, a failed download, or a file with another sha256.
    """
    path = Path(source)
    if urlparse(source).scheme in ("http", "https", "file"):
        if sha256 is None:
            raise InputError(f"{source}: a URL needs encoder_weights_sha256, found none: give the file's sha256.")
        path = Path(torch.hub.get_dir()) / "checkpoints" / f"{sha256[:16]}-{Path(urlparse(source).path).name}"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(source, str(path))
            except OSError as error:
                raise InputError(f"{source}: the download failed ({error}): check the address and network.") from error
    if not path.is_file():
        raise InputError(f"{path}: there are no such weights: mend the path in encoder_weights.")
    if sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise InputError(f"{path}: its sha256 is {found}, expected {sha256}: delete the file and fetch it again.")
    return path
