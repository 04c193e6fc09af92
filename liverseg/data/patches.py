"""Cut training volumes into patches with labels that the network has predicted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from liverseg.errors import InputError
from liverseg.files import atomic_write, write_json

RECORD = "patches.json"


def cut_patches(
    volumes: Iterable[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    spatial_size: Sequence[int],
    levels: Sequence[int] = (2, 4, 8),
    min_area: float = 0.3,
    per_volume: int = 64,
    seed: int = 0,
    keys: Sequence[str] = ("image", "prior", "label"),
) -> None:
    """Cut training volumes into patches with predicted labels, into files of `folder`.

    Steps 2 and 4 of Algorithm 1 of IJIES 2022. Slices along the last axis are tiled without
    overlap, once for each level f with patches of `spatial_size` / f pixels. A patch is used where
    at least `min_area` of it is annotated (μ, eq. 7). Its label is the prediction for the whole
    slice, cut out. Patches that are there already stay, and no volume is asked for.

    Each volume with patches gives one file `<number>.npz` with `image_<f>`, `prior_<f>` and
    `label_<f>`, (N, h, w), and `patches.json` has the numbers of each level.

    Args:
        volumes: items with image, prior, label and the prediction "pred", (1, H, W, D) on one grid,
            as `liverseg.inferers.predict_volumes` yields them.
        folder: for the files.
        spatial_size: pixels (H, W) of the slices that the network is trained on.
        levels: the f.
        min_area: μ, from 0 to 1.
        per_volume: at most this many patches of a level and volume, drawn at random.
        seed: of this draw.
        keys: of images and priors, and of the label as the last.

    Raises:
        InputError: when no patch is left, or a `spatial_size` is no multiple of a level.
    """
    folder = Path(folder)
    if (folder / RECORD).is_file():
        return
    if any(size % level for size in spatial_size for level in levels):
        raise InputError(
            f"spatial_size is {list(spatial_size)}, expected multiples of "
            f"{list(levels)}: change it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    counts = dict.fromkeys(levels, 0)
    *image_keys, label_key = keys
    for number, item in enumerate(volumes):
        arrays = {key: _volume(item[key]) for key in image_keys}
        arrays[label_key] = _volume(item["pred"])
        annotated = _volume(item[label_key]) > 0
        content: dict[str, np.ndarray] = {}
        for level in levels:
            size = (spatial_size[0] // level, spatial_size[1] // level)
            areas = _tiles(annotated, size).float().mean((1, 2)).numpy()
            # An area of exactly μ counts, whatever float32 makes of 0.3.
            chosen = np.flatnonzero((areas >= min_area - 1e-6) & (areas > 0))
            chosen = np.sort(generator.choice(chosen, min(per_volume, len(chosen)), replace=False))
            counts[level] += len(chosen)
            for key, volume in arrays.items():
                dtype = np.uint8 if key == label_key else np.float16
                content[f"{key}_{level}"] = _tiles(volume, size)[chosen].numpy().astype(dtype)
        if any(len(patches) for patches in content.values()):
            with atomic_write(folder / f"{number}.npz") as file:
                np.savez(file, **content)
    if not sum(counts.values()):
        raise InputError(
            f"{folder}: found no patch with {min_area:g} of it annotated: lower min_patch_area."
        )
    write_json(folder / RECORD, {"min_area": min_area, "patches": counts})


def _volume(item: Any) -> Tensor:
    return torch.as_tensor(item)[0].as_subclass(Tensor)


def _tiles(volume: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the slices of (H, W, D) into tiles (N, *size); zeros fill up the last row and column."""
    height, width = size
    slices = F.pad(
        volume.permute(2, 0, 1), (0, -volume.shape[1] % width, 0, -volume.shape[0] % height)
    )
    return slices.unfold(1, height, height).unfold(2, width, width).reshape(-1, height, width)


def find_patches(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Return `{"patches": path}` for each file that `cut_patches` wrote.

    Raises:
        InputError: when there is none.
    """
    files = sorted(Path(folder).glob("*.npz"), key=lambda path: int(path.stem))
    if not files:
        raise InputError(
            f"{folder}: found no patches, expected those of a round: start "
            "rounds with the id iterate."
        )
    return [{"patches": str(path)} for path in files]
