"""Find the slices in a DICOM file: what its header says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom_header import (
    begins_as_dicom,
    number_or_nan,
    numbers_of,
    read_dataset,
    uid_name,
    unreadable,
    value_of,
)
from liverseg.io.paths import DICOM_SUFFIXES

# These bear planes with a position, but are made from scans.
NO_SCANS = {
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "dose",
}
# Their slices have a position by definition: one that lacks it is a damaged scan, and not another
# kind of picture.
VOLUMES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.128.1",
}
# What tells the volumes of one series apart that lie at the same place, and for frames of one file
# the functional group that says it.
ACQUISITION = {
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "DiffusionDirectionality": "MRDiffusionSequence",
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "ImageType": "",
    "FrameType": "MRImageFrameTypeSequence",
    "SequenceName": "",
    "InversionTime": "",
    "TriggerTime": "",
    "KVP": "",
    "ConvolutionKernel": "",
    "AcquisitionNumber": "",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "AcquisitionTime": "",
    "SeriesTime": "",
}
SERIES = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
HEADER = [
    *SERIES,
    *(keyword for keyword, sequence in ACQUISITION.items() if not sequence),
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "InstanceNumber",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
# Where pydicom parses headers a thousand a second, an export of several series is parsed once and
# not for each.
REMEMBERED = 2**16


@dataclass(frozen=True, eq=False)
class Slice:
    """An image of a series: a file, or a frame of one.

    Attributes:
        file: where it is.
        frame: its place in the file, from 0.
        series: the same for all slices of a series.
        description: what people call the series.
        uid: SOPInstanceUID.
        size: rows, columns.
        position: ImagePositionPatient, (3,) mm in LPS: the centre of the first voxel.
        orientation: ImageOrientationPatient, (2, 3): the directions of a row and of a column,
            perpendicular.
        spacing: mm between rows, mm between columns.
        slope: with `intercept`, from what is stored to HU or intensities.
        intercept: see there.
        inverted: what is stored is the darker the larger it is.
        between_mm: SpacingBetweenSlices; NaN, as the next two, where there is none.
        thickness_mm: SliceThickness.
        number: InstanceNumber.
        acquisition: what tells volumes of one series apart, in the order of `ACQUISITION`.
        problem: why it cannot be placed, "" where it can; its position is unknown then.
        kind: what it is where it need not lie anywhere, "" for CT, MRI and PET.
    """

    file: Path
    frame: int
    series: tuple[str, ...]
    description: str
    uid: str
    size: tuple[int, int]
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    inverted: bool = False
    between_mm: float = np.nan
    thickness_mm: float = np.nan
    number: float = np.nan
    acquisition: tuple[str, ...] = ()
    problem: str = ""
    kind: str = ""

    @property
    def modality(self) -> str:
        """CT, MR, PT, or "" where the file does not say."""
        return self.series[SERIES.index("Modality")] if self.series else ""


def slices_of(file: Path) -> tuple[Slice, ...] | str:
    """Return a file's slices, without their pixels, or what it is if it is no part of a scan.

    Raises:
        DamagedError: for a DICOM file that cannot be read.
        InputError: without pydicom.
    """
    try:
        state = file.stat()
    except OSError as error:
        raise unreadable(file, str(error.strerror)) from error
    return _remembered(file, state.st_size, state.st_mtime_ns)


@lru_cache(REMEMBERED)
def _remembered(file: Path, size: int, mtime_ns: int) -> tuple[Slice, ...] | str:
    try:
        return _slices_of(file)
    except InputError:
        raise
    # Whatever a header holds that no writer should write.
    except Exception as error:
        raise unreadable(file, str(error)) from error


def _slices_of(file: Path) -> tuple[Slice, ...] | str:
    try:
        with file.open("rb") as stream:
            start: Any = stream.read(132)
    except OSError as error:
        raise unreadable(file, str(error.strerror)) from error
    if not begins_as_dicom(start):
        # By its name it is a slice of which nothing is left.
        if file.name.lower().endswith(DICOM_SUFFIXES) or (not start and "." not in file.name):
            raise unreadable(file, "it does not begin as one" if start else "it is empty")
        return "neither NIfTI nor DICOM"
    dataset = read_dataset(file, HEADER, pixels=False)
    kind = str(
        value_of(dataset, "SOPClassUID")
        or value_of(dataset.file_meta, "MediaStorageSOPClassUID")
        or ""
    )
    if kind in NO_SCANS:
        return NO_SCANS[kind]
    if not value_of(dataset, "Rows") or not value_of(dataset, "Columns"):
        if kind in VOLUMES or (not kind and start[128:] == b"DICM"):
            raise unreadable(file, "its header ends early")
        return uid_name(kind) if kind else "neither NIfTI nor DICOM"
    if "LOCALIZER" in (value_of(dataset, "ImageType") or ()):
        return "localiser"
    if value_of(dataset, "SamplesPerPixel") not in (None, 1):
        return "picture in colour"
    groups = value_of(dataset, "PerFrameFunctionalGroupsSequence") or ()
    frames = int(value_of(dataset, "NumberOfFrames") or 1)
    if len(groups) != frames and (groups or frames > 1):
        return f"{uid_name(kind)} whose frames have no positions"
    shared = next(iter(value_of(dataset, "SharedFunctionalGroupsSequence") or ()), None)
    return tuple(
        _slice(file, frame, kind, dataset, [part for part in (group, shared) if part is not None])
        for frame, group in enumerate(groups or [None])
    )


def _slice(file: Path, frame: int, kind: str, dataset: Any, groups: Sequence[Any]) -> Slice:
    def find(sequence: str, keyword: str) -> Any:
        """Return the data set that holds an element: the frame's, all frames', or the file's."""
        for group in groups:
            for item in group.get(sequence) or ():
                if keyword in item:
                    return item
        return dataset

    missing = np.zeros(3), np.zeros((2, 3)), np.zeros(2)
    try:
        place, axes, sizes = (
            numbers_of(find(sequence, keyword), keyword, count)
            for sequence, keyword, count in (
                ("PlanePositionSequence", "ImagePositionPatient", 3),
                ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
                ("PixelMeasuresSequence", "PixelSpacing", 2),
            )
        )
        slope, intercept = (
            numbers_of(
                find("PixelValueTransformationSequence", keyword), keyword, 1, default
            ).item()
            for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if value_of(dataset, "ModalityLUTSequence"):
            raise ValueError(
                "it has a ModalityLUTSequence, expected RescaleSlope and RescaleIntercept"
            )
        geometry = place, _perpendicular(axes.reshape(2, 3)), sizes
        if not (sizes > 0).all():
            raise ValueError(f"its PixelSpacing is {sizes.tolist()}, expected mm above 0")
        problem = ""
    except ValueError as error:
        geometry, slope, intercept, problem = missing, 1.0, 0.0, str(error)
    between_mm, thickness_mm, number = (
        number_or_nan(find("PixelMeasuresSequence", keyword), keyword)
        for keyword in ("SpacingBetweenSlices", "SliceThickness", "InstanceNumber")
    )
    description = (
        value_of(dataset, "SeriesDescription")
        or f"series {value_of(dataset, 'SeriesNumber') or 'without name'}"
    )
    modality = str(value_of(dataset, "Modality") or "")
    seen = value_of(dataset, "PhotometricInterpretation")
    return Slice(
        file,
        frame,
        tuple(str(value_of(dataset, keyword) or "") for keyword in SERIES),
        str(description),
        # Some take it out of the data set alone, to make it anonymous.
        str(
            value_of(dataset, "SOPInstanceUID")
            or value_of(dataset.file_meta, "MediaStorageSOPInstanceUID")
            or ""
        ),
        (int(dataset.Rows), int(dataset.Columns)),
        *geometry,
        slope,
        intercept,
        # HU are HU however they are shown.
        inverted=seen == "MONOCHROME1" and modality != "CT",
        between_mm=between_mm,
        thickness_mm=thickness_mm,
        number=number,
        acquisition=tuple(
            str(value_of(find(sequence, keyword), keyword))
            for keyword, sequence in ACQUISITION.items()
        ),
        problem=problem,
        kind="" if kind in VOLUMES else uid_name(kind),
    )


def _perpendicular(axes: np.ndarray) -> np.ndarray:
    """Return two directions (2, 3) as unit vectors, with a right angle where rounding spoilt it."""
    lengths = np.linalg.norm(axes, axis=1)
    if (np.abs(lengths - 1) > 0.01).any() or abs(axes[0] @ axes[1]) > 2e-3:
        raise ValueError(
            f"its ImageOrientationPatient is {axes.ravel().tolist()}, "
            "expected perpendicular directions"
        )
    row = axes[0] / lengths[0]
    column = axes[1] - (axes[1] @ row) * row
    return np.array([row, column / np.linalg.norm(column)])
