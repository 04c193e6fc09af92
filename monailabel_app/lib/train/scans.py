"""The labelled scans of the store: which validate, and what the values of their labels mean."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.store.dicomweb import DicomwebDatastore
from lib.store.labels import match, segment_names
from lib.store.volumes import read_label, values_in
from liverseg.errors import InputError
from liverseg.files import write_json
from liverseg.io.nifti import write_nifti

FINAL = DefaultLabelTag.FINAL
SEED = 0


def read_validation(file: Path) -> list[str]:
    """The ids of the scans that validate; none, as long as none were drawn.

    Raises:
        InputError: for a file that holds something else.
    """
    if not file.is_file():
        return []
    try:
        return list(json.loads(file.read_text())["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file}: found {error!r}, expected {{"images": [ids]}}: fix or remove it.'
        ) from error


def patient(datastore: Datastore, name: str) -> str:
    """Whose scan it is: its `patient` in its info, or whom DICOM names, else the study it is of.

    Where nothing does, the scan is a patient's only one, called as the scan.
    """
    info = datastore.get_image_info(name)
    if "path" not in info and isinstance(datastore, DicomwebDatastore):
        # Not downloaded yet.
        info = datastore.series_info(name)
    told = (info.get(key) for key in ("patient", "PatientID", "StudyInstanceUID"))
    return str(next((one for one in told if one not in (None, "", "UNK")), name))


def split(
    file: Path, labelled: Mapping[str, str], val_split: float
) -> tuple[list[str], list[str], list[str]]:
    """Divide labelled scans into those that train, those that validate, and those that do neither.

    Who validates is drawn by patient, once, written to `file` and never changed: scans that are
    labelled later train. Those of a patient who validates do neither, for a model would be
    evaluated on whom it has learnt from.

    Args:
        file: where the scans that validate are written.
        labelled: the patient of each scan with a final label.
        val_split: the share of the patients who validate, when they are drawn.

    Raises:
        InputError: where no scan is left for one of the first two.
    """
    drawn = read_validation(file)
    if not drawn:
        patients = sorted(set(labelled.values()))
        if len(patients) < 2:
            raise InputError(
                f"studies: found {len(labelled)} scans of {len(patients)} patients with a final "
                "label, expected 2 patients or more, one of whom validates: label scans of others, "
                "or say in their info whose they are."
            )
        number = min(max(1, round(val_split * len(patients))), len(patients) - 1)
        validating = random.Random(SEED).sample(patients, number)
        drawn = sorted(name for name, whose in labelled.items() if whose in validating)
        write_json(file, {"seed": SEED, "images": drawn})
    validation = [name for name in drawn if name in labelled]
    theirs = {labelled[name] for name in validation}
    training = sorted(name for name, whose in labelled.items() if whose not in theirs)
    left_out = sorted(set(labelled) - {*training, *validation})
    if not training or not validation:
        raise InputError(
            f"{file}: found {len(training)} labelled scans of patients who train and "
            f"{len(validation)} of {len(drawn)} scans that validate, expected some of each: label "
            "more of them, or remove the file to draw anew."
        )
    return training, validation, left_out


def items(
    datastore: Datastore,
    names: Collection[str],
    classes: Mapping[str, int],
    folder: Path,
    known: Collection[str] = (),
) -> list[dict[str, str]]:
    """The scans and labels of `names` as a datalist has them, with the values of `classes`.

    Clients number segments as they like and say by name which is which. Where that differs, a copy
    of the label is written to `folder`.

    Args:
        datastore: the studies.
        names: ids of scans with a final label.
        classes: value by name.
        folder: for the copies.
        known: other names that are known, as `match` takes them.

    Raises:
        InputError: for a label that cannot be read, an info of a label from which no names can be
            read, and as `match`.
    """
    found = []
    for name in names:
        label = Path(datastore.get_label_uri(name, FINAL))
        volume, values = _read(datastore, name, classes, known)
        if any(here != there for here, there in values.items()):
            label = _renumber(volume, values, folder / f"{name}.nii.gz")
        image = datastore.get_image_uri(name)
        found.append({"image": image, "label": str(label), "patient": patient(datastore, name)})
    return found


def check_classes(
    what: str,
    datastore: Datastore,
    names: Collection[str],
    classes: Mapping[str, int],
    known: Collection[str] = (),
) -> None:
    """Refuse final labels in which a class has no voxel: no network could learn it.

    No more labels are read than it takes to find every class.

    Args:
        what: the scans do.
        datastore: the studies.
        names: of the scans.
        classes: value by name.
        known: as of `items`.

    Raises:
        InputError: naming the classes, and as `items`.
    """
    missing = {value: name for name, value in classes.items() if value}
    for name in names:
        for value in _read(datastore, name, classes, known)[1].values():
            missing.pop(value, None)
        if not missing:
            return
    raise InputError(
        f"{what}: found no voxel of {', '.join(missing.values())} in the final labels of "
        f"{len(names)} scans, expected some of each class: label scans that show it"
        + (", then remove validation.json to draw anew, " if what == "validation" else ", ")
        + "or train a model that has only the classes that you label."
    )


def _read(
    datastore: Datastore, name: str, classes: Mapping[str, int], known: Collection[str]
) -> tuple[MetaTensor, dict[int, int]]:
    """The final label of a scan, and the value of a class for each of its values."""
    volume = read_label(datastore.get_label_uri(name, FINAL))
    try:
        names = segment_names(datastore.get_label_info(name, FINAL))
        return volume, match(values_in(volume), names, classes, known)
    except InputError as error:
        raise InputError(f"scan {name}, its final label: {error}") from error


def _renumber(label: MetaTensor, values: Mapping[int, int], target: Path) -> Path:
    there = np.zeros(256, np.uint8)
    there[list(values)] = list(values.values())
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(target, there[label[0].numpy()], label.affine.numpy())
    return target
