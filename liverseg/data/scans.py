"""Find the scans that a user points at, and what they will take in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from liverseg.data.datalist import load_datalist
from liverseg.errors import InputError

IMAGE_SUFFIXES = (".nii", ".nii.gz")


def find_scans(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """List the scans of `path` as items `{"image": absolute path}`.

    Args:
        path: an image file; a folder with a `dataset.json` (its `test` section is taken); a folder that holds images;
            or a folder of DICOM series, one folder a series.

    Raises:
        InputError: when nothing is there, or nothing in it is a scan.
    """
    root = Path(path).expanduser().resolve()
    if not root.exists():
        raise InputError(f"{root}: there is no such file or folder: set dataset_dir to a scan or a folder of scans.")
    if root.is_file():
        return [{"image": str(root)}]
    if (root / "dataset.json").is_file():
        return [{"image": item["image"]} for item in load_datalist(root / "dataset.json", "test", labelled=False)]
    files = sorted(file for file in root.iterdir() if file.name.endswith(IMAGE_SUFFIXES))
    series = [folder for folder in [root, *sorted(root.iterdir())] if folder.is_dir() and _holds_dicom(folder)]
    if not files and not series:
        raise InputError(
            f"{root}: no scan in it, expected {', '.join(IMAGE_SUFFIXES)} files or folders of DICOM files."
        )
    return [{"image": str(found)} for found in [*files, *series]]


def _holds_dicom(folder: Path) -> bool:
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            with file.open("rb") as stream:
                return stream.read(132)[128:] == b"DICM"
    return False


def cache_num(data: Sequence[Mapping[str, Any]], cache_gb: float, spacing: Sequence[float] = (-1, -1, -1)) -> int:
    """How many of the first items of `data` fit in `cache_gb` once decoded and resampled to `spacing`.

    For `monai.data.CacheDataset(cache_num=…)`, which bounds a count and not bytes. Sizes come from the files' headers:
    4 bytes a voxel for the image and 1 for the label. A DICOM series counts as 512×512×300 voxels.

    Args:
        data: items with `image`.
        cache_gb: the bound in 10⁹ bytes.
        spacing: mm per axis after resampling; −1 keeps the axis.
    """
    left = cache_gb * 1e9
    for count, item in enumerate(data):
        left -= 5 * _voxels(str(item["image"]), spacing)
        if left < 0:
            return count
    return len(data)


def _voxels(image: str, spacing: Sequence[float]) -> float:
    if Path(image).is_dir():
        return 512 * 512 * 300
    try:
        header: Any = nib.load(image).header
    except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{image}: not a readable NIfTI file ({error}): replace it or remove it.") from error
    sizes_mm = [n * mm for n, mm in zip(header.get_data_shape(), header.get_zooms(), strict=True)]
    targets = [to if to > 0 else mm for to, mm in zip(spacing, header.get_zooms(), strict=False)]
    return math.prod(size / target for size, target in zip(sizes_mm, targets, strict=False))
