"""Check what MONAI is asked to do with a bundle's config, before any of it is done.

MONAI takes any name for a setting and any part of a config for something to run, and its command
line reads as Python whatever looks like it. A config that asks for liverseg first gets all this
checked here, typed or called from Python.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from monai.bundle import ConfigExpression, ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle.scripts import (
    ckpt_export,
    create_workflow,
    onnx_export,
    run,
    run_workflow,
    trt_export,
    verify_net_in_out,
)
from monai.utils import ensure_tuple

from liverseg.errors import InputError, message
from liverseg.kinds import is_text
from liverseg.settings import (
    ELSEWHERE,
    check_name,
    is_used,
    nearest,
    read_setting,
    read_words,
    walk,
)


def _names(*functions: Callable) -> set[str]:
    """Return MONAI's own options, without those that it passes on to the config."""
    return {
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


RUN_OPTIONS = _names(run, create_workflow, ConfigWorkflow)
# MONAI's commands that take a network out of a config.
EXPORTS = {
    function.__code__: _names(function)
    for function in (ckpt_export, onnx_export, trt_export, verify_net_in_out)
}
# Lists of expressions that MONAI runs around the one that was asked for.
AROUND = ("imports", "initialize", "finalize")
# What MONAI's command line takes for the name of an option, and not for a value such as -1.
FLAG = re.compile("--|-[a-zA-Z]")


@dataclass(frozen=True)
class Command:
    """A call of `monai.bundle.run` or `create_workflow`.

    Attributes:
        options: MONAI's own, such as `config_file`, by name.
        settings: what it changes in the config, by name.
    """

    options: Mapping[str, Any]
    settings: Mapping[str, Any]


_commands: WeakKeyDictionary[ConfigWorkflow, Command] = WeakKeyDictionary()


def check_command() -> None:
    """Check the command that a config is initialised for, and read its settings into the config.

    Nothing is checked where a config is used without MONAI's commands or `create_workflow`.

    Raises:
        InputError: for an id that runs nothing, a setting that the config does not use, and a
            value that none can have.
    """
    for frame, _ in traceback.walk_stack(None):
        values = frame.f_locals
        if frame.f_code is create_workflow.__code__:
            if isinstance(values.get("workflow_"), ConfigWorkflow):
                _check_workflow(values["workflow_"], _paths(values["config_file"]), values["_args"])
            return
        if frame.f_code in (run.__code__, run_workflow.__code__):
            # MONAI has left out `initialize`, as it was given another id for it which the
            # config does not have.
            workflow = values.get("workflow") or values["workflow_"]
            _check_ids(workflow.parser, {"init_id": workflow.init_id})
            return
        if frame.f_code in EXPORTS:
            given, options = dict(values["_args"]), EXPORTS[frame.f_code]
            _read_settings(values["parser"], _paths(values["config_file_"]), given, options)
            return


def running_command() -> Command | None:
    """Return the command whose workflow runs the expression that calls this, or None."""
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code is ConfigWorkflow._run_expr.__code__:
            return _commands.get(frame.f_locals["self"])
    return None


def is_command_line() -> bool:
    """Return whether this process was started as `python -m monai.bundle`."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main is not None and main.name == "monai.bundle.__main__"


def print_message(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error in the user's input as one message; a `sys.excepthook`.

    LIVERSEG_TRACEBACK=1 shows the traceback too.
    """
    found = message(error)
    if found is None or os.environ.get("LIVERSEG_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
    else:
        # A progress bar may have left the cursor at the end of its line.
        print(f"\nerror: {found}", file=sys.stderr)


def _check_workflow(
    workflow: ConfigWorkflow, files: Sequence[str], arguments: Mapping[str, Any]
) -> None:
    options = {name: value for name, value in arguments.items() if name in RUN_OPTIONS}
    given = {name: value for name, value in arguments.items() if name not in RUN_OPTIONS}
    _check_ids(workflow.parser, options)
    settings = _read_settings(workflow.parser, files, given, RUN_OPTIONS)
    _commands[workflow] = Command({**options, "config_file": files}, settings)


def _paths(config_file: Any) -> list[str]:
    return [os.fspath(file) for file in ensure_tuple(config_file)]


def _check_ids(config: ConfigParser, options: Mapping[str, Any]) -> None:
    if "run_id" in options:
        known = [
            name for name, value in config.get().items() if name not in AROUND and _runs(value)
        ]
        if options["run_id"] not in known:
            near = nearest(str(options["run_id"]), known)
            raise InputError(
                f"run {options['run_id']}: found no id of this config that runs anything, expected "
                f"one of {', '.join(known)}: choose one{f', perhaps {near}' if near else ''}."
            )
    for name in ("init_id", "final_id"):
        if name in options and options[name] not in config:
            raise InputError(
                f"{name}: found {options[name]!r}, expected a name of the config: put a value with "
                "spaces in quotes, and several files as --config_file \"['a.json','b.json']\"."
            )


def _runs(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(map(ConfigExpression.is_expression, value))
    )


def _read_settings(
    config: ConfigParser, files: Sequence[str], settings: dict[str, Any], options: Collection[str]
) -> dict[str, Any]:
    """Check settings of the user, put what they mean into `config`, and return it."""
    if is_command_line():
        typed = _typed({*settings, *options})
        # A path for each of several networks is no text.
        settings |= {
            name: value
            for name, value in typed.items()
            if not isinstance(settings.get(name), Mapping)
        }
    shipped = ConfigParser(ConfigParser.load_config_files(files), globals=False)
    for name in settings:
        check_name(name, shipped, config, options)
        if not is_used(name, shipped, config) and not _runs(config.get(name)):
            raise InputError(
                f"{name}: found a setting that nothing in "
                f"{', '.join(map(os.path.basename, files))} uses, expected one that "
                "changes something: leave it out."
            )
    # Of several files, the first is the bundle's own.
    own: dict[str, Any] = {}
    for file in reversed(files):
        own |= ConfigParser.load_config_file(file)
    for name in {**config.get(), **settings}:
        before = config.get(name)
        given = settings.get(name, before)
        if is_text(name) and str(given).startswith(ELSEWHERE):
            there = name in settings and os.path.exists(given)
            given = os.path.join(os.curdir, given) if there else before
        elif not is_text(name) and name in settings and given is not None:
            words = read_words(before)
            given = before if words == before else words
        nested = "::" in ReferenceResolver.normalize_id(name)
        value = given if nested else read_setting(name, given, own, config)
        if value is not before:
            for place in _places(name, shipped):
                _put(config, place, value)
            if is_text(name):  # and no part of the config, whatever it looks like
                config.ref_resolver.resolved_content[name] = value
        if name in settings:
            settings[name] = value
    return settings


def _typed(known: Collection[str]) -> dict[str, Any]:
    """Return the options of the command line that MONAI's parser loses: text and None."""
    arguments = [*sys.argv[1:], "--"]
    typed = {}
    for argument, following in itertools.pairwise(arguments[: arguments.index("--") + 1]):
        if FLAG.match(argument):
            name, equals, text = argument.lstrip("-").partition("=")
            typed[name.replace("-", "_")] = text if equals else following
    texts = {name: text for name, text in typed.items() if is_text(name) and not FLAG.match(text)}
    absent = {name: None for name, text in typed.items() if text == "None" and name not in known}
    return {**absent, **texts}


def _places(name: str, shipped: ConfigParser) -> Iterator[str]:
    """Yield the id `name`, and those to which MONAI copied it for a macro, as `%network_def`."""
    identifier = ReferenceResolver.normalize_id(name)
    yield identifier
    for copy, value in walk(shipped.get()):
        source = ReferenceResolver.normalize_id(str(value))
        if source.startswith("%") and identifier.startswith(f"{source[1:]}::"):
            yield copy + identifier.removeprefix(source[1:])


def _put(config: ConfigParser, identifier: str, value: Any) -> None:
    """Change a config that is being resolved; `ConfigParser` itself would begin anew."""
    above, _, last = identifier.rpartition("::")
    config.get(above)[last] = value
    items, resolved = config.ref_resolver.items, config.ref_resolver.resolved_content
    for old in [one for one in {**items, **resolved} if f"{one}::".startswith(f"{identifier}::")]:
        items.pop(old, None)
        resolved.pop(old, None)
    part = ConfigParser({}, globals=config.globals)
    part.set(value, identifier)
    part.parse()
    items |= {
        one: item
        for one, item in part.ref_resolver.items.items()
        if f"{one}::".startswith(f"{identifier}::")
    }
