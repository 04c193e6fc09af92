"""The DICOM SEGs of a server by the scan that they belong to."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from lib.store.dicom_server import DicomServer, DicomServerError, first
from lib.store.segmentations import Segmentation, describe
from liverseg.errors import InputError

logger = logging.getLogger(__name__)


class SegmentationIndex:
    """Asks for the headers of each series once, and again where it has another number of instances.

    Attributes:
        last: what was read last.
        bad: message by series, of those that belong to no scan or cannot be read.
    """

    def __init__(self, server: DicomServer) -> None:
        self.server = server
        self.last: dict[str, list[Segmentation]] = {}
        self.bad: dict[str, str] = {}
        # By series and the number of its instances.
        self._headers: dict[tuple[str, Any], list[Segmentation]] = {}

    def read(self) -> dict[str, list[Segmentation]]:
        """All DICOM SEGs by the scan that they belong to; the status names those without one."""
        found: dict[str, list[Segmentation]] = {}
        headers, bad = {}, {}
        for entry in self.server.search(Modality="SEG"):
            # Some servers pass over what they are asked to filter by.
            if first(entry, "Modality") not in ("SEG", None):
                continue
            study, series = (
                str(first(entry, "StudyInstanceUID")),
                str(first(entry, "SeriesInstanceUID")),
            )
            key = series, first(entry, "NumberOfSeriesRelatedInstances")
            try:
                # Of a server that does not say how many there are, there may be more than before.
                headers[key] = (self._headers.get(key) if key[1] else None) or self._describe(
                    study, series
                )
            except DicomServerError:
                raise
            except InputError as error:
                bad[series] = f"DICOM SEG: {error}"
                continue
            for one in headers[key]:
                for scan in one.scans:
                    found.setdefault(scan, []).append(one)
                if not one.scans:
                    bad[series] = (
                        f"DICOM SEG {one.instance}: found no series of the server that it belongs "
                        "to, expected one: export it anew."
                    )
        for series in bad.keys() - self.bad.keys():
            logger.warning("%s", bad[series])
        self._headers, self.bad, self.last = headers, bad, found
        return found

    def _describe(self, study: str, series: str) -> list[Segmentation]:
        headers = self.server.metadata(study, series)
        try:
            found = [describe(header, study, series) for header in headers]
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"series {series}: found a header that is no DICOM JSON ({error}), expected one: "
                "export it anew."
            ) from error
        # Older writers name instances alone.
        return [
            replace(one, scans=tuple(filter(None, [self.server.series_of(study, one.source)])))
            if one.source and not one.scans
            else one
            for one in found
        ]
