"""Read the slices of one DICOM series as a volume with its affine, and refuse a series with gaps."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from liverseg.errors import InputError
from liverseg.workbench.datasets.layout import by_number

Folder = Path | zipfile.Path
# LPS, the axes of DICOM, to RAS, those of NIfTI.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Steps between slices that differ by more than this share of the median step: a slice is missing, or is there twice.
STEP_TOLERANCE = 0.1


@dataclass(frozen=True)
class Slice:
    """One image of a series.

    Attributes:
        name: the file's name.
        pixels: (rows, columns), rescaled to HU where the file says how.
        position: ImagePositionPatient, (3,) mm in LPS, or None.
        orientation: ImageOrientationPatient, (2, 3): along the columns' index, along the rows' index; or None.
        spacing: mm between rows, mm between columns; or None.
    """

    name: str
    pixels: np.ndarray
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: np.ndarray | None


def require_pydicom() -> None:
    """Raise InputError where pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            "pydicom is not installed, expected it for a data set of DICOM files: pip install pydicom pylibjpeg "
            "pylibjpeg-openjpeg."
        ) from error


def open_folder(path: Path) -> Folder:
    """The folder `path`, or what lies in `path`.zip; a folder that holds nothing but its namesake is stepped into.

    Raises:
        InputError: when neither is there, or the zip cannot be read.
    """
    archive = path.with_name(f"{path.name}.zip")
    if path.is_dir():
        folder: Folder = path
    elif archive.is_file():
        try:
            folder = zipfile.Path(archive)
        except zipfile.BadZipFile as error:
            raise InputError(f"{archive}: not a whole zip file ({error}): download it again.") from error
    else:
        raise InputError(f"{path}: there is no such folder, nor {archive.name}: unpack the data set again.")
    while (inner := folder / path.name).is_dir():
        folder = inner
    return folder


def visible(folder: Folder) -> list[Folder]:
    """What lies in `folder`, sorted by number, without hidden files such as the `._…` of macOS."""
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=by_number)


def read_slices(folder: Folder) -> list[Slice]:
    """Read every file in `folder` as one slice, in the order of their names.

    Raises:
        InputError: when there is none, a file is no DICOM image, or the slices differ in size or orientation.
    """
    slices = [_read_slice(path) for path in visible(folder) if path.is_file()]
    if not slices:
        raise InputError(f"{folder}: no DICOM file in it, expected one series: unpack the data set again.")
    first = slices[0]
    for other in slices[1:]:
        for what, found, expected in (
            ("size", other.pixels.shape, first.pixels.shape),
            ("orientation", other.orientation, first.orientation),
            ("spacing", other.spacing, first.spacing),
        ):
            if not _equal(found, expected):
                raise InputError(
                    f"{folder}: the {what} of {other.name} is {found}, that of {first.name} is {expected}, "
                    "expected one series: take out the files of other series."
                )
    return slices


def _equal(found: ArrayLike | None, expected: ArrayLike | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return np.allclose(found, expected, rtol=0, atol=1e-4)


def _read_slice(path: Folder) -> Slice:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset = dcmread(io.BytesIO(path.read_bytes()))
        pixels = dataset.pixel_array.astype(np.float32)
    # What a codec or a broken header raises is of any kind.
    except (
        InvalidDicomError,
        AttributeError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        EOFError,
        OSError,
    ) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"{path}: not readable as a DICOM image ({reason}): download it again.") from error
    if pixels.ndim != 2:
        raise InputError(
            f"{path}: its pixels have the shape {pixels.shape}, expected one grey slice: take it out of the folder."
        )
    pixels = pixels * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))

    def numbers(keyword: str) -> np.ndarray | None:
        value = dataset.get(keyword)
        return None if not value else np.array([float(number) for number in value])

    orientation = numbers("ImageOrientationPatient")
    return Slice(
        path.name,
        pixels,
        numbers("ImagePositionPatient"),
        None if orientation is None else orientation.reshape(2, 3),
        numbers("PixelSpacing"),
    )


def order_and_affine(slices: Sequence[Slice], folder: Folder) -> tuple[list[int], np.ndarray]:
    """Sort slices by where they lie: their indices from the first to the last, and the affine of the volume to RAS mm.

    Raises:
        InputError: for slices without a position, a slice that is missing, or one that is there twice.
    """
    lacking = [each.name for each in slices if any(v is None for v in (each.position, each.orientation, each.spacing))]
    if lacking or len(slices) < 2:
        found = f"{lacking[0]} lacks its position, orientation or spacing" if lacking else "there is but one slice"
        raise InputError(f"{folder}: {found}, expected the slices of one volume: download the series again.")
    positions, orientation, spacing = np.array([s.position for s in slices]), slices[0].orientation, slices[0].spacing
    assert orientation is not None and spacing is not None
    # From foot to head where the slices are axial, whatever the order in which the scanner took them.
    normal = np.cross(*orientation)
    heights = positions @ normal
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    steps = np.diff(heights[order])
    median = float(np.median(steps))
    if median < 1e-3 or (uneven := np.abs(steps - median) > STEP_TOLERANCE * median).any():
        worst = 0 if median < 1e-3 else int(uneven.argmax())
        raise InputError(
            f"{folder}: {steps[worst]:.2f} mm between {slices[order[worst]].name} and {slices[order[worst + 1]].name}, "
            f"{median:.2f} mm between most slices, expected the same everywhere: a slice is missing or there twice; "
            "download the series again."
        )
    affine = np.eye(4)
    affine[:3, 0] = orientation[0] * spacing[1]
    affine[:3, 1] = orientation[1] * spacing[0]
    affine[:3, 2] = (positions[order[-1]] - positions[order[0]]) / (len(slices) - 1)
    affine[:3, 3] = positions[order[0]]
    return order, LPS_TO_RAS @ affine


def stack(planes: Sequence[np.ndarray], order: Sequence[int]) -> np.ndarray:
    """(rows, columns) planes as a volume (columns, rows, slices): the array axes of the affine."""
    return np.stack([planes[index].T for index in order], axis=-1)
