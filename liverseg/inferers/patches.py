"""Predict training volumes, to cut patches with the network's own labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from liverseg.inferers.volume_slices import VolumeSliceInferer
from liverseg.networks import load_weights


def predict_volumes(
    volumes: Sequence[Mapping[str, Any]],
    network: nn.Module,
    weights: str | os.PathLike[str],
    amp: bool = True,
    keys: Sequence[str] = ("image", "prior"),
) -> Iterator[dict[str, Any]]:
    """Yield volumes with the network's prediction; step 1 of Algorithm 1 of IJIES 2022.

    Nothing is loaded or predicted until the first is asked for.

    Args:
        volumes: items with the network's inputs (1, H, W, D) on the grid that it sees.
        network: maps the inputs (B, len(keys), H, W) to logits of the target.
        weights: path of its weights; the network keeps them.
        amp: allow bfloat16.
        keys: of the network's inputs.

    Yields:
        Each item with "pred", class indices (1, H, W, D), uint8.

    Raises:
        InputError: as `load_weights`.
    """
    load_weights(network, weights).eval()
    inferer = VolumeSliceInferer(amp=amp)
    for item in tqdm(volumes, "Labelling patches", unit="volume"):
        inputs = torch.cat([torch.as_tensor(item[key]) for key in keys])
        yield {**item, "pred": inferer(inputs[None].as_subclass(Tensor), network)[0]}
