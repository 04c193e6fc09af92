"""Tell which files are scans, and what they are called, for all that lists, reads or names them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm",)

# Files that are no scans, by what they are.
LeftOut = defaultdict[str, list[Path]]


def is_hidden(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is no scan, as those of macOS: `.DS_Store`, `._scan.nii.gz`."""
    name = Path(path).name
    return name.startswith(".") or name == "__MACOSX"


def nifti_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a NIfTI file as its name has it, `.nii.gz` or `.NII`; "" of others."""
    return _suffix(path, NIFTI_SUFFIXES)


def volume_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a file that holds a volume, NIfTI, NRRD or MetaImage; "" of others."""
    return _suffix(path, (*NIFTI_SUFFIXES, *ITK_SUFFIXES))


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return the name of a scan's file or folder without the suffix of a volume or DICOM file.

    Other dots stay: `case.001.nii.gz` is `case.001`, and the folder `1.2.840.1` is `1.2.840.1`.
    """
    return Path(path).name.removesuffix(
        _suffix(path, (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES))
    )


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path; a link keeps its name and does not become what it points to."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def walk(folder: Path, left_out: LeftOut) -> Iterator[tuple[Path, list[Path]]]:
    """Yield, folder by folder, the files that are not hidden, in the order of their names.

    Args:
        folder: where to begin.
        left_out: takes the folders that may not be opened.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            state = place.stat()
            # A link may lead back to a folder above it.
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            inside = {
                path: path.is_dir() for path in sorted(place.iterdir()) if not is_hidden(path)
            }
        except OSError:
            left_out["folder that may not be opened"].append(place)
            continue
        waiting += reversed([path for path, is_folder in inside.items() if is_folder])
        yield place, [path for path, is_folder in inside.items() if not is_folder]


def _suffix(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> str:
    name = Path(path).name
    found = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[len(name) - len(found) :] if 0 < len(found) < len(name) else ""
