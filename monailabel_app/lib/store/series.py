"""The DICOM series of a folder: what they are called, whose they are, and when they change."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from liverseg.io.dicom import files_at, find_series
from liverseg.io.paths import LeftOut, is_hidden, stem_of, volume_suffix

# Beside the scans.
OWN = ("datastore_v2.json", "validation.json")


def name_series(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, str]], LeftOut]:
    """The name of each series and whose it is, by its path in the folder, and what is no scan.

    Raises:
        OSError: for a folder in it that cannot be read.
    """
    series, no_series = find_series(folder)
    names: dict[str, str] = {}
    whose: dict[str, dict[str, str]] = {}
    for one in series:
        path = Path(os.path.relpath(one.path, folder))
        parts = path.parts or (folder.name,)
        name = "_".join([*parts[:-1], stem_of(parts[-1])])
        if one.problem:
            no_series[f"series that is no volume: {one.problem.rstrip('.')}"].append(path)
        elif name in names.values():
            no_series["called as another scan"].append(path)
        else:
            names[str(path)] = name
            whose[str(path)] = dict(
                zip(("PatientID", "StudyInstanceUID"), one.slices[0].series, strict=False)
            )
    no_series["volume below the folder"] = [
        file for file in _files_below(folder) if volume_suffix(file)
    ]
    own = [folder / name for name in OWN]
    left_out = LeftOut(list)
    for reason, files in no_series.items():
        if some := [file for file in files if file not in own]:
            left_out[reason] = some
    return names, whose, left_out


def _files_below(folder: Path) -> list[Path]:
    """The files in the folders of a folder, but for hidden ones and the labels."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not is_hidden(name) and Path(place, name) != folder / "labels"
        ]
        found += [
            Path(place, name) for name in names if Path(place) != folder and not is_hidden(name)
        ]
    return sorted(found)


def record_file(copy: Path) -> Path:
    """Where it is written what a series was made NIfTI of."""
    return copy.with_name(f"{copy.name.removesuffix('.nii.gz')}.json")


def read_record(copy: Path) -> dict[str, Any]:
    """The `state` of a series when it was made NIfTI, and the reader's `warnings`."""
    try:
        return dict(json.loads(record_file(copy).read_text()))
    except (OSError, ValueError):
        return {}


def state_of(scan: str) -> str:
    """Text that changes when any file of a scan does; "" for one that is gone."""
    if not scan:
        return ""
    try:
        files = (
            [Path(scan)]
            if volume_suffix(scan) and not os.path.isdir(scan)
            else files_at(Path(scan))
        )
        states = [
            (str(file), os.stat(file)) for file in files if file.name not in OWN and file.exists()
        ]
    except OSError:
        return ""
    # Copies and archives bring the time of the last write along, which may be older or the same;
    # the time of the last change is the file system's own.
    told = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
