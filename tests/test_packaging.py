"""Every import is declared in setup.cfg, and the run-time part needs nothing of the workbench."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from helpers.bundle_runs import ROOT
from helpers.waiting import SECONDS

# The extras that each part may import from, besides the base.
PARTS = {
    "liverseg": ("dicom", "itk", "segment", "crf", "tracking"),
    "liverseg/outputs": ("dicom", "itk", "segment", "workbench"),
    "liverseg/workbench": ("dicom", "workbench", "weights", "study", "cluster"),
    "monailabel_app": ("label",),
}
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """The distributions of the base install and of extras, and of the extras that these name."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    for extra in extras:
        lines += config["options.extras_require"][extra].split()
    found = set()
    for line in lines:
        name, more = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?.*", line).groups()
        found |= {normal(name)} | (declared(*more.split(",")) if more else set())
    return found


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def part_of(path: Path) -> str:
    return max((part for part in PARTS if path.is_relative_to(ROOT / part)), key=len)


@pytest.mark.parametrize("part", PARTS)
def test_every_import_is_declared(part):
    known = declared(*PARTS[part])
    files = [path for path in (ROOT / part).rglob("*.py") if part_of(path) == part]
    assert files
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path)
        if name not in sys.stdlib_module_names
        and name not in ("liverseg", "lib", "main")
        and not known & {normal(one) for one in DISTRIBUTIONS.get(name, [name])}
    }
    assert not undeclared


def run_without(modules: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """A None among the modules is how Python itself says that there is no such package."""
    code = f"import sys; sys.modules.update(dict.fromkeys({modules}))\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def test_the_run_time_part_needs_nothing_of_the_workbench():
    names = declared("workbench", "study", "weights") - declared()
    modules = [
        module
        for module, distributions in DISTRIBUTIONS.items()
        if names & {normal(one) for one in distributions}
    ]
    assert {"matplotlib", "jinja2", "typer", "rich", "yaml", "pydantic"} <= {*modules}
    code = """
import importlib, pkgutil, liverseg
for module in pkgutil.walk_packages(liverseg.__path__, "liverseg."):
    if not module.name.startswith("liverseg.workbench"):
        importlib.import_module(module.name)
print("all")
"""
    modules = sorted({*modules} - {"liverseg"})
    result = run_without(modules, code)
    assert result.stdout == "all\n", result.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("typer", ["--help"], "workbench"),
        ("jinja2", ["data", "check", "nowhere"], "workbench"),
        ("yaml", ["study", "run", "quick.yaml", "--dry-run"], "study"),
    ],
)
def test_without_an_extra_the_command_names_it(package, arguments, extra):
    code = f"sys.argv[1:] = {arguments}\nfrom liverseg.workbench.__main__ import main; main()"
    found = run_without([package], code)
    assert found.returncode == 1
    assert found.stderr == (
        f"error: found no package {package}, expected it: "
        f'pip install ".[{extra}]" in the repository.\n'
    )


def test_the_command_is_the_one_that_names_extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].split("\n")
    assert "liverseg = liverseg.workbench.__main__:main" in scripts
