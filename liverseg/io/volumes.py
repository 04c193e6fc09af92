"""Read a scan or a label from wherever it lies: the one way in for bundles, data sets, reports and the label server."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

from liverseg.errors import InputError
from liverseg.io.nifti import read_nifti
from liverseg.io.paths import nifti_suffix
from liverseg.io.volume import Volume

# Every LoadImage warns that this optional GPU decoder is not installed.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def read_volume(path: str) -> Volume:
    """Read a NIfTI file, or a folder with one DICOM series (extra `dicom`).

    Raises:
        InputError: for a missing or unreadable file, and as `read_nifti`.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: there is no such file: mend the path or remove the scan.")
    if nifti_suffix(path):
        return read_nifti(path)
    try:
        return read_series(path)
    # Readers and codecs raise whatever they like for a file that is no image, or only the beginning of one.
    except Exception as error:
        raise InputError(
            f"{path}: not readable as a volume ({_reason(error)}), expected a whole NIfTI file or a folder "
            "with one DICOM series (which needs liverseg[dicom]): replace it or remove the scan."
        ) from error


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
