"""What a client chose for a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lib.bundle import as_text
from liverseg.bundle import is_true
from liverseg.errors import InputError


def read_options(
    model: str, defaults: Mapping[str, Any], request: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of each option.

    Args:
        model: its name.
        defaults: by option; of a list, the first is the default and all are choices.
        request: what the client sent.

    Raises:
        InputError: for a value that is none.
    """
    chosen: dict[str, Any] = {}
    for key, default in defaults.items():
        value = request.get(key, default)
        if isinstance(default, list):
            value = value[0] if isinstance(value, list) and value else value
            # Which devices there are besides, the bundle knows.
            known = value in default or (key == "device" and value and isinstance(value, str))
            expected = "" if known else f"one of {', '.join(default)}"
        elif isinstance(default, bool):
            value, expected = is_true(value), ""
        else:
            value, expected = _number(key, value, type(default))
        if expected:
            raise InputError(
                f"model {model}, option {key}: found {as_text(value)!r}, expected {expected}: "
                "fix it."
            )
        chosen[key] = value
    return chosen


def _number(key: str, value: Any, kind: type) -> tuple[Any, str]:
    """A number, and what was expected if it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return value, "a whole number" if kind is int else "a number"
    if key == "val_split" and not 0 < number < 1:
        return value, "a share between 0 and 1"
    if number < 1 if kind is int else number <= 0:
        return value, "a larger number"
    return kind(number), ""
