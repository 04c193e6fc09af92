"""Read a scan or a label from wherever it lies: the one way in for bundles, data sets, reports and the label server."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from liverseg.errors import InputError
from liverseg.io.paths import nifti_suffix

# Every LoadImage warns that this optional GPU decoder is not installed.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Volume:
    """A volume as it lies in its file.

    Attributes:
        array: (H, W, D), HU or intensities or label values; more axes where the file has more.
        affine: (4, 4), voxel index to RAS mm.
        warnings: what the person who gave the file should know, one sentence each.
    """

    array: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()


def read_volume(path: str) -> Volume:
    """Read a NIfTI file, or a folder with one DICOM series (extra `dicom`).

    Raises:
        InputError: for a missing or unreadable file.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: there is no such file: mend the path or remove the scan.")
    try:
        return read_nifti(path) if nifti_suffix(path) else read_series(path)
    # Readers and codecs raise whatever they like for a file that is no image, or only the beginning of one.
    except Exception as error:
        raise InputError(
            f"{path}: not readable as a volume ({_reason(error)}), expected a whole NIfTI file or a folder "
            "with one DICOM series (which needs pydicom): replace it or remove the scan."
        ) from error


def read_nifti(path: str) -> Volume:
    """Read a NIfTI file."""
    image: Any = nib.load(path)
    return Volume(np.asanyarray(image.dataobj), image.affine)


def read_series(path: str) -> Volume:
    """Read a folder with one DICOM series."""
    from monai.transforms import LoadImage

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
        volume = LoadImage("PydicomReader")(path)
    return Volume(volume.numpy(), volume.affine.numpy())


def _reason(error: BaseException) -> str:
    # LoadImage reports what its readers raised as text: tracebacks, each ending with the exception and its message.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [number for number, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return " ".join(lines[raised[-1] if raised else 0 :]).rstrip(".") or type(error).__name__
