"""Commands of the documents exist, with each verb, option, setting and file that they name."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import monai.bundle.__main__ as monai_bundle
import pytest
import yaml
from helpers.bundle_runs import ROOT
from helpers.readme_commands import PROGRAMS, check_run, commands
from jsonschema import validate
from typer.exceptions import TyperException
from typer.main import get_command

from liverseg.errors import InputError
from liverseg.workbench.cli import app

COMMAND = get_command(app)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
STUDIES = ROOT / "liverseg" / "workbench" / "study" / "studies"
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/inference.json"))
# Programs of others, whose arguments are not looked at.
OTHERS = ("curl", "sudo", "mlflow", "tensorboard", "python3.11")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request) -> Path:
    return request.param


@pytest.fixture
def typed(document, tmp_path) -> list[list[str]]:
    """Commands of a document's shell blocks, as the clone of a reader runs them."""
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    return commands(document, tmp_path, [*PROGRAMS, "make", "pip", "monailabel", *OTHERS])


def verb_of(words: list[str]):
    """The command of `liverseg` that words begin with, its name, and the words after it."""
    command, words, name = COMMAND, list(words), []
    while hasattr(command, "commands"):
        assert words, f"liverseg {' '.join(name)}: names no verb"
        name.append(words.pop(0))
        assert name[-1] in command.commands, f"liverseg {' '.join(name)}"
        command = command.commands[name[-1]]
    return command, name, words


def verbs(command, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not hasattr(command, "commands"):
        return [name]
    return [verb for key, each in command.commands.items() for verb in verbs(each, (*name, key))]


def options_of(script: str) -> set[str]:
    """Options of an argparse script, short and long, read from its text."""
    calls = re.findall(r'add_argument\(\s*((?:"-[\w-]+"[,\s]*)+)', script)
    return set(re.findall(r"-[\w-]+", " ".join(calls)))


def check_liverseg(words: list[str]) -> None:
    command, name, arguments = verb_of(words)
    # All but the running: typer reads the names and the values of the options.
    context = command.make_context(" ".join(name), arguments)
    if name[0] == "study" and "study" in context.params:
        file = Path(context.params["study"])
        assert file.name.startswith("my") or (STUDIES / file).is_file(), file
    if name[:2] == ["zoo", "distill"] and context.args:
        bundle = ROOT / "bundles" / context.params["bundle"]
        check_run(["run", "training", "--config_file", "configs/train.json", *context.args], bundle)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, _ = word.partition("=")
        kind = rf"\$\({name}\)" if equals else rf"^{name}:"
        assert re.search(kind, makefile, re.MULTILINE), word


def check_pip(words: list[str]) -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(settings["options.extras_require"]), extras


def check_monailabel(words: list[str]) -> None:
    script = Path(find_spec("monailabel").origin).with_name("main.py").read_text()
    assert f'"{words[0]}"' in script
    assert {word for word in words if word.startswith("-")} <= options_of(script)


def check_bundle(words: list[str]) -> None:
    """A command of the root names its bundle; one without runs in the folder of a bundle."""
    assert hasattr(monai_bundle, words[0]), words
    if words[0] != "run":
        return
    errors = []
    for folder in [ROOT] if "--bundle_root" in words else BUNDLES:
        try:
            return check_run(words, folder)
        except (InputError, AssertionError) as error:
            errors.append(error)
    raise AssertionError(errors[0])


def check_script(words: list[str]) -> None:
    script = (ROOT / words[0]).read_text()
    assert {word for word in words[1:] if word.startswith("-")} <= options_of(script), words


def check(command: list[str]) -> None:
    program, words = command[0], command[1:]
    if "monai.bundle" in words:
        check_bundle(words[words.index("monai.bundle") + 1 :])
    elif program == "python":
        check_script(words)
    elif program not in OTHERS:
        {
            "liverseg": check_liverseg,
            "make": check_make,
            "pip": check_pip,
            "monailabel": check_monailabel,
        }[program](words)


def test_commands_in_blocks_parse(typed):
    for command in typed:
        check(command)


def test_commands_in_the_text_name_verbs_and_options_that_exist(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`((?:liverseg|make) [^`]+)`", text):
        program, *words = shlex.split(code.replace("…", ""))
        if program == "make":
            check_make(words)
        elif words[0] != "VERB":
            if len(words) == 1 and hasattr(COMMAND.commands.get(words[0]), "commands"):
                continue
            command, _, arguments = verb_of(words)
            known = {option for each in command.params for option in each.opts} | {"--help"}
            assert {word for word in arguments if word.startswith("--")} <= known, code


@pytest.mark.parametrize(
    "command",
    [
        "liverseg zoo fech unet3d_liver",
        "liverseg data split data --maske x",
        "liverseg study run papers_a.yaml",
        "make demoo",
        "make label STUDY=x",
        'pip install ".[labels]"',
        "monailabel start_server --studie x",
        "python benchmarks/postprocessing.py --shapes 1 1 1",
        "python -m monai.bundle run trainin --config_file configs/train.json",
        "python -m monai.bundle run training --config_file configs/train.json --max_epoch 1",
        "torchrun -m monai.bundle run training --config_file configs/train.json --loss @losses#dce",
    ],
)
def test_wrong_commands_are_found(command):
    with pytest.raises((AssertionError, InputError, TyperException)):
        check(shlex.split(command))


def test_every_verb_is_in_the_reference():
    listed = re.findall(
        r"^\| `liverseg ([\w -]+)` \|",
        (ROOT / "docs" / "reference" / "commands.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(listed) == sorted(" ".join(verb) for verb in verbs(COMMAND))


def test_the_readme_has_a_command_to_segment_to_train_and_to_annotate(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    typed = commands(ROOT / "README.md", tmp_path, [*PROGRAMS, "make", "pip", *OTHERS])
    text = [" ".join(command) for command in typed]
    for part in ("run inference", "run training", "make label", "make demo", "pip install"):
        assert any(part in each for each in text), part


def test_the_citation_names_this_version_and_the_five_papers():
    import liverseg

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # The fields that the schema of CFF 1.2.0 requires, of the file and of each reference.
    person = {"anyOf": [{"required": ["family-names"]}, {"required": ["name"]}]}
    work = {
        "required": ["authors", "title", "type"],
        "properties": {"authors": {"minItems": 1, "items": person}},
    }
    schema = {
        "required": ["cff-version", "message", "title", "authors"],
        "properties": {
            "cff-version": {"const": "1.2.0"},
            "authors": {"minItems": 1, "items": person},
            "references": {"minItems": 5, "maxItems": 5, "items": work},
        },
    }
    validate(citation, schema)
    assert citation["version"] == liverseg.__version__
    readme = " ".join((ROOT / "README.md").read_text().split())
    for reference in citation["references"]:
        assert reference["title"] in readme
        assert reference.get("doi", "") in readme
