"""The labelled scans of the store: which of them validate, and what the values of their labels mean."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.volumes import read_label, values_in
from liverseg.errors import InputError
from liverseg.files import write_atomically
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
        raise InputError(f'{file}: found {error!r}, expected {{"images": [ids]}}: mend or remove it.') from error


def split(file: Path, labelled: Collection[str], val_split: float) -> tuple[list[str], list[str]]:
    """Divide labelled scans into those that train and those that validate.

    Who validates is drawn once, written to `file` and never changed: all scans that are labelled later train.

    Args:
        file: where the scans that validate are written.
        labelled: ids of all scans with a final label.
        val_split: the share that validates, when they are drawn.

    Raises:
        InputError: where no scan is left for one of the two.
    """
    drawn = read_validation(file)
    if not drawn:
        if len(labelled) < 2:
            raise InputError(
                f"studies: found {len(labelled)} scans with a final label, expected 2 or more, one of which validates: "
                "label more scans."
            )
        number = min(max(1, round(val_split * len(labelled))), len(labelled) - 1)
        drawn = sorted(random.Random(SEED).sample(sorted(labelled), number))
        text = json.dumps({"seed": SEED, "images": drawn}, indent=1)
        write_atomically(file, lambda stream: stream.write(text.encode()))
    training, validation = sorted(set(labelled) - set(drawn)), [name for name in drawn if name in labelled]
    if not training or not validation:
        raise InputError(
            f"{file}: found {len(training)} labelled scans that train and {len(validation)} of {len(drawn)} that "
            "validate, expected some of each: label more of them, or remove the file to draw anew."
        )
    return training, validation


def items(
    datastore: Datastore, names: Collection[str], classes: Mapping[str, int], folder: Path
) -> list[dict[str, str]]:
    """The scans and labels of `names` as a datalist has them, with values that are those of `classes`.

    Clients number segments as they like and say by name which is which. Where that differs, a copy of the label is
    written to `folder`. A segment of another name is background, but a lesion belongs to the liver where a bundle has
    no lesions. Values of `classes` without a name stay as they are.

    Args:
        datastore: the studies.
        names: ids of scans with a final label.
        classes: value by name, in lower case.
        folder: for the copies.

    Raises:
        InputError: for an info of a label from which no names can be read, and for values without a name that are none
            of `classes`.
    """
    found = []
    for name in names:
        label = Path(datastore.get_label_uri(name, FINAL))
        try:
            values = _values(segment_names(datastore.get_label_info(name, FINAL)), classes)
        except InputError as error:
            raise InputError(f"scan {name}, its final label: {error}") from error
        # 0 is what no segment is.
        drawn = read_label(str(label))
        _check_values(name, drawn, {0, *classes.values(), *values})
        if any(here != there for here, there in values.items()):
            label = _renumber(drawn, values, folder / f"{name}.nii.gz")
        found.append({"image": datastore.get_image_uri(name), "label": str(label)})
    return found


def segment_names(info: Mapping[str, Any]) -> dict[int, str]:
    """The name of each value in a label, as its info says it: what 3D Slicer sends, or what a model gave.

    Args:
        info: `label_info`, a list of `{"name": text, "idx": value}`, or `params#label_names`, value by name.

    Raises:
        InputError: for an info of another form.
    """
    try:
        named = [(one["name"], one["idx"]) for one in info.get("label_info") or () if "name" in one and "idx" in one]
        named = named or list(dict((info.get("params") or {}).get("label_names") or {}).items())
        return {int(value): str(name) for name, value in named}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        said = {key: info[key] for key in ("label_info", "params") if key in info}
        raise InputError(
            f'found {json.dumps(said)}, expected {{"label_info": [{{"name": text, "idx": value}}]}}: save the label '
            "anew."
        ) from error


def _values(names: Mapping[int, str], classes: Mapping[str, int]) -> dict[int, int]:
    """The bundle's value by that in the file."""
    known = {**classes, "lesion": classes.get("lesion", classes.get("liver", 0))}
    return {value: known.get(name.lower().replace("_", " "), 0) for value, name in names.items()}


def _check_values(name: str, label: MetaTensor, known: Collection[int]) -> None:
    unknown = [str(value) for value in values_in(label) if value not in known]
    if unknown:
        raise InputError(
            f"scan {name}, its final label: found values {', '.join(unknown[:5])} without a name, expected a name for "
            f"each or only {', '.join(map(str, sorted(known)))}: save the label anew with named segments."
        )


def _renumber(label: MetaTensor, values: Mapping[int, int], target: Path) -> Path:
    before = label[0].numpy()
    after = before.copy()
    for here, there in values.items():
        after[before == here] = there
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(target, after, label.affine.numpy())
    return target
