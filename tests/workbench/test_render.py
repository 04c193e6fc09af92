"""Configs and documents rendered from their sources: what they hold, and how they read."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from helpers.bundle_runs import ROOT
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.zoo.json_lines import to_json
from liverseg.workbench.zoo.render import render, stale_files, write_files

BUNDLES = sorted(path.parent for path in ROOT.glob("bundles/*/bundle.json"))
BASED_ON_2D = [
    path for path in BUNDLES if '"parent": "2d.json"' in (path / "bundle.json").read_text()
]

DOCUMENTS = ["LICENSE", "logging.conf", "README.md", "data_license.txt"]
INTRODUCTION = """{% extends "_shared/base.md.j2" %}
{% block introduction %}
Uses {{ train.network_def["_target_"] }}.
{% endblock %}
"""


@pytest.fixture
def tree(tmp_path):
    """A folder of bundles with one bundle that has a parent."""
    sources = {
        "_shared/base.json": {
            "network": {"network_def": {"_target_": "UNet"}},
            "names": {"amp": True},
            "configs": {"train": ["head.json", "names", "network", "tail.json"]},
            "overlays": {"evaluate": ["evaluate.json"]},
        },
        "_shared/head.json": {"bundle_root": "."},
        "_shared/tail.json": {"+losses": ["dice"], "run": []},
        "_shared/evaluate.json": {"validate#inferer#progress": False},
        "tiny/bundle.json": {
            "parent": "base.json",
            "+names": {"losses": ["iou"], "amp": False},
            "network": {"network_def": {"_target_": "FCN"}},
        },
    }
    for name, content in sources.items():
        path = tmp_path / "bundles" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    documents = {
        "_shared/LICENSE": "Free.",
        "_shared/logging.conf": "[loggers]",
        "_shared/data_license.txt.j2": "{{ name }} ships no data.\n",
        "_shared/base.md.j2": "# {{ name }}\n{% block introduction required %}{% endblock %}\n",
        "tiny/README.md.j2": INTRODUCTION,
    }
    for name, text in documents.items():
        (tmp_path / "bundles" / name).write_text(text)
    return tmp_path


def test_parts_are_put_together_in_their_order(tree):
    texts = {
        path.name: json.loads(text)
        for path, text in render(tree / "bundles/tiny").items()
        if path.suffix == ".json"
    }
    assert list(texts["train.json"].items()) == [
        ("bundle_root", "."),
        ("amp", False),
        ("losses", ["iou", "dice"]),
        ("network_def", {"_target_": "FCN"}),
        ("run", []),
    ]
    # It goes into another file, so it stays as it is.
    assert texts["evaluate.json"] == {"validate#inferer#progress": False}


def test_an_overlay_shows_what_it_sets_in_one_place(tree):
    content = {"network": {"width": 2, "depth": 1}, "network#width": 3, "loss#x": 1}
    (tree / "bundles" / "_shared" / "evaluate.json").write_text(json.dumps(content))
    text = render(tree / "bundles/tiny")[tree / "bundles/tiny/configs/evaluate.json"]
    assert json.loads(text) == {"network": {"width": 3, "depth": 1}, "loss#x": 1}


def test_documents_are_copies_and_filled_templates(tree):
    bundle = tree / "bundles" / "tiny"
    texts = {path.relative_to(bundle).as_posix(): text for path, text in render(bundle).items()}
    assert texts["docs/README.md"] == "# tiny\nUses FCN.\n"
    assert texts["docs/data_license.txt"] == "tiny ships no data.\n"
    assert (texts["LICENSE"], texts["configs/logging.conf"]) == ("Free.", "[loggers]")
    (bundle / "data_license.txt.j2").write_text("Other data.\n")
    assert render(bundle)[bundle / "docs/data_license.txt"] == "Other data.\n"


def test_only_what_changes_is_written_and_check_names_it(tree, monkeypatch):
    monkeypatch.chdir(tree)
    bundle = tree / "bundles" / "tiny"
    assert [path.name for path in write_files(bundle)] == [
        "train.json",
        "evaluate.json",
        *DOCUMENTS,
    ]
    assert stale_files(bundle) == write_files(bundle) == []
    assert CliRunner().invoke(app, ["zoo", "render", "--check"]).exit_code == 0
    train = bundle / "configs" / "train.json"
    train.write_text(train.read_text().replace("FCN", "UNet"))
    result = CliRunner().invoke(app, ["zoo", "render", "--check"])
    assert isinstance(result.exception, InputError)
    assert "tiny/configs/train.json" in result.stdout
    assert "UNet" in train.read_text()
    assert CliRunner().invoke(app, ["zoo", "render", "tiny"]).exit_code == 0
    assert "FCN" in train.read_text()
    readme = bundle / "docs" / "README.md"
    readme.write_text("Changed by hand.")
    assert stale_files(bundle) == [readme]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tiny/bundle.json",
            '{"parent": "base.json", "configs": {"train": ["x"]}}',
            "train: found x, expected",
        ),
        ("tiny/bundle.json", "{", "bundle.json: not a JSON file"),
        ("tiny/bundle.json", '{"parent": "none.json"}', "none.json: could not be read"),
        ("tiny/bundle.json", "{}", "bundle.json: found no configs"),
        ("_shared/tail.json", "[]", "tail.json: found a list"),
        (
            "tiny/bundle.json",
            '{"parent": "base.json", "+nams": {"amp": false}}',
            "bundle.json: found +nams, but no nams to add to: correct it.",
        ),
        (
            "tiny/bundle.json",
            '{"parent": "base.json", "names#losses#dice": 1, "+names": {"losses": ["iou"]}}',
            "bundle.json: found names#losses#dice, but nothing that it could go into: correct it.",
        ),
        (
            "tiny/bundle.json",
            '{"parent": "base.json", "+names": {"x": [{"+losses": ["iou"]}]}, "network": {}}',
            "bundle.json: names: found +losses inside a value, expected the + at the front",
        ),
        (
            "tiny/bundle.json",
            '{"parent": "base.json", "trian": {"amp": false}}',
            "bundle.json: found the section trian, expected one that a config uses: correct it.",
        ),
        (
            "tiny/bundle.json",
            '{"parent": "base.json", "names": ["amp"]}',
            "bundle.json: found the section names, expected names with values: correct it.",
        ),
        (
            "tiny/README.md.j2",
            INTRODUCTION.replace("introduction", "introductoin"),
            "tiny/README.md.j2: Required block 'introduction' not found",
        ),
        (
            "tiny/README.md.j2",
            INTRODUCTION + "{% block setings %}{% endblock %}",
            "tiny/README.md.j2: found the block setings, expected one of introduction: correct it.",
        ),
        (
            "tiny/README.md.j2",
            INTRODUCTION.replace("train.", "training."),
            "tiny/README.md.j2: 'training' is undefined, expected",
        ),
        ("tiny/README.md.j2", "{% block x %}", "README.md.j2: line 1: Unexpected end of template"),
        ("tiny/data_license.txt.j2", '{% include "no" %}', "data_license.txt.j2: 'no' not found"),
    ],
)
def test_a_source_that_is_wrong_is_named(tree, file, content, message):
    (tree / "bundles" / file).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        render(tree / "bundles" / "tiny")
    assert "\n" not in str(error.value)


def test_a_bundle_without_sources_is_named(tree):
    (tree / "bundles" / "tiny" / "bundle.json").unlink()
    with pytest.raises(InputError, match=r"bundle\.json: could not be read"):
        render(tree / "bundles" / "tiny")


def test_json_is_filled_to_lines_of_100_characters():
    content = {
        "short": {"a": [1, 2], "b": {"c": None}},
        "list": [f"item {number}" for number in range(30)],
        "nested": [{"_target_": "x" * 60, "keys": "image", "more": True}, {"ä": "×"}],
    }
    text = to_json(content)
    assert json.loads(text) == content
    assert max(map(len, text.splitlines())) <= 100
    assert '    "short": {"a": [1, 2], "b": {"c": null}},' in text.splitlines()
    assert text.endswith('        {"ä": "×"}\n    ]\n}\n')


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_rendered_files_are_up_to_date_and_read_well(bundle):
    assert stale_files(bundle) == []
    for path in (bundle / "configs").glob("*.json"):
        text = path.read_text()
        if path.name != "metadata.json":
            assert [line for line in text.splitlines() if len(line) > 100] == []
        # An index says nothing, and means another part as soon as one is put in before it.
        assert [key for key in json.loads(text) if re.search(r"#\d+(#|$)", key)] == []


@pytest.mark.parametrize("bundle", BASED_ON_2D, ids=lambda path: path.name)
def test_a_2d_bundle_is_short(bundle):
    assert len((bundle / "configs" / "train.json").read_text().splitlines()) <= 350


def test_a_network_is_added_with_a_few_lines(tmp_path):
    """As CONTRIBUTING says: a folder with two files, and the rest is rendered."""
    shutil.copytree(ROOT / "bundles" / "_shared", tmp_path / "_shared")
    bundle = tmp_path / "new_liver"
    bundle.mkdir()
    own = {
        "parent": "2d.json",
        "+network": {"network_def": {"_target_": "liverseg.networks.SimpleNet", "num_classes": 2}},
        "+train_names": {"experiment_name": "new_liver", "learning_rate": 0.002},
        "+metadata": {"name": "Liver in CT with a new network"},
    }
    (bundle / "bundle.json").write_text(json.dumps(own))
    (bundle / "README.md.j2").write_text(
        '{% extends "_shared/2d.md.j2" %}{% block introduction %}\nIt is new.\n{% endblock %}'
    )
    write_files(bundle)
    written = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    other = ROOT / "bundles" / "unet_liver"
    files = [other / "LICENSE", *other.glob("configs/*"), *other.glob("docs/*")]
    files = {path.relative_to(other).as_posix() for path in files}
    assert written == {*files, "bundle.json", "README.md.j2"}
    train = json.loads((bundle / "configs" / "train.json").read_text())
    known = json.loads((ROOT / "bundles/unet_liver/configs/train.json").read_text())
    assert set(train) == set(known)
    assert train["network_def"]["_target_"] == "liverseg.networks.SimpleNet"
    readme = (bundle / "docs" / "README.md").read_text()
    assert readme.startswith("# new_liver: Liver in CT with a new network\n\nIt is new.\n")
    assert "| `learning_rate` | 0.002; `fine_tune.json`: 0.0002 |" in readme
    # Nothing trained by others starts its encoder.
    assert "encoder_weights" not in readme + (bundle / "docs" / "data_license.txt").read_text()
