"""Write masks as DICOM Segmentation: needs highdicom (extra `segment`)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.seg import Segmentation as DicomSegmentation
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds
from skimage.color import rgb2lab

import liverseg
from liverseg.files import atomic_write
from liverseg.io.dicom_voxels import unstack
from liverseg.outputs.codes import SCHEME, Code, code_of
from liverseg.outputs.dicom_source import NAME, UTF_8, Source, made_by, new_series, source_of
from liverseg.outputs.segmentation import Segmentation

ARTIFICIAL_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")
# Of a data set that goes with each slice; what is empty comes from the files' header later, in
# whatever state it is.
PATIENT = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


def write_dicom_seg(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Write a mask of a DICOM series as DICOM SEG, BINARY, with a segment for each class in it.

    Its frames are the slices of the series on which there is something, each of the slice's size
    and at its place, as viewers ask for that lay it over them. Where the gantry was tilted, so that
    the mask's grid is not that of the slices, each pixel is the nearest voxel of the mask.

    Source: DICOM PS3.3, A.51 and C.8.20.2.

    Args:
        segmentation: what to write.
        path: where.

    Raises:
        InputError: as `source_of`, and when it cannot be written; the old file is as it was.
    """
    source = source_of(segmentation, "a DICOM SEG")
    slices = source.series.slices
    numbers = np.zeros(256, np.uint8)
    numbers[list(source.boxes)] = np.arange(1, len(source.boxes) + 1)
    planes = np.stack([numbers[plane] for plane in unstack(source.series, segmentation.mask)])
    dataset = DicomSegmentation(
        source_images=[_image(source, number) for number in range(len(slices))],
        pixel_array=planes,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(segmentation, number, segmentation.name(value))
            for number, value in enumerate(source.boxes, 1)
        ],
        content_label="SEGMENTATION",
        content_description=made_by(segmentation)[:64],
        **new_series(segmentation, "Segmentation"),
    )
    dataset.SpecificCharacterSet = UTF_8
    dataset.copy_patient_and_study_information(source.header)
    dataset.StudyInstanceUID = source.uids["StudyInstanceUID"]
    _refer(dataset, source)
    with atomic_write(path) as file:
        dataset.save_as(file, write_like_original=False)


def _image(source: Source, number: int) -> Dataset:
    """Return a slice as an image of its own, for highdicom, which knows enhanced files less well.

    Its SOPInstanceUID is its number, for `_refer`.
    """
    slices = source.series.slices
    each, normal = slices[number], np.cross(*slices[number].orientation)
    apart_mm = float((slices[-1].position - slices[0].position) @ normal) / (len(slices) - 1)
    image = Dataset()
    for keyword in PATIENT:
        setattr(image, keyword, "")
    for keyword, uid in source.uids.items():
        setattr(image, keyword, uid)
    image.Modality = each.modality
    image.SOPClassUID, image.SOPInstanceUID = source.image_class, f"1.{number + 1}"
    image.Rows, image.Columns = each.size
    image.ImagePositionPatient = _decimals(each.position)
    image.ImageOrientationPatient = _decimals(each.orientation.ravel())
    image.PixelSpacing = _decimals(each.spacing)
    image.SpacingBetweenSlices = _decimals([apart_mm])[0]
    thickness_mm = each.thickness_mm if each.thickness_mm > 0 else apart_mm
    image.SliceThickness = _decimals([thickness_mm])[0]
    return image


def _refer(dataset: Dataset, source: Source) -> None:
    """Put references to the slices in the place of their numbers."""
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        number = int(reference.ReferencedSOPInstanceUID.removeprefix("1."))
        reference.update(source.reference(source.series.slices[number - 1]))
    dataset.SourceImageSequence = source.references()
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = source.references()


def _describe(segmentation: Segmentation, number: int, name: str) -> SegmentDescription:
    code = code_of(name)
    description = SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=_concept(code.category),
        segmented_property_type=_concept(code.kind),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=segmentation.bundle or NAME,
            family=ARTIFICIAL_INTELLIGENCE,
            version=segmentation.version or liverseg.__version__,
        ),
        anatomic_regions=[_concept(code.region)] if code.region else None,
    )
    if code.side:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(code.side)]
    if code.rgb:
        # From 0…100, -128…127 and -128…127.
        lab = (rgb2lab(np.array(code.rgb) / 255) + np.array([0, 128, 128])) / [100, 255, 255]
        description.RecommendedDisplayCIELabValue = np.rint(lab * 65535).astype(int).tolist()
    return description


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, SCHEME, code.meaning)


def _decimals(numbers: Sequence[float] | np.ndarray) -> list[str]:
    """Write numbers in the 16 characters that DICOM has for one."""
    return [format_number_as_ds(float(number)) for number in numbers]
