"""Read a datalist (`dataset.json`) and check it; errors name section, number and key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg.errors import InputError
from liverseg.io.paths import absolute, stem_of, volume_suffix

Item = dict[str, Any]
SECTIONS = ("training", "validation", "test")
MISNAMED = {"train": "training", "val": "validation", "valid": "validation"}
KEYS = ("image", "label", "patient", "fold")
OF_NNUNET = ("channel_names", "file_ending")


@dataclass(frozen=True)
class Datalist:
    """The content of a datalist, the same whatever form it was written in.

    Attributes:
        path: its absolute path.
        sections: the items of each section that is there: absolute `image`, `label` where it has
            one, `patient`, `fold` as a whole number where it has one, and `place`, which names it
            in a message.
        labels: name of each value in the label files; empty where the datalist does not say.
        name: the data set's; "" where it has none.
    """

    path: Path
    sections: Mapping[str, list[Item]]
    labels: Mapping[int, str]
    name: str


def patient_of(item: Mapping[str, Any]) -> str:
    """Return the `patient` of an item.

    Where none is given, its scan is a patient's only one, called as its file or folder. A DICOM
    file stands for a series in its folder, and all series in one folder are one patient's.
    """
    if item.get("patient") is not None:
        return str(item["patient"])
    return stem_of(_scan(item))


def read_datalist(datalist: str | os.PathLike[str]) -> Datalist:
    """Read a datalist in the Medical Segmentation Decathlon's form; its scans may be missing.

    Raises:
        InputError: for a file that is missing or no datalist, an item of another form, one without
            a label to train or validate on, a file of two patients, and patients in two folds or
            sections or of whom nothing is known.
    """
    path = absolute(datalist)
    content = _read_content(path)
    for name in MISNAMED.keys() & content:
        raise InputError(
            f"{path}: found the section {name!r}, expected {MISNAMED[name]!r}: rename it."
        )
    _check_spelling(str(path), content, SECTIONS)
    # Steps up from here are meant as the disk has them, also where the folder is reached by a link.
    folder = path.parent.resolve()
    sections = {
        name: _section(path, folder, name, content[name]) for name in SECTIONS if name in content
    }
    every = [item for items in sections.values() for item in items]
    _check_files_of_one_patient(path, every)
    training = sections.get("training", [])
    bare = [item for item in training if "fold" not in item]
    if 0 < len(bare) < len(training):
        raise InputError(
            f"{path}: {bare[0]['place']} has no fold, expected one as the others have: "
            "give one to each or to none."
        )
    _check_patients_apart(path, sections)
    for item in every:
        item["patient"] = patient_of(item)
    return Datalist(
        path,
        sections,
        read_label_names(path, content.get("labels")),
        str(content.get("name") or ""),
    )


def read_fold(what: str, value: Any) -> int:
    """Return the number of a fold: 0, "0" and 0.0 are the same one.

    Raises:
        InputError: for anything else.
    """
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.0*)?", str(value)):
        raise InputError(
            f"{what}: found {json.dumps(value)}, expected the number of a fold, as 0: correct it."
        )
    return int(float(value))


def read_label_names(path: Path, labels: Any) -> dict[int, str]:
    """Return the name of each value, from `{"1": "liver"}` (Decathlon) or `{"liver": 1}` (nnU-Net).

    Raises:
        InputError: for another form, and a value of two names.
    """
    names: dict[int, str] = {}
    for key, other in (labels or {}).items() if isinstance(labels or {}, dict) else [("", labels)]:
        value, name = (key, other) if _is_number(key) else (other, key)
        if (
            _is_number(name)
            or not _is_number(value)
            or names.setdefault(int(value), str(name)) != name
        ):
            raise InputError(
                f"{path}: labels: found {_short({key: other} if key else labels)}, "
                'expected one name for each value in the label files, as {"0": '
                '"background", "1": "liver"}: correct it.'
            )
    return names


def missing_label(path: Path, item: Item) -> InputError:
    """Return the error for an item that needs a label and has none."""
    advice = (
        "evaluate other scans with --section validation, or add it"
        if item["place"].startswith("test")
        else "add it, or remove the item"
    )
    return InputError(
        f"{path}: {item['place']}, label: found none for {item['image']}, expected the label's "
        f"file: {advice}."
    )


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and bool(re.fullmatch(r"\d+", str(value)))


def _read_content(path: Path) -> dict[str, Any]:
    if (path / "dataset.json").is_file():
        raise InputError(
            f"{path}: found a folder, expected the datalist in it: name {path / 'dataset.json'}."
        )
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such datalist; write one with `liverseg data split "
            f"{path.parent}` or set datalist."
        )
    content = read_json(path)
    if not any(name in content for name in (*SECTIONS, *MISNAMED)):
        if any(key in content for key in OF_NNUNET):
            raise InputError(
                f"{path}: found nnU-Net's dataset.json, which lists no scans, expected a Decathlon "
                "datalist: to segment, name the folder of the scans, as "
                f"{path.parent / 'imagesTs'}; to train or evaluate, write a datalist with "
                f'`liverseg data split {path.parent} --images "imagesTr/{{}}_0000.nii.gz" --labels '
                '"labelsTr/{}.nii.gz" --out FILE` and set datalist to that file.'
            )
        raise InputError(
            f'{path}: neither "training" nor "test" is in it: expected a Decathlon datalist.'
        )
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a `dataset.json`.

    Raises:
        InputError: for anything else, and a key that is there twice.
    """
    try:
        # From bytes, which tell UTF-8 with and without a mark at its beginning from UTF-16.
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a JSON file ({error}), expected a Decathlon datalist: replace it."
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: found {_short(content)}, expected a Decathlon datalist: replace it."
        )
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice"
        )
    return content


def _section(path: Path, folder: Path, section: str, entries: Any) -> list[Item]:
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: {section}: found {_short(entries)}, expected a list of scans: correct it."
        )
    return [
        _item(path, folder, f"{section}[{number}]", entry) for number, entry in enumerate(entries)
    ]


def _item(path: Path, folder: Path, place: str, entry: Any) -> Item:
    if isinstance(entry, str):
        entry = {"image": entry}
    if isinstance(entry, dict):
        _check_spelling(f"{path}: {place}", entry, KEYS)
    if not isinstance(entry, dict) or "image" not in entry:
        raise InputError(
            f'{path}: {place}: found {_short(entry)}, expected {{"image": file, '
            '"label": file}: correct it.'
        )
    item: Item = {"place": place, "image": _file(path, folder, f"{place}, image", entry["image"])}
    if entry.get("label") is not None:
        item["label"] = _file(path, folder, f"{place}, label", entry["label"])
        if os.path.realpath(item["label"]) == os.path.realpath(item["image"]):
            raise InputError(
                f"{path}: {place}: found {entry['image']} as image and as "
                "label: name the label's file."
            )
    elif not place.startswith("test"):
        raise missing_label(path, item)
    if entry.get("fold") is not None:
        item["fold"] = read_fold(f"{path}: {place}, fold", entry["fold"])
    patient = entry.get("patient")
    if patient is not None:
        if isinstance(patient, float) and patient.is_integer():
            patient = int(patient)
        if isinstance(patient, bool) or not isinstance(patient, int | str) or patient == "":
            raise InputError(
                f"{path}: {place}, patient: found {_short(patient)}, expected a name or a number: "
                "correct it, or leave it out if each scan is another patient's."
            )
        item["patient"] = str(patient)
    return item


def _check_spelling(what: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse what is meant for a missing key; datalists may have others, as `pseudo_label`."""
    for meant in known:
        for key in entry:
            if meant not in entry and _is_slip(key.lower(), meant):
                raise InputError(f"{what}: found the key {key!r}, expected {meant!r}: rename it.")


def _is_slip(word: str, meant: str) -> bool:
    """Return whether one letter added, left out, replaced or swapped makes one word the other."""
    return any(
        word[:at] == meant[:at]
        and (
            meant[at + 1 :] in (word[at:], word[at + 1 :])
            or word[at + 1 :] == meant[at:]
            or (word[at : at + 2] == meant[at : at + 2][::-1] and word[at + 2 :] == meant[at + 2 :])
        )
        for at in range(len(meant) + 1)
    )


def _file(path: Path, folder: Path, what: str, value: Any) -> str:
    if isinstance(value, list):
        raise InputError(
            f"{path}: {what}: found a list of {len(value)}, expected one file with one volume: "
            "give each scan its own item, or choose one."
        )
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{path}: {what}: found {_short(value)}, expected the path of a file: "
            "add it or remove the item."
        )
    file = absolute(folder / os.path.expanduser(value))
    if "\\" in value and not file.exists():
        file = absolute(folder / os.path.expanduser(value.replace("\\", "/")))
    return str(file)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _scan(item: Mapping[str, Any]) -> Path:
    """Return the file or folder that gives a scan its name."""
    path = Path(item["image"])
    return path.parent if not volume_suffix(path) and path.is_file() else path


def _check_files_of_one_patient(path: Path, items: Sequence[Item]) -> None:
    for key in ("image", "label"):
        seen: dict[str, Item] = {}
        for item in items:
            other = seen.setdefault(os.path.realpath(item[key]), item) if key in item else item
            if patient_of(other) != patient_of(item):
                raise InputError(
                    f"{path}: {other['place']} and {item['place']} are of two patients and "
                    f"have the same {key} ({item[key]}), expected one for each: correct "
                    "one of them, or the patient."
                )


def _check_patients_apart(path: Path, sections: Mapping[str, Sequence[Item]]) -> None:
    training = sections.get("training", ())
    will_be_split = "validation" not in sections and not any("fold" in item for item in training)
    seen: dict[str, tuple[str, Item]] = {}
    for section, items in sections.items():
        for item in items:
            patient, here = patient_of(item), item["place"]
            group = f"fold {item['fold']}" if section == "training" and "fold" in item else section
            there, other = seen.setdefault(patient, (group, item))
            # Scans of one name in several folders may be one patient's or not.
            same_name = (
                "patient" not in item and "patient" not in other and _scan(item) != _scan(other)
            )
            if same_name and (there != group or (section == "training" and will_be_split)):
                raise InputError(
                    f"{path}: {other['place']} and {here} are both called {patient} and have no "
                    'patient, expected one for each, the same or not: give each item its "patient".'
                )
            if there != group:
                raise InputError(
                    f"{path}: patient {patient} is in {there} ({other['place']}) and in "
                    f"{group} ({here}), expected in one of them: give all scans of a "
                    "patient the same fold or section."
                )
