"""Check the settings that a user gives to a bundle's config, and read their short forms."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver

from liverseg.errors import InputError
from liverseg.kinds import KINDS, is_text

# What an expression, a reference and a part of a file begin with in MONAI's configs.
ELSEWHERE = ("$", "@", "%")
# Names of earlier versions, and what they are called now.
RENAMED = {
    "mask_cleaning": "postprocessing",
    "liver_cleaning": "liver_postprocessing",
    "liver_cleanings": "liver_postprocessings",
}
# Losses of earlier versions, and what computes the same.
REPLACED = {
    "iou_10_10": "iou",
    "iou_15_05": "iou_xy with --iou_xy_alpha 1.5",
    "iou_05_15": "iou_xy with --iou_xy_alpha 0.5",
    "dice_uniform": "dice",
}
# JSON's words, which the command line passes on as text.
WORDS = {"true": True, "false": False, "null": None}


def check_name(
    name: str, shipped: ConfigParser, config: ConfigParser, others: Iterable[str] = ()
) -> None:
    """Check that a config has a setting, or makes use of one that it gets.

    Args:
        name: of the setting, with `#` or `::` between its levels.
        shipped: the config as its files have it.
        config: the config with all settings that the user gave.
        others: more names that the user may have meant.

    Raises:
        InputError: for a name that nothing uses.
    """
    identifier = ReferenceResolver.normalize_id(name)
    if identifier in shipped:
        return
    *above, last = identifier.split("::")
    new = RENAMED.get(identifier.partition("::")[0])
    if new is not None and new in shipped:
        raise InputError(
            f"{name}: found the name of an earlier version, expected {new}: write --{new}."
        )
    parents = [config.get("::".join(above[:depth])) for depth in range(1, len(above) + 1)]
    known: Collection[str] | None
    if parents and ConfigComponent.is_instantiable(parents[-1]):
        known, place = _arguments(parents[-1], config), parents[-1]["_target_"]
        if known is None or last in known:
            return
    elif any(map(ConfigComponent.is_instantiable, parents)) or is_used(identifier, shipped, config):
        return
    else:
        known, place = _keys(shipped.get("::".join(above), {})), "the config"
    near = nearest(last, [*known, *others])
    if near:
        advice = f"correct it, perhaps to --{'#'.join([*above, near])}"
    else:
        nested = [one for one, _ in walk(shipped.get()) if one.endswith(f"::{last}") and not above]
        advice = (
            f"correct it, perhaps to --{nested[0].replace('::', '#')}"
            if nested
            else "correct it or leave it out"
        )
    raise InputError(
        f"{name}: found no {last} in {place}, expected a name that is there: {advice}."
    )


def is_used(name: str, shipped: ConfigParser, config: ConfigParser) -> bool:
    """Return whether a config refers to a setting, to what it is in, or to what is in it.

    Args:
        name: of the setting.
        shipped: the config as its files have it, with macros such as `%network_def`,
            which MONAI replaces.
        config: the config with all settings that the user gave.
    """
    texts = [
        value for one in (shipped, config) for _, value in walk(one.get()) if isinstance(value, str)
    ]
    found = {
        reference for text in texts for reference in ReferenceResolver.match_refs_pattern(text)
    }
    found |= {ReferenceResolver.normalize_id(text[1:]) for text in texts if text.startswith("%")}
    identifier = f"{ReferenceResolver.normalize_id(name)}::"
    return any(
        f"{one}::".startswith(identifier) or identifier.startswith(f"{one}::") for one in found
    )


def read_setting(name: str, value: Any, shipped: Mapping[str, Any], config: ConfigParser) -> Any:
    """Return what a setting means.

    Args:
        name: of the top of a config.
        value: as a user gave it.
        shipped: the config as the bundle ships it, which tells what kind of value this is.
        config: the config with all that the user gave, which may have more entries to choose from.

    Returns:
        The value as the config needs it: `dice` becomes `@losses#dice`, and a single number for
        `spacing` one for each axis. Expressions, references and settings that are not declared in
        `KINDS` stay as they are.

    Raises:
        InputError: for a value that the setting cannot have.
    """
    if not is_text(name):
        value = read_words(value) if isinstance(value, str) else value
    elif value in ("None", "null") and name in shipped and shipped[name] is None:
        return None
    if value is None and shipped.get(name) is None:
        return value
    if isinstance(value, str) and value.startswith(ELSEWHERE):
        _check_reference(name, value, config)
        return value
    group = _group(name, shipped)
    section = group or _indexed(name, shipped)
    if section and not isinstance(value, Mapping):
        known = _keys(config.get(section))
        if value not in known:
            raise InputError(
                f"{name}: found {value!r}, expected one of "
                f"{', '.join(known)}: {_choose(value, known)}."
            )
        return f"@{group}::{value}" if group else value
    return KINDS[name](name, value, shipped.get(name)) if name in KINDS else value


def reference(value: Any) -> tuple[str, str] | None:
    """Return the section and entry that a value refers to: `("losses", "dice")`.

    The value is then `@losses#dice`.
    """
    chosen = re.fullmatch(r"@(\w+)(?:#|::)(\w+)", str(value))
    return (chosen[1], chosen[2]) if chosen else None


def read_words(value: Any) -> Any:
    """Return `value`, with what JSON means by `true`, `false` and `null` for these words."""
    if isinstance(value, dict):
        return {key: read_words(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [read_words(one) for one in value]
    return WORDS.get(value, value) if isinstance(value, str) else value


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the name that is most like `word`, if one is like it."""
    return next(iter(difflib.get_close_matches(word, known, 1, 0.7)), None)


def walk(content: Any, identifier: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the id and the value of everything in a config."""
    if identifier:
        yield identifier, content
    if isinstance(content, (dict, list)):
        for _, inner, value in ReferenceResolver.iter_subconfigs(identifier, content):
            yield from walk(value, inner)


def _keys(section: Any) -> list[str]:
    return (
        [key for key in section if not key.startswith("_")] if isinstance(section, Mapping) else []
    )


def _choose(value: Any, known: Iterable[str]) -> str:
    if value in REPLACED:
        return f"write {REPLACED[value]}, which is the same"
    near = nearest(str(value), known)
    return f"choose one, perhaps {near}" if near else "choose one"


def _group(name: str, shipped: Mapping[str, Any]) -> str | None:
    """Return the section that a setting chooses from: `losses` for `loss`, `@losses#dice_ce`."""
    chosen = reference(shipped.get(name))
    return chosen[0] if chosen else f"{name}es" if f"{name}es" in shipped else None


def _indexed(name: str, shipped: Mapping[str, Any]) -> str | None:
    """Return the section whose keys a setting names: `intensities` of `$@intensities[…]`."""
    for _, text in walk(shipped):
        found = re.search(rf"@(\w+)\[@{name}\]", text) if isinstance(text, str) else None
        if found:
            return found[1]
    return None


def _check_reference(name: str, value: str, config: ConfigParser) -> None:
    if is_text(name) and re.fullmatch(r"\$[\w./-]+", value):
        raise InputError(
            f"{name}: found {value}, expected text or a path: write ./{value} "
            "for a path that begins so."
        )
    identifier = ReferenceResolver.normalize_id(value[1:])
    if value[0] != "@" or not re.fullmatch(r"\w+(::\w+)*", identifier) or identifier in config:
        return
    group, _, entry = identifier.rpartition("::")
    known = _keys(config.get(group)) if group else []
    expected = f"one of {', '.join(known)}" if known else "a name of the config after the @"
    advice = _choose(entry, known) if known else f"correct it, or write ./{value} for a path"
    raise InputError(
        f"{name}: found @{identifier.replace('::', '#')}, expected {expected}: {advice}."
    )


def _arguments(component: Mapping[str, Any], config: ConfigParser) -> list[str] | None:
    """Return what a component takes; None where it takes anything, or is not there to ask."""
    target = ConfigComponent(component, locator=config.locator).resolve_module_name()
    function = (
        locate(target) if isinstance(target, str) and not target.startswith(ELSEWHERE) else None
    )
    if function is None:
        return None
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except ValueError:  # of dict and other builtins nobody can tell
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [*(parameter.name for parameter in parameters), *ConfigComponent.non_arg_keys]
