"""Which of the DICOM SEGs of a scan are its label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import combinations
from typing import Any

from lib.store.dicom_server import first, sequence
from liverseg.errors import InputError
from liverseg.io.dicom_segments import compared, segment_name

# The coordinating center of each DICOM SEG that MONAI Label writes, and so this app.
OF_THIS_APP = "MONAI"


@dataclass(frozen=True)
class Segmentation:
    """A DICOM SEG as its header describes it.

    Attributes:
        study, series, instance: its UIDs.
        scans: UIDs of the series that it says it belongs to.
        source: UID of an instance that it was drawn on, for those that name no series; "" without
            one.
        names: of its segments, as they are compared.
        made: when; None where it does not say.
        whole: it has all segments of the scan, as what this app saves.
        concatenation: common to instances that are one DICOM SEG in parts; "" for one that is not.
    """

    study: str
    series: str
    instance: str
    scans: tuple[str, ...]
    source: str
    names: frozenset[str]
    made: datetime | None
    whole: bool
    concatenation: str

    def replaces(self, older: Segmentation) -> bool:
        """Whether it takes the place of an older one of the same scan."""
        parts = self.concatenation and self.concatenation == older.concatenation
        return not parts and (self.whole or bool(self.names & older.names))

    def is_newer(self, other: Segmentation) -> bool:
        """Whether both say when they were made, and this one later."""
        return self.made is not None and other.made is not None and self.made > other.made


def describe(header: Mapping[str, Any], study: str, series: str) -> Segmentation:
    """What the header of a DICOM SEG, as DICOM JSON, says of it."""
    refers = sequence(header, "ReferencedSeriesSequence")
    for other in sequence(header, "StudiesContainingOtherReferencedInstancesSequence"):
        refers += sequence(other, "ReferencedSeriesSequence")
    groups = sequence(header, "SharedFunctionalGroupsSequence") + sequence(
        header, "PerFrameFunctionalGroupsSequence"
    )
    derivations = [one for group in groups for one in sequence(group, "DerivationImageSequence")]
    sources = [
        one
        for derivation in [header, *derivations]
        for one in sequence(derivation, "SourceImageSequence")
    ]
    sources += [one for item in refers for one in sequence(item, "ReferencedInstanceSequence")]
    segments = {
        first(one, "SegmentNumber"): first(one, "SegmentLabel")
        for one in sequence(header, "SegmentSequence")
    }
    # Of a LABELMAP, which may give it a name.
    segments.pop(first(header, "PixelPaddingValue") or 0, None)
    return Segmentation(
        study=study,
        series=series,
        instance=str(first(header, "SOPInstanceUID")),
        scans=tuple(
            dict.fromkeys(str(uid) for one in refers if (uid := first(one, "SeriesInstanceUID")))
        ),
        source=next(
            (str(uid) for one in sources if (uid := first(one, "ReferencedSOPInstanceUID"))), ""
        ),
        names=frozenset(
            compared(segment_name(label, number)) for number, label in segments.items()
        ),
        made=_made(header),
        whole=first(header, "ClinicalTrialCoordinatingCenterName") == OF_THIS_APP,
        concatenation=str(first(header, "ConcatenationUID") or ""),
    )


def current(segmentations: Sequence[Segmentation]) -> list[Segmentation]:
    """Those of one scan that are its label.

    One replaces every older one with which it has the name of a segment in common, as a whole, so
    that what a correction took away does not come back; those without a common name add up, as one
    DICOM SEG for each organ. What this app saved replaces all older ones.

    Raises:
        InputError: where two of the same time, or without one, have a segment in common.
    """
    left = [
        one
        for one in segmentations
        if not any(other.is_newer(one) and other.replaces(one) for other in segmentations)
    ]
    for one, other in combinations(left, 2):
        if not (one.is_newer(other) or other.is_newer(one)) and (
            one.replaces(other) or other.replaces(one)
        ):
            common = ", ".join(sorted(one.names & other.names)) or "saved by this server"
            raise InputError(
                f"DICOM SEG: found instances {one.instance} and {other.instance}, both with "
                f"{common}, and none that is newer, expected different dates and times: delete "
                "one of them on the DICOM server."
            )
    return sorted(left, key=lambda one: one.instance)


def _made(header: Mapping[str, Any]) -> datetime | None:
    """The latest of what it says: writers copy some dates from the scan, and leave others out."""
    offset = re.fullmatch(
        r"([+-])([01]\d)([0-5]\d)", str(first(header, "TimezoneOffsetFromUTC") or "").strip()
    )
    zone = None
    if offset:
        sign, hours, minutes = offset.groups()
        zone = timezone(int(f"{sign}1") * timedelta(hours=int(hours), minutes=int(minutes)))
    moments = []
    for kind in ("Series", "Content", "InstanceCreation"):
        # Of old, 2026.01.31 and 12:30:00; a time may end after the hours.
        date = str(first(header, f"{kind}Date") or "").strip().replace(".", "")
        time, _, fraction = (
            str(first(header, f"{kind}Time") or "").strip().replace(":", "").partition(".")
        )
        text = f"{date:0<8}{time:0<6}{fraction[:6]:0<6}"
        try:
            moment = datetime.strptime(text, "%Y%m%d%H%M%S%f")
            # Without an offset, it is that of this machine.
            moments.append(moment.replace(tzinfo=zone) if zone else moment.astimezone())
        except (OverflowError, ValueError):
            continue
    return max(moments, default=None)
