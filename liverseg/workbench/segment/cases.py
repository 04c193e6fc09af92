"""Find the scans that a person points at: a file, a folder, an archive, a list."""

from __future__ import annotations

import logging
import os
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from liverseg.data import find_scans
from liverseg.errors import InputError
from liverseg.files import check_writable
from liverseg.io.dicom import find_series
from liverseg.io.dicom_series import Series, normal_of
from liverseg.io.masks import scan_names
from liverseg.io.paths import absolute, volume_suffix

logger = logging.getLogger(__name__)

MODALITIES = {"ct": "CT", "mr": "MR"}
# A scan of the whole liver is longer; what is beyond tells nothing about which series fits.
LONG_ENOUGH_MM = 250.0
ALL = "all"


@dataclass(frozen=True)
class Case:
    """A scan to segment.

    Attributes:
        name: of its results, another one for each case of a run.
        scan: its path, as `read_volume` takes it.
    """

    name: str
    scan: str


def find_cases(
    source: Path, unpacked: Path, series: str | None = None, modality: str = "ct"
) -> list[Case]:
    """Return the scans of `source`.

    Of several DICOM series of one study, one is taken, and the log says which: of the modality,
    axial, the longest up to 250 mm, of the most slices.

    Args:
        source: a file or folder, as `find_scans` takes it; a `.zip` of one; or a `.csv` with the
            column `image`, and `name` where the results are to be called otherwise.
        unpacked: folder for what is in a `.zip`.
        series: the SeriesInstanceUID of the one to take, or a part of its description; "all" takes
            every series as a scan.
        modality: `ct` or `mr`.

    Raises:
        InputError: for what is not there or no scan, and as `find_scans`.
    """
    source = absolute(source)
    if source.suffix.lower() == ".csv" and source.is_file():
        return _listed(source, series, modality)
    if source.suffix.lower() == ".zip" and source.is_file():
        source = _unpack(source, unpacked)
    return _named(_scans(source, series, modality))


def _scans(source: Path, series: str | None, modality: str) -> list[str]:
    found = [item["image"] for item in find_scans(source)]
    if source.is_file() or (source / "dataset.json").is_file():
        if series not in (None, ALL):
            raise InputError(
                f"--series: found {series!r} for {source}, expected it for a folder with DICOM "
                "series: leave it out, or name that folder."
            )
        return found
    volumes = [scan for scan in found if volume_suffix(scan) and Path(scan).is_file()]
    taken = _choose(find_series(source)[0], series, modality, source)
    if series not in (None, ALL):
        volumes = []
    return [*volumes, *taken]


def _choose(
    found: Sequence[Series], wanted: str | None, modality: str, source: Path
) -> Iterable[str]:
    if wanted == ALL:
        return [one.path for one in found]
    if wanted is not None:
        fitting = [one for one in found if _is_called(one, wanted)]
        if not fitting:
            known = "; ".join(map(_described, found)) or "none"
            raise InputError(
                f"--series: found no series {wanted!r} in {source}, expected one of {known}: "
                "correct it."
            )
        return [one.path for one in fitting]
    studies: dict[tuple[str, ...], list[Series]] = {}
    for one in found:
        studies.setdefault(one.slices[0].series[:2], []).append(one)
    taken = []
    for several in studies.values():
        best = max(several, key=lambda one: _fit(one, modality))
        taken.append(best.path)
        if len(several) > 1:
            others = "; ".join(_described(one) for one in several if one is not best)
            logger.warning(
                "%s: took the series %s; left out: %s. --series takes another, or all.",
                source,
                _described(best),
                others,
            )
    return taken


def _is_called(one: Series, wanted: str) -> bool:
    first = one.slices[0]
    return wanted in first.series or wanted.lower() in first.description.lower()


def _described(one: Series) -> str:
    first = one.slices[0]
    problem = f", {one.problem.rstrip('.')}" if one.problem else ""
    return f"{first.description!r} ({first.modality}, {len(one.slices)} slices{problem})"


def _fit(one: Series, modality: str) -> tuple[bool, bool, bool, float, int]:
    first = one.slices[0]
    if one.problem:
        return False, False, False, 0.0, 0
    normal = normal_of(first)
    length_mm = float(np.ptp([each.position @ normal for each in one.slices]))
    axial = bool(abs(normal[2]) > np.cos(np.pi / 6))
    fits = first.modality == MODALITIES[modality]
    return True, fits, axial, min(length_mm, LONG_ENOUGH_MM), len(one.slices)


def _listed(source: Path, series: str | None, modality: str) -> list[Case]:
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source}: not readable as a table ({error}), expected a CSV with a column image: "
            "correct it."
        ) from error
    if "image" not in table or table.empty:
        raise InputError(
            f"{source}: found the columns {', '.join(table.columns)} and {len(table)} rows, "
            "expected a column image with the path of a scan in each row: correct it."
        )
    cases = []
    for row in table.to_dict("records"):
        place = absolute(source.parent / row["image"])
        scans = _scans(place, series, modality)
        if len(scans) != 1:
            raise InputError(
                f"{source}: {row['image']}: found {len(scans)} scans, expected one in each row: "
                "name a file or the folder of one study."
            )
        cases.append((row.get("name", ""), scans[0]))
    names = [name or default.name for (name, _), default in zip(
        cases, _named([scan for _, scan in cases]), strict=True)]  # fmt: skip
    for name, rows in Counter(names).items():
        if rows > 1 or Path(name).name != name:
            raise InputError(
                f"{source}: found the name {name!r}, expected a word of its own for each row: "
                "correct it."
            )
    return [Case(name, scan) for name, (_, scan) in zip(names, cases, strict=True)]


def _named(scans: Sequence[str]) -> list[Case]:
    return [Case(name, scan) for name, scan in zip(scan_names(scans), scans, strict=True)]


def _unpack(archive: Path, unpacked: Path) -> Path:
    folder = check_writable(unpacked / archive.stem)
    try:
        with zipfile.ZipFile(archive) as packed:
            free = shutil.disk_usage(folder).free
            needed = sum(info.file_size for info in packed.infolist())
            if needed > free:
                raise InputError(
                    f"{archive}: found {needed / 1e9:.1f} GB in it, expected at most the "
                    f"{free / 1e9:.1f} GB that are free in {folder}: make room."
                )
            for info in packed.infolist():
                # With their times, by which a scan is known to be the one that is done.
                written = packed.extract(info, folder)
                seconds = time.mktime((*info.date_time, 0, 0, -1))
                os.utime(written, (seconds, seconds))
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(
            f"{archive}: not readable as a zip ({error}), expected a whole one without a password: "
            "pack it again."
        ) from error
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 else folder
