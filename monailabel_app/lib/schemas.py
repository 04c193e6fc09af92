"""Names and JSON that requests give, checked before they are stored, where they would meet everyone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from liverseg.errors import InputError

# What the server itself writes of a scan, beside the scores, and says of the next one.
OF_THE_SERVER = ("id", "name", "path", "score", "served", "strategy", "ts", "warnings")
LONGEST_NAME = 200


def check_name(what: str, name: Any) -> None:
    """Refuse what cannot be a file of its own in a folder.

    Raises:
        InputError: for it.
    """
    wrong = (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or any(part in name for part in "/\\")
    )
    if wrong or not name.isprintable():
        raise InputError(
            f"{what}: found {name!r}, expected a name without slashes and leading dot: rename it."
        )
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"{what}: found a name of {len(name.encode())} bytes ({name[:20]}…), expected {LONGEST_NAME} at most: "
            "shorten it."
        )


def json_object(what: str, text: str) -> dict[str, Any]:
    """The JSON object in a field of a request.

    Raises:
        InputError: for anything else.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what}: found no JSON ({error}), expected an object of options: fix it."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{what}: found {value!r}, expected an object of options by name: fix it.")
    return value


def check_json(what: str, value: Mapping[str, Any]) -> None:
    """Refuse what Python reads from JSON but cannot answer with.

    Raises:
        InputError: for NaN, infinite numbers and half characters.
    """
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what}: found {error}, expected finite numbers and Unicode text: fix it."
        ) from error


def check_image_info(what: str, info: Mapping[str, Any], scores: Collection[str]) -> None:
    """Refuse what a client may not say of a scan.

    Raises:
        InputError: for keys that are the server's own, and as `check_json`.
    """
    check_json(what, info)
    own = sorted({*OF_THE_SERVER, *scores} & set(info))
    if own:
        raise InputError(
            f"{what}: found {', '.join(own)}, expected keys that are not the server's own: rename them."
        )


def check_label_info(what: str, info: Mapping[str, Any]) -> None:
    """Refuse what no training could read of a label: which value is which segment.

    Args:
        what: the field of the request.
        info: `label_info` is what 3D Slicer sends, `params` with `label_names` what a model gave.

    Raises:
        InputError: for another form, and as `check_json`.
    """
    check_json(what, info)
    segments = info.get("label_info", [])
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
        raise _wrong_segments(what, segments)
    for one in segments:
        if not _is_value(one.get("idx", 0)) or not isinstance(one.get("name", ""), str):
            raise _wrong_segments(what, one)
    params = info.get("params", {})
    names = params.get("label_names", {}) if isinstance(params, dict) else None
    if not isinstance(names, dict) or not all(map(_is_value, names.values())):
        raise InputError(
            f'{what}: found params {params!r}, expected {{"label_names": {{name: value}}}} as a model gives it: leave '
            "it out."
        )


def _is_value(value: Any) -> bool:
    return type(value) is int and value >= 0


def _wrong_segments(what: str, found: Any) -> InputError:
    return InputError(
        f'{what}: found label_info {found!r}, expected a list of {{"name": text, "idx": whole number}}: send it as 3D '
        "Slicer does."
    )
