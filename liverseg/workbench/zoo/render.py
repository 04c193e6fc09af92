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

import json
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from jinja2.meta import find_referenced_templates
from monai.bundle import ConfigParser

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
    sections = _load([shared / parent, own] if parent else [own])
    sections.pop("parent", None)
    configs, overlays = sections.pop("configs", {}), sections.pop("overlays", {})
    documents = sections.pop("documents", {})
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
    return rendered, documents


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


def _load(files: list[Path]) -> dict[str, Any]:
    for file in files:
        _read(file)
    return ConfigParser.load_config_files(files)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except ValueError as error:
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
