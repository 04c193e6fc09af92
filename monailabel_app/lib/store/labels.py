"""What the values of a saved label mean: which of them are which segment of a bundle."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from liverseg.data.segment_names import is_known, our_name
from liverseg.errors import InputError


def segment_names(info: Mapping[str, Any]) -> dict[int, str]:
    """The name of each value in a label by its info: what 3D Slicer sends, or what a model gave.

    Args:
        info: `label_info`, a list of `{"name": text, "idx": value}`, or `params#label_names`, value
            by name.

    Raises:
        InputError: for an info of another form, and a value of two names.
    """
    try:
        named = [
            (one["name"], one["idx"])
            for one in info.get("label_info") or ()
            if "name" in one and "idx" in one
        ]
        named = named or list(dict((info.get("params") or {}).get("label_names") or {}).items())
        names: dict[int, str] = {}
        for name, value in named:
            if our_name(names.setdefault(int(value), str(name))) != our_name(str(name)):
                raise ValueError(f"{value} is {names[int(value)]} and {name}")
        return names
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        given = {key: info[key] for key in ("label_info", "params") if key in info}
        raise InputError(
            f"found {json.dumps(given)}, expected "
            '{"label_info": [{"name": text, "idx": value}]}: save the label anew.'
        ) from error


def match(
    values: Collection[int],
    names: Mapping[int, str],
    classes: Mapping[str, int],
    known: Collection[str] = (),
) -> dict[int, int]:
    """The value of a bundle for each value in a label.

    Another organ is background on purpose, and a lesion belongs to the liver where a bundle has no
    lesions. In a label without any names, values are the bundle's own.

    Args:
        values: in the label, without 0.
        names: of values in the label.
        classes: the bundle's value by name.
        known: names that other bundles have, beside those that are known anyway.

    Raises:
        InputError: for no values, for values without a name where others have one or the bundle has
            no such value, and for names that nobody knows, which would be background without a
            word.
    """
    if not values:
        raise InputError(
            "found no segment, expected one or more: draw or segment, and save the label anew."
        )
    mine = {our_name(name): value for name, value in classes.items()}
    mine.setdefault("lesion", mine.get("liver", 0))
    given = names or {value: name for name, value in classes.items()}
    if unnamed := [str(value) for value in values if value not in given]:
        or_only = "" if names else f" or only {', '.join(map(str, sorted(given)))}"
        raise InputError(
            f"found values {', '.join(unnamed[:5])} without a name, expected a name for "
            f"each{or_only}: save the label anew with named segments."
        )
    others = {our_name(name) for name in known}
    ours = {value: our_name(given[value]) for value in values}
    if unknown := [
        given[value]
        for value, name in ours.items()
        if name not in {*mine, *others} and not is_known(name)
    ]:
        raise InputError(
            f"found segments called {', '.join(map(repr, unknown[:5]))}, expected names that are "
            f"known, as {', '.join(sorted({*classes, *known} - {'background'}))}: rename or "
            "remove them, and save the label anew."
        )
    return {value: mine.get(name, 0) for value, name in ours.items()}


def check_segments(
    values: Collection[int], info: Mapping[str, Any], labels: Mapping[str, Mapping[str, int]]
) -> None:
    """Refuse a label of which a training could not tell what its segments are.

    Args:
        values: in the label, without 0.
        info: of the label, as `segment_names` reads it.
        labels: of each bundle, value by segment name.

    Raises:
        InputError: as `match`, and for values without a name that are another segment for another
            bundle.
    """
    names = segment_names(info)
    for value in () if names else values:
        meant = {
            our_name(name): bundle
            for bundle, some in labels.items()
            for name, one in some.items()
            if one == value
        }
        if len(meant) > 1:
            several = " and ".join(f"{name} for {bundle}" for name, bundle in meant.items())
            raise InputError(
                f"found the value {value} without a name, which is {several}, expected a name for "
                "each: save the label anew with named segments."
            )
    match(values, names, {name: value for some in labels.values() for name, value in some.items()})
