"""Which files are scans, and what they are called: one rule for all that lists, reads or names them."""

from __future__ import annotations

import os
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
DICOM_SUFFIXES = (".dcm",)


def is_hidden(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is no one's scan, as what macOS writes: `.DS_Store`, `._scan.nii.gz`, `__MACOSX`."""
    name = Path(path).name
    return name.startswith(".") or name == "__MACOSX"


def nifti_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a NIfTI file as it stands in its name, `.nii.gz` or `.NII`; "" for any other name."""
    return _suffix(path, NIFTI_SUFFIXES)


def stem_of(path: str | os.PathLike[str]) -> str:
    """The name of a scan's file or folder without the suffix of a NIfTI or DICOM file.

    Other dots stay: `case.001.nii.gz` is `case.001`, and the folder `1.2.840.1` is `1.2.840.1`.
    """
    return Path(path).name.removesuffix(_suffix(path, (*NIFTI_SUFFIXES, *DICOM_SUFFIXES)))


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path; a link stays what it is called, and does not become what it points to."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _suffix(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> str:
    name = Path(path).name
    found = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[len(name) - len(found) :] if 0 < len(found) < len(name) else ""
