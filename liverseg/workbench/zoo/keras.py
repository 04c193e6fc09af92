"""Read weights that Keras wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks import PreactivationUNet3D

try:
    import h5py
except ModuleNotFoundError as error:
    raise InputError(
        'found no package h5py, expected it: pip install ".[weights]" in the repository.'
    ) from error


def read_keras_weights(path: Path, valid: bool) -> dict[str, Tensor]:
    """Return the state dict of `PreactivationUNet3D` for its weights in Keras' HDF5 format.

    Its convolutions `conv3d_1` … are numbered in the order in which the network was written down:
    stage by stage, the two of a stage and then that of its shortcut, the classifier last. Kernels
    are stored as (D, H, W, in, out).

    Args:
        path: the file.
        valid: as of `PreactivationUNet3D`.

    Raises:
        InputError: when the file cannot be read, or holds another network.
    """
    network = PreactivationUNet3D(valid=valid)
    convolutions: list[nn.Conv3d] = []
    for stage in (*network.encoder, network.bottom, *network.decoder):
        convolutions += stage.convolutions
        if isinstance(stage.shortcut, nn.Conv3d):
            convolutions.append(stage.shortcut)
    convolutions.append(network.classifier)
    try:
        with h5py.File(path) as file:
            number = sum(name.startswith("conv3d_") for name in file)
            groups = [file[f"conv3d_{n}/conv3d_{n}"] for n in range(1, number + 1)]
            weights = [
                torch.from_numpy(group["kernel:0"][()]).permute(4, 3, 0, 1, 2) for group in groups
            ]
            biases = [torch.from_numpy(group["bias:0"][()]) for group in groups]
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path}: {error}, expected the weights of the network in "
            "HDF5: download the file again."
        ) from error
    found, expected = (
        [tuple(each.shape) for each in shapes]
        for shapes in (weights, (c.weight for c in convolutions))
    )
    if found != expected:
        raise InputError(
            f"{path}: found the kernels of {number} convolutions, expected {len(expected)} of the "
            f"shapes of the {'lesion' if valid else 'liver'}'s: it is another network."
        )
    for convolution, weight, bias in zip(convolutions, weights, biases, strict=True):
        convolution.weight.data.copy_(weight)
        convolution.bias.data.copy_(bias)  # type: ignore[union-attr]
    return network.state_dict()
