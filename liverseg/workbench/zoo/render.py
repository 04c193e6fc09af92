"""Write a bundle's configs from what bundles share and what is this network's own.

`bundles/_shared/*.json` and `bundles/<name>/bundle.json` are the sources. A `bundle.json` has
sections, each a piece of a config, and lists the parts of each config in order: a section, or a
file of `_shared`. Its `parent`, a file of `_shared`, is a `bundle.json` that it changes.

The parts of `configs` are put together as MONAI does with several `--config_file`: what comes later
replaces what was there, `+name` adds to a list or dictionary, `a#b` goes into it. Those of
`overlays` are not: an overlay such as `evaluate.json` keeps its `a#b`, for they go into the
train.json that it is given with.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable

WIDTH = 100


def render(bundle: Path) -> dict[Path, str]:
    """Return the text of each of a bundle's configs by the path where it belongs.

    Args:
        bundle: its folder, beside the folder `_shared`.

    Raises:
        InputError: for a source that is missing or no JSON, and a part that is neither
            a section nor a file.
    """
    own, shared = bundle / "bundle.json", bundle.parent / "_shared"
    parent = _read(own).get("parent")
    sections = _load([shared / parent, own] if parent else [own])
    sections.pop("parent", None)
    configs, overlays = sections.pop("configs", {}), sections.pop("overlays", {})
    if not configs:
        raise InputError(
            f"{own}: found no configs and no parent that has them, expected one: add it."
        )
    with tempfile.TemporaryDirectory() as folder:
        files = {path.name: path for path in shared.glob("*.json")}
        for name, content in sections.items():
            files[name] = Path(folder) / f"{name}.json"
            files[name].write_text(json.dumps(content))
        for config, parts in {**configs, **overlays}.items():
            missing = [part for part in parts if part not in files]
            if missing:
                raise InputError(
                    f"{own}: {config}: found {missing[0]}, expected a section of {own.name} or a "
                    f"file of {shared}: correct it."
                )
        rendered = {name: _load([files[part] for part in parts]) for name, parts in configs.items()}
        for name, parts in overlays.items():
            contents = [_read(files[part]) for part in parts]
            rendered[name] = {key: value for content in contents for key, value in content.items()}
    return {
        bundle / "configs" / f"{name}.json": to_json(content) for name, content in rendered.items()
    }


def write_configs(bundle: Path) -> list[Path]:
    """Write a bundle's configs; return those that were out of date.

    Raises:
        InputError: as `render`, and where they cannot be written.
    """
    changed = stale_configs(bundle)
    texts = render(bundle)
    check_writable(bundle / "configs")
    for path in changed:
        with atomic_write(path) as file:
            file.write(texts[path].encode())
    return changed


def stale_configs(bundle: Path) -> list[Path]:
    """Return the configs of a bundle that are missing or not as their sources say.

    Raises:
        InputError: as `render`.
    """
    return [
        path
        for path, text in render(bundle).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


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
    """Join parts with commas to lines of at most `width`, with the comma at their end."""
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > width:
            lines.append(part)
        else:
            lines[-1] += f", {part}"
    return lines


def _load(files: list[Path]) -> dict[str, Any]:
    for file in files:
        _read(file)
    return ConfigParser.load_config_files(files)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: could not be read ({error.strerror}), expected a "
            "source of configs: put it there."
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: not a JSON file ({error}): fix it.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: found a {type(content).__name__}, expected names with values: fix it."
        )
    return content
