"""Describe how a data set lies on disk: its cases, its layout, and how to find its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from liverseg.errors import InputError

LIVER_AND_LESION = {"0": "background", "1": "liver", "2": "lesion"}


class Volume(NamedTuple):
    """The content of a case of DICOM files.

    Attributes:
        image: (X, Y, Z), HU or intensities.
        label: (X, Y, Z), uint8.
        affine: (4, 4), voxel index to RAS mm.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Case:
    """One scan with its label, where the data set has them.

    Attributes:
        name: unique in the data set, and the name of the files that are written.
        patient: the same for all scans of a patient.
        image: NIfTI file, or folder (or zip) of a DICOM series.
        label: NIfTI file, or what `Layout.read` takes.
    """

    name: str
    patient: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        name: the command's name.
        modality: "ct" or "mr", None where the scans must tell.
        labels: name of each value in the labels.
        find: lists the cases below a folder; raises InputError where the layout is another.
        read: reads the image and the label of a case; None where they are NIfTI already, and stay
            where they are.
    """

    name: str
    modality: str | None
    labels: Mapping[str, str]
    find: Callable[[Path], list[Case]]
    read: Callable[[Path, Path], Volume] | None = None


def by_number(path: Path) -> list[str | int]:
    """Return a key that sorts file names with their numbers as numbers: 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def first_folder(root: Path, *candidates: str) -> Path:
    """Return the first of the patterns below `root` that is a folder.

    Raises:
        InputError: when none is.
    """
    for candidate in candidates:
        for folder in sorted(root.glob(candidate)) if candidate != "." else [root]:
            if folder.is_dir():
                return folder
    raise InputError(
        f"{root}: no folder {candidates[0]} in it, expected the data set as it is downloaded and "
        "unpacked: name the folder that holds it."
    )


def not_empty(cases: list[Case], root: Path, expected: str) -> list[Case]:
    """Return `cases`, sorted by number.

    Raises:
        InputError: when there is none.
    """
    if not cases:
        raise InputError(
            f"{root}: no case in it, expected {expected}: name the folder that holds the data set."
        )
    return sorted(cases, key=lambda case: by_number(Path(case.name)))


def check_own(path: Path, name: str) -> None:
    """Refuse to write over a datalist of another data set, or of one as it was downloaded.

    Args:
        path: the file to write.
        name: of the data set; a datalist of this project says it, and the fold of each scan.

    Raises:
        InputError: naming what is there.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, folds = content.get("name"), all("fold" in item for item in content["training"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        found, folds = None, False
    if found != name or not folds:
        raise InputError(
            f"{path}: a datalist of {found or 'something else'} is there, expected none or that of "
            f"{name} as it was written here: choose another place with --out."
        )
