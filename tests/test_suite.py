"""What holds for every test: it waits no longer than it has to, and knows no private name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
COMMANDS = {"run", "call", "check_call", "check_output"}
CLOCKS = {"perf_counter", "monotonic", "process_time"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(tree: ast.AST) -> Iterator[ast.AST]:
    """Imports, attributes and patches of private names, but those of the test's own classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if any(is_private(alias.name) for alias in node.names):
                yield node
        elif isinstance(node, ast.Attribute):
            if is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls", "os"):
                yield node
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            strings = [part.value for part in node.args[:2] if isinstance(part, ast.Constant)]
            if any(is_private(str(text).rpartition(".")[2]) for text in strings):
                yield node


def clocks(tree: ast.AST) -> Iterator[ast.AST]:
    """Calls of a clock, and loops that sleep: `helpers.waiting` has the one that is needed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node) in CLOCKS:
            yield node
        elif isinstance(node, (ast.For, ast.While)):
            calls = (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))
            yield from (call for call in calls if name_of(call) == "sleep")


def endless(tree: ast.AST) -> Iterator[ast.AST]:
    """Commands, waits and requests without a timeout."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or "timeout" in {word.arg for word in node.keywords}:
            continue
        name, of = name_of(node), ast.unparse(node.func).rpartition(".")[0]
        if (
            (of == "subprocess" and name in COMMANDS)
            or name == "urlopen"
            or (of and name == "communicate")
            or (of and name in ("wait", "join") and not node.args)
        ):
            yield node


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


@pytest.mark.parametrize("find", [private_names, clocks, endless], ids=lambda find: find.__name__)
def test_of_every_test(find):
    found = []
    for file in sorted(TESTS.rglob("*.py")):
        name = file.relative_to(TESTS)
        # They are where the waiting is done.
        if name.parts[0] == "helpers" and find is not endless:
            continue
        nodes = find(ast.parse(file.read_text()))
        found += [f"{name}:{node.lineno}: {ast.unparse(node)}" for node in nodes]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("find", "code"),
    [
        (private_names, "from liverseg.networks.fcn import _upsample"),
        (private_names, "inferer._finished_planes(volume)"),
        (private_names, "monkeypatch.setattr(voxel_counts, '_read_label', read)"),
        (private_names, "monkeypatch.setattr('liverseg.workbench.serve._wait', wait)"),
        (clocks, "assert time.perf_counter() - started < 3"),
        (clocks, "while not file.exists():\n    time.sleep(1)"),
        (endless, "subprocess.run(command, check=True)"),
        (endless, "process.communicate('yes')"),
        (endless, "process.wait()"),
        (endless, "thread.join()"),
        (endless, "urllib.request.urlopen(url)"),
    ],
)
def test_it_is_found(find, code):
    assert list(find(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations\nself._answer(type(x).__name__)",
        "', '.join(names)\nprocess.wait(SECONDS)\nthread.join(SECONDS)\nwait_until(ended)",
        "subprocess.run(command, timeout=SECONDS)\nurlopen(url, timeout=SECONDS)",
    ],
)
def test_what_is_right_is_not_found(code):
    assert not [
        *private_names(ast.parse(code)),
        *clocks(ast.parse(code)),
        *endless(ast.parse(code)),
    ]
