"""Make a datalist from a folder of images and labels."""

from __future__ import annotations

import glob
import random
from collections.abc import Sequence
from pathlib import Path

from liverseg.data import write_datalist
from liverseg.data.datalist import relative
from liverseg.data.datalist_schema import read_json, read_label_names
from liverseg.data.segment_names import read_names
from liverseg.errors import InputError
from liverseg.io.paths import absolute, is_hidden
from liverseg.workbench.datasets.layout import check_own
from liverseg.workbench.phantoms.files import LITS_LABELS

OF_LITS = ("volume-{}.nii", "segmentation-{}.nii")


def split_folder(
    folder: Path,
    images: str,
    labels: str,
    test_share: float,
    num_folds: int,
    seed: int,
    names: str = "",
    out: Path | None = None,
) -> Path:
    """Pair images with labels by patient, set patients apart for testing, and write a datalist.

    Args:
        folder: holds the files.
        images: pattern of the images below `folder`, with `{}` for the patient.
        labels: pattern of the labels.
        test_share: share of the patients in `test`, 0 to below 1.
        num_folds: folds over the other patients.
        seed: decides which patients go where.
        names: of the values in the labels, as "1=liver,2=lesion"; without it, those that a
            `dataset.json` in `folder` says, and for files that are called as in LiTS those of LiTS.
        out: the file to write; `dataset.json` in `folder` without it.

    Raises:
        InputError: for a pattern without `{}` or with an absolute path, no image at all, an image
            without a label, names that nobody says, 0 as a name of anything but the background, and
            a datalist from elsewhere in the place of `out`.
    """
    for pattern in (images, labels):
        if pattern.count("{}") != 1:
            raise InputError(
                f"pattern {pattern!r}: expected {{}} once, for the "
                "patient, as in 'volume-{}.nii'."
            )
        if Path(pattern).is_absolute():
            raise InputError(
                f"pattern {pattern!r}: found an absolute path, expected one "
                f"below {folder}: shorten it."
            )
    check_share(test_share)
    out, name = out or folder / "dataset.json", absolute(folder).name
    before, after = images.split("{}")
    items = []
    for path in sorted(folder.glob(f"{glob.escape(before)}*{glob.escape(after)}")):
        image = path.relative_to(folder).as_posix()
        if is_hidden(path):
            continue
        patient = image[len(before) : len(image) - len(after)]
        label = folder / labels.replace("{}", patient)
        if not label.is_file():
            raise InputError(
                f"{label}: there is no label for {image}: add it, or "
                f"correct the pattern {labels!r}."
            )
        items.append(
            {
                "image": relative(path, out.parent),
                "label": relative(label, out.parent),
                "patient": patient,
            }
        )
    if not items:
        raise InputError(f"{folder}: no file matches {images!r}: name the images with --images.")
    found = _names(folder, (images, labels), names)
    check_own(out, name)
    training, test = set_apart(items, test_share, seed)
    return write_datalist(
        out, training, found, test=test, num_folds=num_folds, seed=seed, name=name
    )


def check_share(test_share: float) -> None:
    """Check that a share is from 0 to below 1.

    Raises:
        InputError: when it is not.
    """
    if not 0 <= test_share < 1:
        raise InputError(
            f"test_share is {test_share}, expected a share from 0 to below 1: change it."
        )


def set_apart(
    items: Sequence[dict[str, str]], test_share: float, seed: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the items to train on and those of `test_share` of the patients, drawn at random."""
    patients = list(dict.fromkeys(item["patient"] for item in items))
    random.Random(seed).shuffle(patients)
    num_test = round(test_share * len(patients))
    training, test = (
        [item for patient in part for item in items if item["patient"] == patient]
        for part in (patients[num_test:], patients[:num_test])
    )
    return training, test


def _names(folder: Path, patterns: tuple[str, str], names: str) -> dict[str, str]:
    """Return the name of each value in the labels."""
    if names:
        return {"0": "background"} | {str(value): name for value, name in read_names(names).items()}
    beside = folder / "dataset.json"
    if beside.is_file() and (known := read_label_names(beside, read_json(beside).get("labels"))):
        return {str(value): name for value, name in known.items()}
    if patterns == OF_LITS:
        return LITS_LABELS
    raise InputError(
        f"{folder}: found nothing that says what the values in the labels are, expected their "
        "names: give them with --names, as --names 1=liver,2=lesion."
    )
