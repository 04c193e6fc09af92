"""Read the stored pixels of a DICOM file, and which of them stand for no measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom_header import read_dataset, uid_name, unreadable, value_of

RLE_LOSSLESS = "1.2.840.10008.1.2.5"
PIXELS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelData",
]


def read_pixels(file: Path, inverted: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the integers (frames, rows, columns) of a file, and which stand for no measurement.

    Args:
        file: where it is.
        inverted: exchange dark and bright.

    Raises:
        InputError: for pixels that are damaged, or compressed in a way that no decoder is installed
            for.
    """
    dataset = read_dataset(file, PIXELS, pixels=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        explicit = ExplicitVRLittleEndian if dataset.is_little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if dataset.is_implicit_VR else explicit
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        stored = dataset.pixel_array
    # Whatever a codec raises.
    except Exception as error:
        name = uid_name(str(syntax))
        # pydicom counts pylibjpeg as a decoder of all JPEG, whatever plugins it has.
        lacking = isinstance(error, NotImplementedError) or "plugin" in str(error)
        if syntax.is_compressed and lacking:
            raise InputError(
                f"{file}: its pixels are compressed as {name}, for which no decoder is installed: "
                "pip install python-gdcm, or export the series uncompressed."
            ) from error
        raise unreadable(file, f"{name}: {error}") from error
    stored = stored.reshape(-1, *stored.shape[-2:]).astype(
        stored.dtype.newbyteorder("="), copy=False
    )
    padding = _padding(file, dataset, stored)
    bits = int(dataset.BitsAllocated)
    unused = bits - (_number(file, dataset, "BitsStored") or bits)
    if unused < 0:
        raise unreadable(file, f"its BitsStored is {bits - unused}, its BitsAllocated {bits}")
    # JPEG knows of no others; RLE packs all bytes as they are.
    if unused and (not syntax.is_compressed or syntax == RLE_LOSSLESS):
        # Bits above those stored may hold anything, as overlays, and need not repeat the sign.
        stored = (stored.view(f"u{bits // 8}") << unused).view(stored.dtype) >> unused
    if inverted:
        stored = (
            ~stored
            if stored.dtype.kind == "i"
            else np.iinfo(stored.dtype).max // 2**unused - stored
        )
    return stored, padding


def _padding(file: Path, dataset: Any, stored: np.ndarray) -> np.ndarray | None:
    value, limit = (
        _number(file, dataset, keyword)
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    if value is None:
        return None
    # Some write it unsigned where the pixels are signed.
    first, last = np.array([value, value if limit is None else limit]).astype(stored.dtype)
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _number(file: Path, dataset: Any, keyword: str) -> int | None:
    try:
        value = value_of(dataset, keyword)
        # Some write 32 bits, which read as two values of 16, the lower bits first.
        return None if value in (None, "") else int(np.ravel(value)[0])
    # Read without it, the voxels would be others.
    except (TypeError, ValueError, OverflowError) as error:
        raise unreadable(file, f"its {keyword} is damaged") from error
