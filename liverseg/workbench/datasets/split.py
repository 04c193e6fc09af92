"""Make a datalist from a folder of images and labels."""

from __future__ import annotations

import random
from pathlib import Path

from liverseg.data import write_datalist
from liverseg.data.phantom_io import LITS_LABELS
from liverseg.errors import InputError
from liverseg.io.paths import absolute, is_hidden


def split_folder(folder: Path, images: str, labels: str, test_share: float, num_folds: int, seed: int) -> Path:
    """Pair images with labels by patient, keep a share of the patients for testing, and write `dataset.json`.

    Args:
        folder: holds the files.
        images: pattern of the images below `folder`, with `{}` for the patient.
        labels: pattern of the labels.
        test_share: share of the patients in `test`, 0 to below 1.
        num_folds: folds over the other patients.
        seed: decides which patients go where.

    Raises:
        InputError: for a pattern without `{}`, no image at all, or an image without a label.
    """
    for pattern in (images, labels):
        if pattern.count("{}") != 1:
            raise InputError(f"pattern {pattern!r}: expected {{}} once, for the patient, as in 'volume-{{}}.nii'.")
    if not 0 <= test_share < 1:
        raise InputError(f"test_share is {test_share}, expected a share from 0 to below 1: change it.")
    before, after = images.split("{}")
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.glob(images.replace("{}", "*")) if not is_hidden(path)
    )
    items = []
    for image in found:
        patient = image[len(before) : len(image) - len(after)]
        label = labels.replace("{}", patient)
        if not (folder / label).is_file():
            raise InputError(
                f"{folder / label}: there is no label for {image}: add it, or mend the pattern {labels!r}."
            )
        items.append({"image": image, "label": label, "patient": patient})
    if not items:
        raise InputError(f"{folder}: no file matches {images!r}: name the images with --images.")
    random.Random(seed).shuffle(items)
    num_test = round(test_share * len(items))
    return write_datalist(
        folder / "dataset.json",
        items[num_test:],
        LITS_LABELS,
        test=items[:num_test],
        num_folds=num_folds,
        seed=seed,
        name=absolute(folder).name,
    )
