"""Configs rendered from their sources: what the merging gives, and how the result reads."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from helpers.bundle_runs import ROOT
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.zoo.render import render, stale_configs, to_json, write_configs

BUNDLES = sorted(path.parent for path in ROOT.glob("bundles/*/bundle.json"))
BASED_ON_2D = [
    path for path in BUNDLES if '"parent": "2d.json"' in (path / "bundle.json").read_text()
]


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
    return tmp_path


def test_parts_are_put_together_in_their_order(tree):
    texts = {path.name: json.loads(text) for path, text in render(tree / "bundles/tiny").items()}
    assert list(texts["train.json"].items()) == [
        ("bundle_root", "."),
        ("amp", False),
        ("losses", ["iou", "dice"]),
        ("network_def", {"_target_": "FCN"}),
        ("run", []),
    ]
    # It goes into another file, so it stays as it is.
    assert texts["evaluate.json"] == {"validate#inferer#progress": False}


def test_only_what_changes_is_written_and_check_names_it(tree, monkeypatch):
    monkeypatch.chdir(tree)
    bundle = tree / "bundles" / "tiny"
    assert [path.name for path in write_configs(bundle)] == ["train.json", "evaluate.json"]
    assert stale_configs(bundle) == write_configs(bundle) == []
    assert CliRunner().invoke(app, ["zoo", "render", "--check"]).exit_code == 0
    train = bundle / "configs" / "train.json"
    train.write_text(train.read_text().replace("FCN", "UNet"))
    result = CliRunner().invoke(app, ["zoo", "render", "--check"])
    assert isinstance(result.exception, InputError)
    assert "tiny/configs/train.json" in result.stdout
    assert "UNet" in train.read_text()
    assert CliRunner().invoke(app, ["zoo", "render", "tiny"]).exit_code == 0
    assert "FCN" in train.read_text()


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
    ],
)
def test_a_source_that_is_wrong_is_named(tree, file, content, message):
    (tree / "bundles" / file).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        render(tree / "bundles" / "tiny")


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
def test_configs_are_what_their_sources_say_and_read_well(bundle):
    assert stale_configs(bundle) == []
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
    """As CONTRIBUTING says: a folder with a bundle.json, and the rest is rendered."""
    shutil.copytree(ROOT / "bundles" / "_shared", tmp_path / "_shared")
    bundle = tmp_path / "new_liver"
    bundle.mkdir()
    own = {
        "parent": "2d.json",
        "+network": {"network_def": {"_target_": "liverseg.networks.SimpleNet", "num_classes": 2}},
        "+train_names": {"experiment_name": "new_liver"},
        "metadata": {"name": "New"},
    }
    (bundle / "bundle.json").write_text(json.dumps(own))
    write_configs(bundle)
    train = json.loads((bundle / "configs" / "train.json").read_text())
    known = json.loads((ROOT / "bundles/unet_liver/configs/train.json").read_text())
    assert set(train) == set(known)
    assert train["network_def"]["_target_"] == "liverseg.networks.SimpleNet"
