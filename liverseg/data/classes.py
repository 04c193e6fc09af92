"""Check that a set of labels can teach the classes of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from liverseg.data.segment_names import is_known, our_name
from liverseg.data.voxel_counts import count_voxels
from liverseg.errors import InputError

Classes = Mapping[str, Sequence[int] | None]


def check_label_names(what: str, labels: Mapping[int, str], classes: Classes) -> None:
    """Check that classes name the values of labels as the data set does.

    Unknown names are not checked, the background may be anything, and a lesion may be liver.

    Args:
        what: the data set, for the message.
        labels: name of each value; missing ones are not checked.
        classes: as for `MapLabelsd`.

    Raises:
        InputError: naming value, name and class.
    """
    for name, values in classes.items():
        mine = our_name(name)
        accepted = {mine, "lesion"} if mine == "liver" else {mine}
        for value in values or ():
            other = labels.get(value, "")
            if (
                is_known(other)
                and is_known(mine)
                and mine != "background"
                and our_name(other) not in accepted
            ):
                raise InputError(
                    f"{what}: labels: found {other!r} for the value {value}, expected {name!r}: "
                    "choose the classes, or the data set, that fit."
                )


def check_classes(
    what: str, data: Sequence[Mapping[str, Any]], classes: Classes, datalist: str | os.PathLike[str]
) -> None:
    """Check that each class has a voxel in the labels.

    Labels are read until every class was found, and what was read is remembered as by
    `count_voxels`. An empty list of values says that the data do not have the class.

    Args:
        what: the labels, for the message.
        data: items with `label`.
        classes: as for `MapLabelsd`.
        datalist: the file that `data` was read from.

    Raises:
        InputError: naming the classes, and as `count_voxels`.
    """
    missing, read = [name for name, values in classes.items() if values != []], 0
    while missing and read < len(data):
        read = min(4 * read or 1, len(data))
        counts = dict(zip(classes, count_voxels(data[:read], classes, datalist), strict=True))
        missing = [name for name in missing if not counts[name]]
    if missing:
        values = ", ".join(
            f"{name} ({', '.join(map(str, classes[name] or ()))})" for name in missing
        )
        raise InputError(
            f"{what}: found no voxel of {values} in the labels of {len(data)} scans, expected some "
            "of each class: add scans that show it, hold out others, or say with "
            f"--classes#{missing[0]} [] that the data have none."
        )
