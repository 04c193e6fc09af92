"""Patches of training slices with labels that the network has given itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from liverseg.errors import InputError
from liverseg.files import atomic_write
from liverseg.inferers import VolumeSliceInferer
from liverseg.networks import load_weights

RECORD = "patches.json"


def label_patches(
    volumes: Sequence[Mapping[str, Any]],
    network: nn.Module,
    weights: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    spatial_size: Sequence[int],
    levels: Sequence[int] = (2, 4, 8),
    min_area: float = 0.3,
    per_volume: int = 64,
    seed: int = 0,
    amp: bool = True,
    image_key: str = "image",
    prior_key: str = "prior",
    label_key: str = "label",
) -> None:
    """Cut training volumes into patches and label them with the network's own predictions, into files of `folder`.

    Steps 1, 2 and 4 of Algorithm 1 of the cascade on LiTS. Slices along the last axis are tiled without overlap, once
    for each level f with patches of `spatial_size` / f pixels. A patch is kept where at least `min_area` of it is
    annotated (μ, eq. 7). Its label is what the network says of the whole slice, cut out. Patches that are there already
    stay.

    Each volume with patches gives one file `<number>.npz` with `image_<f>`, `prior_<f>` and `label_<f>`, (N, h, w), and
    `patches.json` says how many there are of each level.

    Args:
        volumes: items with image, prior and label (1, H, W, D) on the grid that the network sees.
        network: maps image and prior (B, 2, H, W) to logits of the target.
        weights: path of its weights; the network keeps them.
        folder: for the files.
        spatial_size: pixels (H, W) of the slices that the network is trained on.
        levels: the f.
        min_area: μ, from 0 to 1.
        per_volume: at most this many patches of a level and volume, drawn at random.
        seed: of this draw.
        amp: allow bfloat16.
        image_key: see `volumes`.
        prior_key: see `volumes`.
        label_key: see `volumes`.

    Raises:
        InputError: when no patch is left, or a `spatial_size` is no multiple of a level.
    """
    folder = Path(folder)
    if (folder / RECORD).is_file():
        return
    if any(size % level for size in spatial_size for level in levels):
        raise InputError(
            f"spatial_size is {list(spatial_size)}, expected multiples of {list(levels)}: change it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    load_weights(network, Path(weights)).eval()
    inferer, generator = VolumeSliceInferer(amp=amp), np.random.default_rng(seed)
    counts = dict.fromkeys(levels, 0)
    for number, item in enumerate(tqdm(volumes, "Labelling patches", unit="volume")):
        image, prior, label = (
            torch.as_tensor(item[key])[0] for key in (image_key, prior_key, label_key)
        )
        predicted = inferer(torch.stack([image, prior])[None].as_subclass(Tensor), network)[0, 0]
        content: dict[str, np.ndarray] = {}
        for level in levels:
            size = (spatial_size[0] // level, spatial_size[1] // level)
            areas = _tiles(label.as_subclass(Tensor) > 0, size).float().mean((1, 2)).numpy()
            # An area of exactly μ counts, whatever float32 makes of 0.3.
            kept = np.flatnonzero((areas >= min_area - 1e-6) & (areas > 0))
            kept = np.sort(generator.choice(kept, min(per_volume, len(kept)), replace=False))
            counts[level] += len(kept)
            for name, volume in ((image_key, image), (prior_key, prior), (label_key, predicted)):
                patches = _tiles(volume.as_subclass(Tensor), size)[kept].numpy()
                content[f"{name}_{level}"] = patches.astype(
                    np.uint8 if name == label_key else np.float16
                )
        if any(len(patches) for patches in content.values()):
            with atomic_write(folder / f"{number}.npz") as file:
                np.savez(file, **content)
    if not sum(counts.values()):
        raise InputError(
            f"{folder}: found no patch with {min_area:g} of it annotated: lower min_patch_area."
        )
    record = {"min_area": min_area, "patches": counts}
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps(record, indent=1).encode())


def _tiles(volume: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W, D) to non-overlapping tiles (N, *size), slice by slice; zeros fill up the last row and column of tiles."""
    height, width = size
    slices = F.pad(
        volume.permute(2, 0, 1), (0, -volume.shape[1] % width, 0, -volume.shape[0] % height)
    )
    return slices.unfold(1, height, height).unfold(2, width, width).reshape(-1, height, width)


def find_patches(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """`{"patches": path}` for each file that `label_patches` wrote.

    Raises:
        InputError: when there is none.
    """
    files = sorted(Path(folder).glob("*.npz"), key=lambda path: int(path.stem))
    if not files:
        raise InputError(
            f"{folder}: found no patches, expected those of a round: start rounds with the id iterate."
        )
    return [{"patches": str(path)} for path in files]
