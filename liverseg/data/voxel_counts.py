"""Count the voxels of each class in a training set once, and remember them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import MetaTensor, affine_to_spacing
from monai.utils import convert_to_tensor
from tqdm import tqdm

from liverseg.errors import InputError
from liverseg.files import atomic_write
from liverseg.io.paths import absolute
from liverseg.transforms import LoadVolumed, MapLabelsd
from liverseg.transforms.labels import whole_values

logger = logging.getLogger(__name__)

MOST_VALUES = 2**16
READERS = 4  # label files that are read at the same time
SLAB = 16  # slices that are counted at a time: whole volumes as int64 would take 8 bytes a voxel


def count_voxels(
    data: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Sequence[int] | None],
    datalist: str | os.PathLike[str] | None = None,
    spacing: Sequence[float] = (-1, -1, -1),
) -> torch.Tensor:
    """Return the voxels of each class in all labels of `data`, float64, shape (num_classes,).

    With `datalist`, what each label file holds is remembered beside it, `dataset.json` in
    `dataset.voxel_counts.json`: a file is read again only when its size or time of change differs.
    As that is stored by file value, other folds and other classes count anew without reading, and
    entries that come into the datalist are read once.

    Args:
        data: items with `label`.
        classes: as for `MapLabelsd`.
        datalist: the file that `data` was read from; None remembers nothing.
        spacing: count voxels of this size in mm, as resampling to it leaves them; −1 keeps the
            axis.

    Raises:
        InputError: as `LoadVolumed` and `MapLabelsd` raise it.
    """
    memory = absolute(datalist).with_suffix(".voxel_counts.json") if datalist else None
    known = _read(memory) if memory else {}
    labels = [str(item["label"]) for item in data]
    names = {
        label: os.path.relpath(label, memory.parent.resolve()) if memory else label
        for label in labels
    }
    missing = [label for label in names if not _is_current(known.get(names[label]), label)]
    if missing:
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(_read_label, missing)
            bar = tqdm(
                read, total=len(missing), desc="Counting voxels per class", unit="scan", delay=2
            )
            known |= {names[label]: found for label, found in zip(missing, bar, strict=True)}
        if memory and idist.get_rank() == 0:
            _write(memory, known)
    convert = MapLabelsd(keys="label", classes=classes)
    total = torch.zeros(len(classes), dtype=torch.float64)
    for label in labels:
        found = known[names[label]]
        values = MetaTensor(torch.tensor(found["values"]), meta={"filename_or_obj": label})
        index = convert({"label": values})["label"].as_tensor().long()
        counts = torch.tensor(found["voxels"], dtype=torch.float64)
        sizes = zip(found["spacing"], spacing, strict=True)
        total.index_add_(0, index, counts * math.prod(mm / to if to > 0 else 1 for mm, to in sizes))
    return total


def _read_label(label: str) -> dict[str, Any]:
    # Before reading, so that a change meanwhile is noticed.
    state = _state(label)
    volume = LoadVolumed(keys="label")({"label": label})["label"]
    values = convert_to_tensor(whole_values(volume), track_meta=False)
    low, high = (int(value) for value in values.aminmax())
    if high - low > MOST_VALUES:
        raise InputError(
            f"{label}: found values from {low} to {high}, expected "
            "classes: is it a scan? Replace it."
        )
    counts = torch.zeros(high - low + 1, dtype=torch.int64)
    for slab in values.split(SLAB, dim=-1):
        counts += torch.bincount(slab.flatten().long() - low, minlength=len(counts))
    present = counts.nonzero()[:, 0]
    spacing = affine_to_spacing(volume.affine, r=3).tolist()
    return {
        **state,
        "spacing": spacing,
        "values": (present + low).tolist(),
        "voxels": counts[present].tolist(),
    }


def _state(label: str) -> dict[str, int]:
    try:
        stat = Path(label).stat()
    except OSError:
        return {}  # LoadVolumed says what is wrong
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _is_current(found: Mapping[str, Any] | None, label: str) -> bool:
    state = _state(label)
    return found is not None and state != {} and state.items() <= found.items()


def _read(memory: Path) -> dict[str, Any]:
    try:
        content = json.loads(memory.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s: not readable (%s), so all labels are counted again.", memory, error)
        return {}
    return content if isinstance(content, dict) else {}


def _write(memory: Path, known: Mapping[str, Any]) -> None:
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
    try:
        with atomic_write(memory) as file:
            file.write(f"{{\n{lines}\n}}\n".encode())
    except InputError as error:
        logger.warning("The voxel counts are not remembered. %s", error)
