"""Write masks as DICOM RT Structure Set: needs highdicom (extra `segment`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime

import numpy as np
from highdicom.base import SOPClass
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from pydicom.valuerep import DA, TM

from liverseg.files import atomic_write
from liverseg.io.dicom_series import normal_of
from liverseg.io.dicom_voxels import LPS_TO_RAS
from liverseg.outputs.codes import SCHEME, code_of
from liverseg.outputs.dicom_source import UTF_8, Source, made_by, new_series, source_of
from liverseg.outputs.outlines import outlines
from liverseg.outputs.segmentation import Segmentation

# Retired, and what the standard asks for here.
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Write a mask of a DICOM series as RT Structure Set, with an ROI for each class in it.

    The contours lie in the planes of the slices, halfway between voxels in and out, so that the
    voxels whose centres are in them are those of the mask. See `outlines` for holes.

    Source: DICOM PS3.3, A.19, C.8.8.5, C.8.8.6 and C.8.8.8.

    Args:
        segmentation: what to write.
        path: where.

    Raises:
        InputError: as `source_of`, and when it cannot be written; the old file is as it was.
    """
    source = source_of(segmentation, "an RT Structure Set")
    dataset = SOPClass(
        study_instance_uid=source.uids["StudyInstanceUID"],
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        # A contour may be longer than the 64 kB that an explicit one has for decimals.
        transfer_syntax_uid=ImplicitVRLittleEndian,
        **new_series(segmentation, "Structures"),
    )
    dataset.SpecificCharacterSet = UTF_8
    dataset.copy_patient_and_study_information(source.header)
    dataset.StudyInstanceUID = source.uids["StudyInstanceUID"]
    dataset.StructureSetLabel = "liverseg"
    dataset.StructureSetDescription = made_by(segmentation)
    now = datetime.now()
    dataset.StructureSetDate, dataset.StructureSetTime = DA(now.date()), TM(now.time())
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    names = {value: segmentation.name(value) for value in source.boxes}
    dataset.StructureSetROISequence = [
        _roi(number, name, source) for number, name in enumerate(names.values(), 1)
    ]
    dataset.ROIContourSequence = [
        _contours(number, segmentation, value, source) for number, value in enumerate(names, 1)
    ]
    dataset.RTROIObservationsSequence = [
        _observation(number, name) for number, name in enumerate(names.values(), 1)
    ]
    with atomic_write(path) as file:
        dataset.save_as(file, write_like_original=False)


def _frame_of_reference(source: Source) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.uids["SeriesInstanceUID"]
    series.ContourImageSequence = source.references()
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = source.uids["StudyInstanceUID"]
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.uids["FrameOfReferenceUID"]
    frame.RTReferencedStudySequence = [study]
    return frame


def _roi(number: int, name: str, source: Source) -> Dataset:
    roi = Dataset()
    roi.ROINumber, roi.ROIName = number, name[:64]
    roi.ReferencedFrameOfReferenceUID = source.uids["FrameOfReferenceUID"]
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    return roi


def _contours(number: int, segmentation: Segmentation, value: int, source: Source) -> Dataset:
    roi = Dataset()
    roi.ReferencedROINumber = number
    code = code_of(segmentation.name(value))
    if code.rgb:
        roi.ROIDisplayColor = list(code.rgb)
    roi.ContourSequence = []
    for k, points in _points(segmentation, value, source):
        contour = Dataset()
        contour.ContourImageSequence = [source.reference(source.series.slices[k])]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour.ContourData = [f"{number:.4f}" for number in points.ravel()]
        roi.ContourSequence.append(contour)
    return roi


def _points(
    segmentation: Segmentation, value: int, source: Source
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each polygon of a class: the number of its slice, and its points (N, 3), mm in LPS."""
    columns, rows, planes = source.boxes[value]
    to_lps = LPS_TO_RAS @ segmentation.affine
    corner = np.array([columns.start, rows.start])
    slices, normal = source.series.slices, normal_of(source.series.slices[0])
    for k in range(planes.start, planes.stop):
        for polygon in outlines(segmentation.mask[columns, rows, k] == value):
            index = np.insert(polygon + corner, 2, k, axis=1)
            points = index @ to_lps[:3, :3].T + to_lps[:3, 3]
            # Slices are as evenly spaced as the grid but for rounding: a contour lies in its own.
            yield k, points + np.outer((slices[k].position - points) @ normal, normal)


def _observation(number: int, name: str) -> Dataset:
    code = code_of(name)
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.ROIObservationLabel = name[:16]
    observation.RTROIInterpretedType = "" if code.region else "ORGAN"
    observation.ROIInterpreter = ""
    kind = CodedConcept(code.kind.value, SCHEME, code.kind.meaning)
    observation.RTROIIdentificationCodeSequence = [kind]
    return observation
