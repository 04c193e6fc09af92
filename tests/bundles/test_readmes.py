"""What the READMEs of the bundles say is right in the repository and beside an unpacked archive."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.bundle_runs import ROOT
from helpers.readme_commands import check_run, commands
from typer.main import get_command

from liverseg.workbench.cli import app

READMES = sorted(ROOT.glob("bundles/*/docs/README.md"))
# What follows from other settings, is described with the losses, or is MONAI's.
NO_ROW = {
    "in_channels",
    "num_classes",
    "iou_xy_alpha",
    "round",
    "save_execute_config",
    "is_not_rank0",
}


@pytest.fixture(params=READMES, ids=lambda path: path.parents[1].name)
def readme(request) -> Path:
    return request.param


def test_no_link_leads_out_of_the_bundle(readme):
    text = readme.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    bundle = readme.parents[1]
    for link in links:
        path, _, place = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        assert target.is_relative_to(bundle) and target.is_file(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if place else []
        assert not place or place in [
            re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles
        ]
    assert "../" not in text


def test_lines_wrap_at_100_and_papers_are_named_by_author_and_year(readme):
    text = readme.read_text()
    # Tables, headings and commands cannot wrap.
    prose = re.sub(r"^```.*?^```|^[|#].*$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 100] == []
    assert re.findall(r"\b[Pp]apers? [A-E]\b", text) == []


def test_rows_of_the_table_are_settings_and_numbers_have_a_row(readme):
    configs = [
        json.loads((readme.parents[1] / "configs" / f"{name}.json").read_text())
        for name in ("train", "fine_tune", "inference")
    ]
    table = readme.read_text().partition("## Settings")[2].partition("\n## ")[0].split("\n###")[0]
    cells = re.findall(r"^\|([^|]+)\|", table, re.MULTILINE)
    rows = {name for cell in cells for name in re.findall(r"`(\w+)[`#]", cell)}
    names = {name for config in configs for name in config}
    assert rows - names == set()
    numbers = {
        key for config in configs for key, value in config.items()
        if isinstance(value, bool | int | float) and "#" not in key and key not in NO_ROW
    }  # fmt: skip
    assert numbers - rows == set()


def test_options_are_names_of_the_configs(readme, tmp_path):
    """Those of "…" go on with the command before them."""
    started = []
    for command in commands(readme, tmp_path):
        if "monai.bundle" in command:
            started = command[command.index("monai.bundle") + 1 :]
        if command[0] not in ("python", "torchrun", "…") or "run" not in started[:1]:
            continue
        check_run(started if command[0] != "…" else [*started, *command[1:]], readme.parents[1])


def test_commands_of_liverseg_exist_and_are_marked_as_of_the_repository(readme, tmp_path):
    typed = [command[1:] for command in commands(readme, tmp_path) if command[0] == "liverseg"]
    assert ["data", "phantoms", "data"] in [command[:3] for command in typed]
    for data, verb, *arguments in typed:
        command = get_command(app).commands[data].commands[verb]
        # All but the running: typer reads the names and the values of the options.
        assert command.make_context(verb, arguments).params
    text = " ".join(readme.read_text().split())
    first = text.index("liverseg data")
    assert 'In the repository, after `pip install ".[workbench]"`' in text[first - 200 : first]
    assert "a downloaded archive of the bundle has none of them" in text


def test_what_is_to_be_installed_is_a_package_or_this_repository():
    """The package liverseg of the package index, if there is one, is not this project."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *READMES, *ROOT.glob("liverseg/**/*.py")]
    files += [path for path in ROOT.glob("monailabel_app/**/*.py") if "model" not in path.parts]
    bad = [str(path) for path in files if re.search(r"liverseg\[", path.read_text())]
    assert bad == []
