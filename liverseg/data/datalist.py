"""Datalists in the Medical Segmentation Decathlon's form (`dataset.json`), split by patient into k folds."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liverseg.errors import InputError

Item = dict[str, Any]


def patient_of(item: Mapping[str, Any]) -> str:
    """The `patient` of an item, or the image's file name without its extensions where none is given."""
    return str(item.get("patient") or Path(str(item["image"])).name.split(".")[0])


def split_by_patient(items: Sequence[Mapping[str, Any]], num_folds: int, seed: int = 0) -> list[Item]:
    """Give every item a `patient` and a `fold`; all scans of one patient get the same fold.

    Args:
        items: dictionaries with at least `image`.
        num_folds: how many folds, 2 or more.
        seed: the same seed, patients and `num_folds` give the same folds.

    Raises:
        InputError: when there are fewer patients than folds.
    """
    patients = sorted({patient_of(item) for item in items})
    if num_folds < 2 or len(patients) < num_folds:
        raise InputError(
            f"num_folds is {num_folds} for {len(patients)} patients: it must be at least 2 and at most the number "
            "of patients; ask for fewer folds or add scans."
        )
    random.Random(seed).shuffle(patients)
    fold = {patient: index % num_folds for index, patient in enumerate(patients)}
    return [{**item, "patient": patient_of(item), "fold": fold[patient_of(item)]} for item in items]


def write_datalist(
    path: str | os.PathLike[str],
    training: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    test: Sequence[Mapping[str, Any]] = (),
    num_folds: int = 5,
    seed: int = 0,
    name: str = "",
) -> Path:
    """Write `dataset.json`: `training` split by patient into folds, and `test` apart from them.

    Args:
        path: the file to write; paths in the items are relative to its folder.
        training: items `{"image", "label"[, "patient"]}`.
        labels: name of each value in the label files, e.g. `{"0": "background", "1": "liver"}`.
        test: items that no fold contains.
        num_folds: number of folds.
        seed: decides the folds.
        name: the data set's name.

    Raises:
        InputError: for too few patients, or a patient who is in both `training` and `test`.
    """
    path = Path(path)
    training = split_by_patient(training, num_folds, seed)
    both = {item["patient"] for item in training} & {patient_of(item) for item in test}
    if both:
        raise InputError(f"{path}: patient {min(both)} is in both training and test: move all scans to one of them.")
    content = {
        "name": name,
        "labels": dict(labels),
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": [{**item, "patient": patient_of(item)} for item in test],
    }
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".json") as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)
    return path


def load_datalist(datalist: str | os.PathLike[str], section: str, fold: int = 0) -> list[Item]:
    """Read one section of a datalist, with absolute paths, checked.

    Args:
        datalist: a `dataset.json`; relative paths in it are relative to its folder.
        section: `"training"` (every fold but `fold`), `"validation"` (only `fold`, or the file's own
            `validation` list) or `"test"`.
        fold: the fold held out for validation. Items without a fold are first split into five by patient.

    Returns:
        Items with absolute `image` and, where given, `label`.

    Raises:
        InputError: for a missing or unreadable datalist, an empty section, a patient in two folds, or a missing file.
    """
    path = Path(datalist).expanduser().resolve()
    content = _read_json(path)
    items = _section(path, content, section, fold)
    if not items:
        raise InputError(f"{path}: the section {section!r} (fold {fold}) is empty: add at least one scan to it.")
    return [_with_absolute_paths(path, item) for item in items]


def _section(path: Path, content: dict[str, Any], section: str, fold: int) -> list[Item]:
    known: dict[str, list[Item]] = {
        key: _as_items(path, content, key) for key in ("training", "validation", "test") if key in content
    }
    if section not in ("training", "validation") or "validation" in known:
        if section not in known:
            raise InputError(f"{path}: there is no section {section!r}, only {sorted(known)}: name one of these.")
        _check_patients_apart(path, known)
        return known[section]
    items = known.get("training", [])
    if items and not all("fold" in item for item in items):
        items = split_by_patient(items, min(5, len({patient_of(item) for item in items})))
    by_fold = {str(item["fold"]): [other for other in items if other["fold"] == item["fold"]] for item in items}
    _check_patients_apart(path, {f"fold {name}": members for name, members in by_fold.items()})
    if items and str(fold) not in by_fold:
        raise InputError(f"{path}: there is no fold {fold}, only {sorted(by_fold)}: set fold to one of these.")
    return [item for item in items if (item["fold"] == fold) == (section == "validation")]


def _as_items(path: Path, content: dict[str, Any], section: str) -> list[Item]:
    items = [{"image": item} if isinstance(item, str) else item for item in content[section]]
    for item in items:
        if not isinstance(item, dict) or "image" not in item:
            raise InputError(f'{path}: {section} holds {item!r}, expected {{"image": …, "label": …}}: mend the entry.')
    return items


def _check_patients_apart(path: Path, groups: Mapping[str, Sequence[Item]]) -> None:
    seen: dict[str, str] = {}
    for group, items in groups.items():
        for item in items:
            patient = patient_of(item)
            if seen.setdefault(patient, group) != group:
                raise InputError(
                    f"{path}: patient {patient} is in {seen[patient]} and in {group}: "
                    "give all scans of a patient the same fold."
                )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such datalist; write one with `liverseg data split {path.parent}` or set datalist."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}): expected a Decathlon datalist.") from error
    if not isinstance(content, dict) or not any(key in content for key in ("training", "test")):
        raise InputError(f'{path}: neither "training" nor "test" is in it: expected a Decathlon datalist.')
    return content


def _with_absolute_paths(path: Path, item: Item) -> Item:
    files: Item = {key: str((path.parent / item[key]).resolve()) for key in ("image", "label") if key in item}
    for key, file in files.items():
        if not Path(file).exists():
            raise InputError(f"{file}: the {key} named in {path} is not there: mend the path or remove the entry.")
    return {**item, **files}
