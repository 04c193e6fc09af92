"""Render a bundle's configs and documents from their sources: what bundles share, and its own.

The sources of the configs are `bundles/_shared/*.json` and `bundles/<name>/bundle.json`. A
`bundle.json` has sections, each a piece of a config, and lists the parts of each config in order: a
section, or a file of `_shared`. Its `parent`, a file of `_shared`, is a `bundle.json` that it
changes.

The parts of `configs` are put together as MONAI does with several `--config_file`: what comes later
replaces what was there, `+name` adds to a list or dictionary, `a#b` goes into it. Those of
`overlays` are not: an overlay such as `evaluate.json` keeps its `a#b`, for they go into the
train.json that it is given with.

The documents are jinja2 templates: `README.md.j2` and `data_license.txt.j2` of the bundle, or of
`_shared` where the bundle has none. They extend templates of `_shared` and fill their blocks.
LICENSE and logging.conf are copies.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.meta import find_referenced_templates
from monai.bundle import ConfigParser
from monai.bundle.utils import MERGE_KEY, merge_kv

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.workbench.zoo.json_lines import to_json

COPIES = {"LICENSE": "LICENSE", "configs/logging.conf": "logging.conf"}
DOCUMENTS = ("README.md.j2", "data_license.txt.j2")


def render(bundle: Path) -> dict[Path, str]:
    """Return the text of each rendered file of a bundle by the path where it belongs.

    Args:
        bundle: its folder, beside the folder `_shared`.

    Raises:
        InputError: for a source that is missing or no JSON, a part that is neither a section nor a
            file, and a template with an unknown name or block.
    """
    configs, values = _render_configs(bundle)
    texts = {f"configs/{name}.json": to_json(content) for name, content in configs.items()}
    texts |= {
        name: _read_text(bundle.parent / "_shared" / source) for name, source in COPIES.items()
    }
    values |= {"name": bundle.name} | {
        name: configs.get(name, {}) for name in ("metadata", "train", "inference")
    }
    for source in DOCUMENTS:
        name = f"docs/{source.removesuffix('.j2')}"
        texts[name] = _render_document(bundle, source, values)
    return {bundle / name: text for name, text in texts.items()}


def write_files(bundle: Path) -> list[Path]:
    """Write a bundle's rendered files; return those that were out of date.

    Raises:
        InputError: as `render`, and where they cannot be written.
    """
    texts = render(bundle)
    changed = _stale(texts)
    for path in changed:
        check_writable(path.parent)
        with atomic_write(path) as file:
            file.write(texts[path].encode())
    return changed


def stale_files(bundle: Path) -> list[Path]:
    """Return the rendered files of a bundle that are missing or differ from their sources.

    Raises:
        InputError: as `render`.
    """
    return _stale(render(bundle))


def _stale(texts: dict[Path, str]) -> list[Path]:
    return [
        path
        for path, text in texts.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def _render_configs(bundle: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of the configs by name, and the section `documents`."""
    own, shared = bundle / "bundle.json", bundle.parent / "_shared"
    parent = _read(own).get("parent")
    sources = [shared / parent, own] if parent else [own]
    sections = _merge({str(file): _read(file) for file in sources})
    sections.pop("parent", None)
    configs, overlays = sections.pop("configs", {}), sections.pop("overlays", {})
    documents = sections.pop("documents", {})
    if not configs:
        raise InputError(
            f"{own}: found no configs and no parent that has them, expected one: add it."
        )
    places = {path.name: str(path) for path in shared.glob("*.json")}
    places |= {name: f"{own}: {name}" for name in sections}
    for config, parts in {**configs, **overlays}.items():
        missing = [part for part in parts if part not in places]
        if missing:
            raise InputError(
                f"{own}: {config}: found {missing[0]}, expected a section of {own.name} or a file "
                f"of {shared}: correct it."
            )

    everywhere = {part for parts in {**configs, **overlays}.values() for part in parts}
    for name, content in sections.items():
        if name not in everywhere or not isinstance(content, dict):
            expected = (
                "one that a config uses" if isinstance(content, dict) else "names with values"
            )
            raise InputError(f"{own}: found the section {name}, expected {expected}: correct it.")

    def read(parts: Sequence[str]) -> dict[str, dict[str, Any]]:
        contents = {
            places[part]: sections[part] if part in sections else _read(shared / part)
            for part in parts
        }
        for place, content in contents.items():
            # MONAI adds to what is at the top only.
            nested = [name for name in _names([*content.values()]) if name.startswith(MERGE_KEY)]
            if nested:
                raise InputError(
                    f"{place}: found {nested[0]} inside a value, expected the + at the front of a "
                    f"whole name: write it as +…#{nested[0][1:]}."
                )
        return contents

    rendered = {name: _merge(read(parts)) for name, parts in configs.items()}
    for name, parts in overlays.items():
        contents = read(parts).values()
        merged = {key: value for content in contents for key, value in content.items()}
        rendered[name] = _fold(merged)
    return rendered, documents


def _merge(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return contents, by the places to name in an error, merged as `--config_file` of MONAI."""
    parser = ConfigParser({}, globals=False)
    for place, content in contents.items():
        for key, value in content.items():
            base = key.removeprefix(MERGE_KEY)
            # MONAI copies what it cannot merge, with a warning.
            if key != base and base not in parser:
                raise InputError(f"{place}: found {key}, but no {base} to add to: correct it.")
            try:
                merge_kv(parser, key, copy.deepcopy(value))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{place}: found {key}, but nothing that it could go into: correct it."
                ) from error
    merged: dict[str, Any] = parser.get()
    return merged


def _names(value: Any) -> Iterator[str]:
    """Yield the names in a value, at every depth."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from _names(inner)


def _fold(overlay: dict[str, Any]) -> dict[str, Any]:
    """Return an overlay with each `a#b` in its own `a`, where it has one."""
    parser = ConfigParser(overlay, globals=False)
    for key in [key for key in overlay if "#" in key]:
        if key.partition("#")[0] in overlay:
            parser[key] = overlay.pop(key)
    return overlay


def _render_document(bundle: Path, source: str, values: dict[str, Any]) -> str:
    """Return the text of a template of the bundle, or of `_shared` where the bundle has none."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(bundle.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    folder = bundle.name if (bundle / source).is_file() else "_shared"
    try:
        template = environment.get_template(f"{folder}/{source}")
        text = template.render(values)
        known = _shared_blocks(environment, bundle.parent / folder / source)
    except jinja2.TemplateError as error:
        line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise InputError(
            f"{bundle / source}: {line}{error.message}, expected names and blocks that the "
            "templates have: correct it."
        ) from error
    unknown = sorted(set(template.blocks) - known) if folder != "_shared" else []
    if unknown:
        raise InputError(
            f"{bundle / source}: found the block {unknown[0]}, expected one of "
            f"{', '.join(sorted(known))}: correct it."
        )
    return text


def _shared_blocks(environment: jinja2.Environment, template: Path) -> set[str]:
    """Return the blocks of all templates that a template extends or includes."""
    blocks: set[str] = set()
    for name in find_referenced_templates(environment.parse(template.read_text(encoding="utf-8"))):
        other = template.parents[1] / str(name)
        blocks |= set(environment.get_template(str(name)).blocks)
        blocks |= _shared_blocks(environment, other)
    return blocks


def _plain(value: Any) -> str:
    """Return a config's value as documents write it: `[1.5, -1.0]` as "1.5, −1"."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        value = f"{value:.8f}".rstrip("0").rstrip(".")
    return str(value).replace("-", "−")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: not a JSON file ({error}): fix it.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: found a {type(content).__name__}, expected names with values: fix it."
        )
    return content


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{file}: could not be read ({error.strerror}), expected a source of bundles: put it "
            "there."
        ) from error
