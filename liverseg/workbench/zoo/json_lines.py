"""Write JSON in lines of 100 characters, as configs are written."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 100


def to_json(content: Any, indent: int = 0, used: int = 0) -> str:
    """Return `content` as JSON in lines of 100 characters, as far as its strings let it.

    A list or dictionary is on one line if it fits; in one that holds no others, lines are filled.

    Args:
        content: what JSON can hold.
        indent: of the line where it begins.
        used: characters before it on that line, after the indent.
    """
    line = json.dumps(content, ensure_ascii=False)
    fits = indent > 0 and indent + used + len(line) < WIDTH
    if not isinstance(content, (dict, list)) or not content or fits:
        return line
    inner = " " * (indent + 4)
    if isinstance(content, dict):
        keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in content]
        values = list(content.values())
    else:
        keys, values = [""] * len(content), content
    parts = [
        key + to_json(value, indent + 4, len(key)) for key, value in zip(keys, values, strict=True)
    ]
    if indent and not any(isinstance(value, dict) for value in values):
        parts = _fill(parts, WIDTH - indent - 4)
    opening, closing = "{}" if isinstance(content, dict) else "[]"
    body = ",\n".join(inner + part for part in parts)
    return f"{opening}\n{body}\n{' ' * indent}{closing}" + ("" if indent else "\n")


def _fill(parts: list[str], width: int) -> list[str]:
    """Join parts with commas to lines of at most `width` with the comma at their end."""
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > width:
            lines.append(part)
        else:
            lines[-1] += f", {part}"
    return lines
