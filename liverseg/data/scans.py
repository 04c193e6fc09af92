"""Find the scans that a user points at, and what they will take in memory."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from liverseg.data.datalist import load_datalist
from liverseg.errors import InputError
from liverseg.io.dicom import describe, find_series
from liverseg.io.dicom_series import Series
from liverseg.io.masks import recorded_masks
from liverseg.io.paths import LeftOut, absolute, is_hidden, stem_of, volume_suffix, walk
from liverseg.io.volumes import read_volume_grid

logger = logging.getLogger(__name__)

# What data sets call the masks that lie beside their scans, in their own file or folder, and what
# comes after the name of a scan in that of its mask, as `MaskFolder` writes it too.
MASKS = re.compile(
    r"(.*[-_ .])?(segs?|segmentations?|masks?|labels?(tr|va|ts)?|gt|ground.?truth)([-_ .]?\d+)?",
    re.I,
)
OF_A_SCAN = re.compile(
    r"([-_ .]?(pred|auto|liver|lesions?|tumou?rs?|organs?|spleen|kidneys?|[lr]k))+", re.I
)


def find_scans(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """List the scans of `path` as items `{"image": absolute path}`; links keep their own names.

    What else lies there is named in one line of the log: masks, those that a run has written
    (`MaskFolder`) and those called as such, files with a volume further down, what is no scan.

    Args:
        path: a NIfTI, NRRD or MetaImage file; a file of a DICOM series, which stands for the whole;
            a folder with a `dataset.json` (its `test` section is taken); or a folder with such
            files, or of folders with some where it holds none itself, and with DICOM series,
            however deep they lie.

    Raises:
        InputError: when nothing is there, or nothing in it is a scan.
    """
    root = absolute(path)
    if not root.exists():
        raise InputError(
            f"{root}: there is no such file or folder: set dataset_dir to a "
            "scan or a folder of scans."
        )
    if root.is_file():
        return [{"image": str(root)}]
    if (root / "dataset.json").is_file():
        return [
            {"image": item["image"]}
            for item in load_datalist(root / "dataset.json", "test", labelled=False)
        ]
    files = _volume_files(root)
    if not files:
        files = [
            file for folder in _visible(root) if folder.is_dir() for file in _volume_files(folder)
        ]
    series, left_out = find_series(root)
    masks = {
        file
        for file in files
        if any(MASKS.fullmatch(name) for name in (stem_of(file), file.parent.name))
    }
    masks |= _drawn_on(files, series)
    # Where they are all there is, they are what is meant.
    masks = masks if series or len(masks) < len(files) else set()
    if masks:
        left_out["mask"] += sorted(masks)
    listed = set(files)
    for folder, inside in walk(root, LeftOut(list)):
        made = recorded_masks(folder)
        for file in inside:
            if volume_suffix(file) and file not in listed:
                left_out[
                    "mask of an earlier run"
                    if file.name in made
                    else "file with a volume further down"
                ].append(file)
    scans = [str(file) for file in files if file not in masks] + sorted(
        {each.path for each in series}
    )
    if not scans:
        found = f" (only {describe(left_out)})" if left_out else ""
        raise InputError(
            f"{root}: no scan in it{found}, expected NIfTI, NRRD or MetaImage files in it or "
            "one folder below, or DICOM series: name the folder that holds them."
        )
    if left_out:
        logger.warning("%s: %d scans; left out: %s.", root, len(scans), describe(left_out))
    return [{"image": scan} for scan in scans]


def _drawn_on(files: Sequence[Path], series: Sequence[Series]) -> set[Path]:
    """Return the files whose name is that of a scan beside them and then that of organs."""
    scans = [*files, *(Path(one.path) for one in series)]
    known = {(scan.parent, stem_of(scan)) for scan in scans}
    ends = [(file, stem_of(file)) for file in files]
    return {
        file
        for file, name in ends
        if any(
            (file.parent, name[:at]) in known and OF_A_SCAN.fullmatch(name[at:])
            for at in range(1, len(name))
        )
    }


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path))
    except OSError:
        return []  # named by `find_series`


def _volume_files(folder: Path) -> list[Path]:
    """Return the files that no run has made from scans."""
    made = recorded_masks(folder)
    return [
        file
        for file in _visible(folder)
        if volume_suffix(file) and not (file.is_dir() or file.name in made)
    ]


def cache_num(
    data: Sequence[Mapping[str, Any]], cache_gb: float, spacing: Sequence[float] = (-1, -1, -1)
) -> int:
    """Return how many of the first items of `data` fit in `cache_gb`, resampled to `spacing`.

    For `monai.data.CacheDataset(cache_num=…)`, which bounds a count and not bytes. Sizes come from
    the files' headers: 4 bytes a voxel for the image and 1 for the label.

    Args:
        data: items with `image`.
        cache_gb: the bound in 10⁹ bytes.
        spacing: mm per axis after resampling; −1 keeps the axis.

    Raises:
        InputError: for an image whose header cannot be read.
    """
    left = cache_gb * 1e9
    for count, item in enumerate(data):
        left -= 5 * _voxels(str(item["image"]), spacing)
        if left < 0:
            return count
    return len(data)


def _voxels(image: str, spacing: Sequence[float]) -> float:
    scan = read_volume_grid(image)
    spacing_mm = nib.affines.voxel_sizes(scan.affine)
    sizes_mm = scan.array.shape * spacing_mm
    targets = [to if to > 0 else mm for to, mm in zip(spacing, spacing_mm, strict=True)]
    return math.prod(size / target for size, target in zip(sizes_mm, targets, strict=True))
