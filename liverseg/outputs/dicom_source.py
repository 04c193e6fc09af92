"""The DICOM series that a mask is of, for the DICOM files that refer to it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, generate_uid

import liverseg
from liverseg.errors import InputError
from liverseg.io.dicom import series_at
from liverseg.io.dicom_series import Series, name_of
from liverseg.io.dicom_slices import SERIES, Slice, slices_of
from liverseg.io.dicom_voxels import grid_of
from liverseg.io.volume import largest_offset_mm
from liverseg.outputs.segmentation import Segmentation, boxes_of

logger = logging.getLogger(__name__)

NAME = "liverseg"
SERIES_NUMBER = 300
SAME_MM = 0.01
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
UTF_8 = "ISO_IR 192"


@dataclass(frozen=True)
class Source:
    """A series, and the classes of its mask.

    Attributes:
        series: where its slices lie.
        header: of its first file, without pixels.
        uids: StudyInstanceUID, SeriesInstanceUID and FrameOfReferenceUID, which all slices share.
        image_class: SOPClassUID of its files.
        boxes: where each value lies in the mask.
    """

    series: Series
    header: Dataset
    uids: dict[str, str]
    image_class: str
    boxes: dict[int, tuple[slice, ...]]

    def reference(self, each: Slice) -> Dataset:
        """Return a reference to a slice: to its file, and to its frame where there are several."""
        reference = self._reference(each)
        if any(other.frame for other in self.series.slices):
            reference.ReferencedFrameNumber = each.frame + 1
        return reference

    def references(self) -> list[Dataset]:
        """Return a reference to each of its files."""
        files = {each.uid: each for each in self.series.slices}
        return [self._reference(each) for each in files.values()]

    def _reference(self, each: Slice) -> Dataset:
        reference = Dataset()
        reference.ReferencedSOPClassUID = self.image_class
        reference.ReferencedSOPInstanceUID = each.uid
        return reference


def source_of(segmentation: Segmentation, kind: str) -> Source:
    """Find the series that a mask is of.

    Args:
        segmentation: the mask.
        kind: what is to be written, for messages.

    Raises:
        InputError: for a scan that is no DICOM series, or none that DICOM can refer to; for a mask
            on another grid, or without any voxel of a class.
    """
    path = Path(segmentation.scan)
    if path.is_file() and isinstance(slices_of(path), str):
        raise InputError(
            f"{path}: found no DICOM series, expected one, as {kind} refers to its files: write "
            "NIfTI or NRRD instead, or segment the DICOM files."
        )
    series = series_at(path)
    first = series.slices[0]
    header = dcmread(first.file, stop_before_pixels=True, force=True)
    image_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    nameless = [each for each in series.slices if not (each.uid and image_class)]
    if nameless:
        raise InputError(
            f"{path}: found no SOPClassUID or no SOPInstanceUID in {name_of(nameless[0])}, "
            f"expected both, as {kind} refers to them: export the series again, or write NIfTI "
            "or NRRD instead."
        )
    # highdicom copies what is of the patient and the study by them, and knows no private classes.
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, first.uid
    shape, affine = grid_of(series)
    mask = segmentation.mask
    if mask.shape != shape or largest_offset_mm(shape, affine, segmentation.affine) > SAME_MM:
        raise InputError(
            f"{path}: found a mask of {'×'.join(map(str, mask.shape))} voxels on another grid, "
            f"expected that of the series, {'×'.join(map(str, shape))}: segment the series itself."
        )
    boxes = boxes_of(mask)
    if not boxes:
        raise InputError(
            f"{path}: found no voxel of any class in its mask, expected some, as {kind} without a "
            "segment is not valid: write NIfTI or NRRD instead."
        )
    uids = {keyword: _uid(series, keyword) for keyword in UIDS}
    made_up = [keyword for keyword in UIDS if uids[keyword] not in first.series]
    if made_up:
        logger.warning(
            "%s: its files have no %s: %s of it has new ones, by which no program finds the scan.",
            path,
            " and no ".join(made_up),
            kind,
        )
    return Source(series, header, uids, str(image_class), boxes)


def _uid(series: Series, keyword: str) -> str:
    """Return a UID of a series; where it has none, one that is always the same for it."""
    found = {each.series[SERIES.index(keyword)] for each in series.slices}
    if len(found) > 1:
        raise InputError(
            f"{series.path}: found {len(found)} {keyword} in its files, expected one for what "
            "refers to them: export the series again, or write NIfTI or NRRD instead."
        )
    return found.pop() or generate_uid(entropy_srcs=[keyword, series.slices[0].uid])


def new_series(segmentation: Segmentation, kind: str) -> dict[str, Any]:
    """Return what highdicom wants to know of an instance that is a series by itself."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": SERIES_NUMBER,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": segmentation.bundle or NAME,
        "software_versions": liverseg.__version__,
        # Demanded, and software has none.
        "device_serial_number": "0",
        "series_description": f"{kind} by {made_by(segmentation)}"[:64],
    }


def made_by(segmentation: Segmentation) -> str:
    """Return the bundle and its version, as a text."""
    return f"{segmentation.bundle or NAME} {segmentation.version or liverseg.__version__}"
