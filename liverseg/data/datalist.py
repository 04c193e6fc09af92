"""Write and load datalists of the Medical Segmentation Decathlon's form, with folds of patients."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liverseg.data.classes import Classes, check_classes, check_label_names
from liverseg.data.datalist_schema import (
    Datalist,
    Item,
    missing_label,
    patient_of,
    read_datalist,
    read_fold,
)
from liverseg.errors import InputError
from liverseg.files import atomic_write
from liverseg.io.paths import absolute


def split_by_patient(
    items: Sequence[Mapping[str, Any]], num_folds: int, seed: int = 0
) -> list[Item]:
    """Give every item a `patient` and a `fold`; all scans of one patient get the same fold.

    Args:
        items: dictionaries with at least `image`.
        num_folds: how many folds, 2 or more.
        seed: the same seed, patients and `num_folds` give the same folds.

    Raises:
        InputError: when there are fewer patients than folds.
    """
    patients = sorted({patient_of(item) for item in items})
    check_folds(num_folds, len(patients))
    random.Random(seed).shuffle(patients)
    fold = {patient: index % num_folds for index, patient in enumerate(patients)}
    return [{**item, "patient": patient_of(item), "fold": fold[patient_of(item)]} for item in items]


def check_folds(num_folds: int, num_patients: int) -> None:
    """Check a number of folds, also before there are any scans.

    Raises:
        InputError: for less than 2, and more than there are patients.
    """
    if num_folds < 2 or num_patients < num_folds:
        raise InputError(
            f"folds: found {num_folds} for {num_patients} patients, expected from 2 to the number "
            f"of patients: use --folds {max(2, min(5, num_patients))}, or add scans."
        )


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
        raise InputError(
            f"{path}: patient {min(both)} is in both training and test: "
            "move all scans to one of them."
        )
    content = {
        "name": name,
        "labels": dict(labels),
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": [{**item, "patient": patient_of(item)} for item in test],
    }
    text = json.dumps(content, indent=1)
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def relative(file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """Return the path of a file from a datalist's folder, where links to folders are on the way.

    A link keeps its name.
    """
    path = absolute(file)
    return os.path.relpath(path.parent.resolve() / path.name, Path(folder).resolve())


def load_datalist(
    datalist: str | os.PathLike[str],
    section: str,
    fold: int = 0,
    classes: Classes | None = None,
    labelled: bool = True,
) -> list[Item]:
    """Read one section of a datalist, checked as `read_datalist` does.

    Args:
        datalist: a `dataset.json`; relative paths in it are relative to its folder.
        section: `"training"` (every fold but `fold`), `"validation"` (only `fold`, or the file's
            own `validation` list) or `"test"`.
        fold: the fold held out for validation. Items without a fold are first split into five by
            patient.
        classes: as for `MapLabelsd`; with them, `check_label_names` and
            `check_classes` check the labels.
        labelled: each scan must have a label.

    Returns:
        Items with the absolute paths `image` and, where there is one, `label`, and the `patient`;
        what else an item says is left out.

    Raises:
        InputError: as `read_datalist`, for an empty section, a missing file or label, and as the
            checks of `classes`.
    """
    known = read_datalist(datalist)
    items = _section(known, section, read_fold(f"{known.path}: fold", fold))
    if not items:
        other = (
            ", as `liverseg data lits` with --test-share 0.1 does, or take --section validation"
            if section == "test"
            else ""
        )
        raise InputError(
            f"{known.path}: the section {section!r} (fold {fold}) is empty: "
            f"add at least one scan to it{other}."
        )
    for item in items:
        if labelled and "label" not in item:
            raise missing_label(known.path, item)
        for key in ("image", "label"):
            if key in item and not Path(item[key]).exists():
                raise InputError(
                    f"{item[key]}: the {key} named in {known.path} ({item['place']}) is not there: "
                    "correct the path or remove the item."
                )
    if classes is not None:
        check_label_names(str(known.path), known.labels, classes)
        check_classes(f"{known.path}: {section}", items, classes, known.path)
    return [
        {key: item[key] for key in ("image", "label", "patient") if key in item} for item in items
    ]


def _section(known: Datalist, section: str, fold: int) -> list[Item]:
    held_out = section in ("training", "validation")
    if section not in known.sections and not (held_out and "training" in known.sections):
        raise InputError(
            f"{known.path}: there is no section {section!r}, only "
            f"{sorted(known.sections)}: name one of these."
        )
    items = known.sections.get("training", []) if held_out else known.sections[section]
    has_folds = any("fold" in item for item in items)
    if held_out and "validation" in known.sections:
        if has_folds or fold:
            found = "folds in training" if has_folds else f"fold {fold}"
            raise InputError(
                f"{known.path}: found a list of validation scans and {found}, expected one way to "
                "hold scans out: "
                f"{'remove the list or the folds' if has_folds else 'leave fold out'}."
            )
        return known.sections[section]
    if not items or not held_out:
        return items
    if not has_folds:
        patients = {item["patient"] for item in items}
        if len(patients) < 2:
            raise InputError(
                f"{known.path}: found 1 patient in training, expected 2 or more, one of whom "
                'validates: add scans, or give each item its "patient".'
            )
        items = split_by_patient(items, min(5, len(patients)))
    folds = {item["fold"] for item in items}
    if fold not in folds:
        raise InputError(
            f"{known.path}: there is no fold {fold}, only "
            f"{sorted(folds)}: set fold to one of these."
        )
    return [item for item in items if (item["fold"] == fold) == (section == "validation")]
