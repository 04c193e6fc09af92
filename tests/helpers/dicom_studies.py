"""DICOM made by hand: a tilted CT, DICOM SEGs on it, and a DICOMweb server that can fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SegmentationStorage,
    generate_uid,
)

from helpers.waiting import SECONDS

STUDY, SERIES = "1.2.3", "1.2.3.4"
SHAPE = (9, 7, 5)
# Rows and columns are tilted, voxels have three sizes; LPS in mm.
ROW, COLUMN, NORMAL = np.array([0.8, 0.6, 0]), np.array([-0.6, 0.8, 0]), np.array([0, 0, 1])
SPACING = (1.5, 2.0, 4.0)
ORIGIN = np.array([-20.0, 30, 5])
SCAN = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
AFFINE = np.diag([-1, -1, 1, 1]) @ np.block(
    [[np.stack([ROW, COLUMN, NORMAL], 1) * SPACING, ORIGIN[:, None]], [np.zeros((1, 3)), 1]]
)
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


def make_slice(series: str, number: int, pixels: np.ndarray, aside_mm: float = 0) -> Dataset:
    """Slice `number` of a CT, (columns, rows), moved by `aside_mm` a slice as by gantry tilt."""
    one = _instance(CTImageStorage, f"{series}.{number + 1}", series, "CT")
    one.SeriesNumber, one.InstanceNumber = 1, number + 1
    one.ImagePositionPatient = (
        ORIGIN + number * (SPACING[2] * NORMAL + aside_mm * COLUMN)
    ).tolist()
    one.ImageOrientationPatient = [*ROW, *COLUMN]
    one.PixelSpacing, one.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    one.Rows, one.Columns = pixels.shape[1], pixels.shape[0]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = (
        1,
        "MONOCHROME2",
        1,
    )
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.RescaleIntercept, one.RescaleSlope = 15, 0, 1
    one.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    return one


def make_scan(series: str = SERIES) -> list[Dataset]:
    """A CT of `SCAN`, not in the order of its slices."""
    return [make_slice(series, number, SCAN[:, :, number]) for number in (3, 0, 4, 1, 2)]


def make_segmentation(
    masks: dict[str, np.ndarray],
    kind: str = "BINARY",
    scan: str = SERIES,
    every_frame: bool = False,
    **attributes: Any,
) -> Dataset:
    """A DICOM SEG of a series like `SERIES`, with frames only where something is.

    Args:
        masks: (columns, rows, slices) by name of the segment; of 0 to 1 for FRACTIONAL.
        kind: BINARY, FRACTIONAL or LABELMAP.
        scan: UID of the series that it belongs to; "" for none.
        every_frame: also where nothing is.
        attributes: of the data set besides, or instead; a date is that of its content.
    """
    one = _instance(
        UID(LABEL_MAP_STORAGE) if kind == "LABELMAP" else SegmentationStorage,
        generate_uid(),
        generate_uid(),
        "SEG",
    )
    one.ContentDate, one.ContentTime = "20260102", "120000"
    one.SegmentationType, one.SamplesPerPixel, one.PhotometricInterpretation = (
        kind,
        1,
        "MONOCHROME2",
    )
    one.BitsAllocated = one.BitsStored = 1 if kind == "BINARY" else 8
    one.HighBit, one.PixelRepresentation = one.BitsStored - 1, 0
    one.Columns, one.Rows = SHAPE[:2]
    if kind == "FRACTIONAL":
        one.SegmentationFractionalType, one.MaximumFractionalValue = "PROBABILITY", 200
    one.SegmentSequence = [
        _item(SegmentNumber=number, SegmentLabel=name) for number, name in enumerate(masks, 1)
    ]
    if kind == "LABELMAP":
        one.SegmentSequence.insert(0, _item(SegmentNumber=0, SegmentLabel="Background"))
        one.PixelPaddingValue = 0
    if scan:
        one.ReferencedSeriesSequence = [_item(SeriesInstanceUID=scan)]
    one.SharedFunctionalGroupsSequence = [
        _item(
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[*ROW, *COLUMN])],
            PixelMeasuresSequence=[
                _item(
                    PixelSpacing=[SPACING[1], SPACING[0]],
                    SliceThickness=SPACING[2],
                    SpacingBetweenSlices=SPACING[2],
                )
            ],
        )
    ]
    frames, groups = [], []
    volumes: list[tuple[int, np.ndarray]] = list(enumerate(masks.values(), 1))
    if kind == "LABELMAP":
        volumes = [(0, np.max([number * (mask > 0) for number, mask in volumes], axis=0))]
    # Neither in the order of slices nor all of one segment first.
    for k in (2, 0, 3, 1, 4):
        for number, volume in volumes:
            if not volume[:, :, k].any() and not every_frame:
                continue
            group = _item(
                PlanePositionSequence=[
                    _item(ImagePositionPatient=(ORIGIN + SPACING[2] * k * NORMAL).tolist())
                ]
            )
            if number:
                group.SegmentIdentificationSequence = [_item(ReferencedSegmentNumber=number)]
            groups.append(group)
            frames.append(
                np.rint(volume[:, :, k].T * (200 if kind == "FRACTIONAL" else 1)).astype(np.uint8)
            )
    one.PerFrameFunctionalGroupsSequence, one.NumberOfFrames = groups, len(frames)
    pixels = np.array(frames)
    data = (
        np.packbits(pixels.ravel(), bitorder="little").tobytes()
        if kind == "BINARY"
        else pixels.tobytes()
    )
    one.PixelData = data + b"\0" * (len(data) % 2)
    for name, value in attributes.items():
        setattr(one, name, value)
    return one


def _instance(kind: UID, instance: str, series: str, modality: str) -> Dataset:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = kind
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = UID(instance)
    one.is_little_endian, one.is_implicit_VR = True, False
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = STUDY, series, "1.2.3.9"
    one.Modality, one.PatientID, one.PatientName, one.StudyDate, one.StudyTime = (
        modality,
        "p",
        "p",
        "20260101",
        "120000",
    )
    one.PatientSex = one.PatientBirthDate = one.StudyID = one.AccessionNumber = (
        one.ReferringPhysicianName
    ) = ""
    return one


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


class Archive:
    """What a DICOMweb server holds, and how it fails.

    Attributes:
        instances: what it has.
        page: so many series it lists at once.
        fault: asked for each path, and gives a status to answer with, "cut" (the connection ends
            before the answer does), "less" (an instance is missing), "keep nothing" of what is
            sent, or None; may wait as long as it likes.
        filters: it lists only what it is asked for.
    """

    def __init__(self, instances: Sequence[Dataset]) -> None:
        self.instances = list(instances)
        self.page = 100
        self.filters = True
        self.fault: Callable[[str], int | str | None] = lambda path: None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Answer at the same port each time."""
        archive = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                archive._answer(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fault = archive.fault("studies")
                if isinstance(fault, int):
                    self.send_error(fault)
                    return
                if fault:
                    failed = _item(FailedSOPSequence=[_item(FailureReason=272)])
                    self._send("application/dicom+json", json.dumps(failed.to_json_dict()).encode())
                    return
                boundary = self.headers["Content-Type"].split('boundary="')[1].rstrip('"').encode()
                for part in body.split(b"--" + boundary)[1:-1]:
                    content = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
                    archive.instances.append(pydicom.dcmread(BytesIO(content)))
                self._send("application/dicom+json", b"{}")

            def _send(self, kind: str, body: bytes, length: int | None = None) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(SECONDS)
            server.server_close()

    def _answer(self, request: Any) -> None:
        path = urlsplit(request.path).path.removeprefix("/dicom-web/")
        asked = dict(parse_qsl(urlsplit(request.path).query)) if self.filters else {}
        fault = self.fault(path)
        if isinstance(fault, int):
            request.send_error(fault)
            return
        parts = path.split("/")
        found = self.instances
        for level, keyword in (("studies", "Study"), ("series", "Series"), ("instances", "SOP")):
            if level in parts[:-1]:
                uid = parts[parts.index(level) + 1]
                found = [one for one in found if one[f"{keyword}InstanceUID"].value == uid]
        if path == "series":
            start = int(asked.pop("offset", 0))
            listed = list(
                {
                    one.SeriesInstanceUID: self._series(one)
                    for one in found
                    if _matches(one, asked)
                }.values()
            )
            request._send(
                "application/dicom+json", json.dumps(listed[start : start + self.page]).encode()
            )
        elif parts[-1] == "instances":
            some = [self._header(one) for one in found if _matches(one, asked)]
            request._send("application/dicom+json", json.dumps(some).encode())
        elif not found:
            request.send_error(404)
        elif parts[-1] == "metadata":
            request._send(
                "application/dicom+json", json.dumps([self._header(one) for one in found]).encode()
            )
        else:
            body = b""
            for one in found[: len(found) - (fault == "less")]:
                with BytesIO() as file:
                    one.save_as(file, write_like_original=False)
                    body += (
                        b"\r\n--edge\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue()
                    )
            body += b"\r\n--edge--"
            kind = 'multipart/related; type="application/dicom"; boundary=edge'
            request._send(kind, body[: len(body) // 2] if fault == "cut" else body, len(body))

    def _series(self, one: Dataset) -> dict[str, Any]:
        some = Dataset()
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID"):
            setattr(some, keyword, one[keyword].value)
        some.NumberOfSeriesRelatedInstances = sum(
            other.SeriesInstanceUID == one.SeriesInstanceUID for other in self.instances
        )
        return some.to_json_dict()

    def _header(self, one: Dataset) -> dict[str, Any]:
        return {tag: value for tag, value in one.to_json_dict().items() if tag != "7FE00010"}


def _matches(one: Dataset, asked: dict[str, str]) -> bool:
    return all(str(one.get(keyword, "")) == value for keyword, value in asked.items())
