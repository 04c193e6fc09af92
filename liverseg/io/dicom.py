"""Find DICOM series: which files belong together."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom_header import DamagedError
from liverseg.io.dicom_series import Series, interlaced, repeats, some_of, volumes_of
from liverseg.io.dicom_slices import SERIES, Slice, slices_of
from liverseg.io.paths import LeftOut, is_hidden, volume_suffix, walk


def find_series(folder: Path) -> tuple[list[Series], LeftOut]:
    """Find the DICOM series in `folder` and below, and the files that belong to none.

    Only headers are read. What is no volume by its nature is left out: localisers, pictures in
    colour, single slices, structures, segmentations, documents, hidden files. Several volumes under
    one SeriesInstanceUID (orientations, phases, echoes, b-values) are several series. NIfTI files
    are not looked at.

    A series is named by the folder that its files lie in, where there is no other in it and below;
    else by its first file. One that neither names, as its files lie in several folders with others,
    is named by the folder all the same, which `series_at` then refuses.

    Raises:
        InputError: where there are DICOM files and pydicom is not installed.
    """
    left_out: LeftOut = defaultdict(list)
    return _named(_find(_candidates(folder, left_out), left_out)), left_out


def _candidates(folder: Path, left_out: LeftOut) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder with its files that may be DICOM."""
    return (
        (place, [file for file in files if not volume_suffix(file)])
        for place, files in walk(folder, left_out)
    )


def series_at(path: Path) -> Series:
    """Find the series that a path names: a folder with one, or a file of a series in its folder.

    Raises:
        InputError: for a folder with none or several, for a file of none, and for a series that is
            no volume.
    """
    if path.is_dir():
        found, left_out = find_series(path)
    else:
        left_out = defaultdict(list)
        found = _find([(path.parent, files_at(path))], left_out)
        found = [each for each in found if path in each.files]
        if not found:
            reasons = (reason for reason, files in left_out.items() if path in files)
            raise InputError(
                f"{path}: not readable as a volume ({next(reasons, 'neither NIfTI nor DICOM')}), "
                "expected a whole NIfTI file or a file of one DICOM series of CT or MRI: replace "
                "it or remove the scan."
            )
    if len(found) != 1:
        raise InputError(f"{path}: {_not_one(found, left_out)}")
    (series,) = found
    if series.problem:
        raise InputError(f"{path}: {series.problem}")
    warnings = [*series.warnings]
    if path.is_dir() and left_out:
        warnings.append(f"left out, as no part of the scan: {describe(left_out)}.")
    if not path.is_dir() and (elsewhere := _elsewhere(series, path.parent)):
        warnings.append(
            f"more of its series lies in other folders ({some_of(elsewhere)}) and was not read: "
            "where it is one scan, put all in one folder."
        )
    return replace(series, path=str(path), warnings=tuple(warnings))


def files_at(path: Path) -> list[Path]:
    """Return the files that `series_at` reads: those in a folder and below, or those beside a file.

    Raises:
        OSError: for a file in a folder that may not be opened.
    """
    if path.is_dir():
        return [file for _, files in _candidates(path, defaultdict(list)) for file in files]
    return _files(path.parent)


def describe(left_out: LeftOut) -> str:
    """Return what was left out, in one line: each kind with the names of some files."""
    return ", ".join(
        f"{reason} ({some_of([file.name for file in files])})" for reason, files in left_out.items()
    )


def _folders(folder: Path) -> list[Path]:
    try:
        return [
            Path(entry.path)
            for entry in os.scandir(folder)
            if entry.is_dir() and not is_hidden(entry)
        ]
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    entries = (
        entry
        for entry in os.scandir(folder)
        if not (entry.is_dir() or is_hidden(entry) or volume_suffix(entry))
    )
    return sorted(Path(entry.path) for entry in entries)


def _find(folders: Iterable[tuple[Path, Sequence[Path]]], left_out: LeftOut) -> list[Series]:
    damaged: dict[Path, tuple[Path, str]] = {}
    by_series: dict[tuple[str, ...], dict[Path, list[Slice]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for folder, files in folders:
        for file in files:
            try:
                slices = slices_of(file)
            except DamagedError as error:
                damaged.setdefault(folder, (file, str(error)))
                continue
            if isinstance(slices, str):
                left_out[slices].append(file)
            elif slices[0].kind and any(each.problem for each in slices):
                left_out[f"{slices[0].kind} without position"].append(file)
            else:
                for each in slices:
                    by_series[each.series][folder].append(each)
    found = _join_singles(by_series)
    for parts in by_series.values():
        together = volumes_of([each for part in parts.values() for each in part])
        # Two exports with the same identifiers are two series; parts of one continue each other.
        if len(parts) > 1 and not all(map(_is_one, together)):
            together = [volume for part in parts.values() for volume in volumes_of(part)]
        found += together
    for volume in found:
        if len(volume.slices) == 1:
            left_out["single slice"] += sorted(volume.files)
    found = [volume for volume in found if len(volume.slices) > 1]
    return _with_damaged(found, damaged)


def _is_one(volume: Series) -> bool:
    """Return whether slices from several folders are one scan, and not only share identifiers."""
    by_folder: dict[Path, list[Slice]] = defaultdict(list)
    for each in volume.slices:
        by_folder[each.file.parent].append(each)
    if len({file.parent for file in volume.files}) == 1:
        return True
    return bool(_series_uid(volume.slices[0])) and not (
        volume.problem or interlaced(list(by_folder.values()))
    )


def _series_uid(each: Slice) -> str:
    return each.series[SERIES.index("SeriesInstanceUID")]


def _elsewhere(series: Series, folder: Path) -> list[str]:
    """Return the folders in and beside `folder` that go on with a series of it.

    Of each, the first and the last file are looked at: there may be a data set of them.
    """
    found = []
    for beside in sorted({*_folders(folder), *_folders(folder.parent)} - {folder}):
        # Whatever is wrong there, it is not this series'.
        with suppress(OSError, InputError):
            files = _files(beside)
            if any(_goes_on(series, file) for file in files[:1] + files[1:][-1:]):
                found.append(beside.name)
    return found


def _goes_on(series: Series, file: Path) -> bool:
    more = slices_of(file)
    if (
        isinstance(more, str)
        or more[0].series != series.slices[0].series
        or not _series_uid(more[0])
    ):
        return False
    # What lies at the same places is another export or phase.
    whole = [each.slices for each in volumes_of([*series.slices, *more])]
    return any(len(slices) > len(series.slices) and not repeats(slices) for slices in whole)


def _join_singles(by_series: dict[tuple[str, ...], dict[Path, list[Slice]]]) -> list[Series]:
    """Take out of `by_series`, and join, files of a folder that are each their own series."""
    single = {key for key, parts in by_series.items() if sum(map(len, parts.values())) == 1}
    in_folder: dict[Path, list[tuple[str, ...]]] = defaultdict(list)
    for key, parts in by_series.items():
        for folder in parts:
            in_folder[folder].append(key)
    joined = []
    for folder, keys in in_folder.items():
        if not single.issuperset(keys):
            continue
        alike: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
        for key in keys:
            alike[key[SERIES.index("PatientID")], key[SERIES.index("Modality")]].append(key)
        for some in alike.values():
            if len(some) < 3:
                continue
            slices = [each for key in some for each in by_series.pop(key)[folder]]
            odd = (
                f"each of {len(slices)} files has its own SeriesInstanceUID; they are taken as one "
                "series."
            )
            joined += [replace(each, warnings=(*each.warnings, odd)) for each in volumes_of(slices)]
    return joined


def _with_damaged(found: list[Series], damaged: dict[Path, tuple[Path, str]]) -> list[Series]:
    """Give each series beside a file that cannot be read this problem: it may lack that slice."""
    for folder, (file, error) in damaged.items():
        problem = error.replace(f"{file}: ", f"{file.name}: ")
        beside = [each for each in found if folder in {other.parent for other in each.files}]
        found = [replace(each, problem=problem) if each in beside else each for each in found]
        if not beside:
            nowhere = np.zeros(3), np.zeros((2, 3)), np.zeros(2)
            found.append(
                Series(
                    "",
                    (Slice(file, 0, (), "damaged", "", (0, 0), *nowhere, problem=problem),),
                    problem=problem,
                )
            )
    return found


def _named(found: Sequence[Series]) -> list[Series]:
    files = [each.files for each in found]
    folders = [{file.parent for file in some} for some in files]
    named = []
    for number, each in enumerate(found):
        others = [other for other, _ in enumerate(found) if other != number]
        common = Path(os.path.commonpath(folders[number]))
        beside = any(folder.is_relative_to(common) for other in others for folder in folders[other])
        own = len(folders[number]) == 1 and not any(
            files[number] & files[other] for other in others
        )
        named.append(replace(each, path=str(each.slices[0].file if beside and own else common)))
    return named


def _not_one(found: Sequence[Series], left_out: LeftOut) -> str:
    if not found:
        only = f" (only {describe(left_out)})" if left_out else ""
        return (
            f"no CT or MRI series in it{only}, expected the slices of one volume: choose another."
        )
    series = "; ".join(map(str, found))
    held = Counter(file for each in found for file in each.files)
    shared = sorted(file.name for file, volumes in held.items() if volumes > 1)
    cure = (
        f"export each volume in {some_of(shared)} as its own series"
        if shared
        else "name a file of it, or give each its own folder"
    )
    return f"{len(found)} series in it ({series}), expected one: {cure}."
