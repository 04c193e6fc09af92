"""Read elements of a DICOM header, also where they are damaged.

Needs pydicom (extra `dicom`), which is imported where a file is one of DICOM and not before.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from liverseg.errors import InputError


class DamagedError(InputError):
    """A file that may be a slice cannot be read."""


def require_pydicom(path: Path) -> None:
    """Raise InputError where pydicom, which the DICOM files at `path` need, is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path}: pydicom is not installed, expected it for DICOM files: pip install pydicom "
            "pylibjpeg pylibjpeg-openjpeg."
        ) from error


def begins_as_dicom(start: bytes) -> bool:
    """Return whether the first 132 bytes are those of a DICOM file, with or without preamble."""
    if start[128:] == b"DICM":
        return True
    if len(start) < 132:
        return False
    # Without it, the first element is of the group 2 or 8.
    for order in "<>":
        group, element, kind, _ = struct.unpack(f"{order}HH2sH", start[:8])
        (length,) = struct.unpack(f"{order}L", start[4:8])
        if (
            group in (2, 8)
            and element < 0x100
            and (re.fullmatch(rb"[A-Z]{2}", kind) or length < 1000)
        ):
            return True
    return False


def read_dataset(file: Path, tags: list[str], pixels: bool) -> Any:
    """Return some tags of a file, whatever else is in it.

    Raises:
        DamagedError: for a file that cannot be parsed.
        InputError: without pydicom.
    """
    require_pydicom(file)
    from pydicom import dcmread

    try:
        with file.open("rb") as stream:
            return dcmread(stream, stop_before_pixels=not pixels, specific_tags=tags, force=True)
    # Whatever a broken header makes the parser raise.
    except Exception as error:
        raise unreadable(file, str(error)) from error


def unreadable(file: Path, reason: str) -> DamagedError:
    """Return the error for a file that may be a slice and cannot be read."""
    lines = reason.strip().splitlines() or ["damaged"]
    return DamagedError(
        f"{file}: not readable as a DICOM image ({lines[0].rstrip('.')}), "
        "expected a whole file: replace it."
    )


def value_of(dataset: Any, keyword: str) -> Any:
    """Return the value of an element; None where there is none.

    Raises:
        ValueError: for one that is damaged, which is not one that is absent.
    """
    try:
        return dataset.get(keyword)
    # Whatever pydicom raises.
    except Exception as error:
        raise ValueError(f"its {keyword} is damaged") from error


def numbers_of(dataset: Any, keyword: str, count: int, default: float | None = None) -> np.ndarray:
    """Read `count` decimal numbers of any length: pydicom asks for 16 characters at most.

    Raises:
        ValueError: for damaged ones, and for absent ones without `default`.
    """
    if keyword not in dataset:
        if default is None:
            raise ValueError(f"it has no {keyword}")
        return np.full(count, default)
    value = dataset.get_item(keyword).value
    text = (value or b"").decode("latin-1") if isinstance(value, bytes | None) else str(value)
    try:
        numbers = np.array([float(part) for part in text.rstrip("\0 ").split("\\")])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(
            f"its {keyword} is {text.strip()!r}, expected {count} number{'s' * (count > 1)}"
        )
    return numbers


def number_or_nan(dataset: Any, keyword: str) -> float:
    """Return a number on which only a warning rests: odd ones are as good as none."""
    try:
        return float(numbers_of(dataset, keyword, 1, np.nan)[0])
    except ValueError:
        return np.nan


def uid_name(uid: str) -> str:
    """Return what DICOM calls a kind of file or compression."""
    from pydicom.uid import UID

    return UID(uid).name.removesuffix(" Storage") if uid else "DICOM file of no kind"
