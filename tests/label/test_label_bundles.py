"""What the app makes of the project's bundles, and of requests for them."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.bundle_runs import ROOT
from helpers.label_bundles import tiny_bundle

from liverseg.errors import InputError

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from lib.bundle import find_bundles, read_bundle
from lib.train.retrain import Retraining

BUNDLES = sorted((ROOT / "bundles").glob("[!_]*/"))


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_every_bundle_of_the_project_is_taken(folder):
    bundle = read_bundle(folder)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    assert list(bundle.labels.values()) == list(range(1, config["num_classes"]))
    assert bundle.labels["liver"] == list(bundle.labels).index("liver") + 1
    cleanings = bundle.choices["postprocessing"]
    assert {value: f"@postprocessings#{value}" for value in config["postprocessings"]} == cleanings
    # What is not chosen is what the config says.
    for key, choices in bundle.choices.items():
        assert bundle.settings({key: list(choices)})[key] == config[key]
    assert bundle.settings({}) == {}


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_every_choice_is_one_that_the_config_can_resolve(folder):
    bundle = read_bundle(folder)
    for key, choices in bundle.choices.items():
        for text in choices:
            with bundle.workflow(bundle.settings({key: text})) as parser:
                parser.get_parsed_content("postprocessing", instantiate=False, eval_expr=False)
                parser.get_parsed_content("inferer#inferer")


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_every_bundle_of_the_project_can_be_trained(folder, tmp_path):
    task = Retraining(read_bundle(folder), tmp_path / "validation.json")
    losses = json.loads((folder / "configs" / "train.json").read_text())["losses"]
    shown = task.config()
    offered = [value for key, value in shown.items() if key.endswith("loss")]
    assert offered
    assert all(sorted(names) == sorted(losses) for names in offered)
    assert 0 < shown["learning_rate"] < 0.1
    # As 3D Slicer sends them: the first of each list.
    chosen = task.options(
        {key: value[0] if isinstance(value, list) else value for key, value in shown.items()}
    )
    assert chosen == task.options({})


def test_names_narrow_and_must_be_there(tmp_path):
    for name in ("one", "two"):
        tiny_bundle(tmp_path / "bundles" / name, "unet_liver")
    (tmp_path / "model").mkdir()
    shutil.copytree(tmp_path / "bundles" / "one", tmp_path / "model" / "one")
    folders = [tmp_path / "bundles", tmp_path / "model", tmp_path / "none"]
    taken, refused = find_bundles(folders)
    assert {name: bundle.folder.parent.name for name, bundle in taken.items()} == {
        "one": "bundles",
        "two": "bundles",
    }
    assert "rename" in refused["model/one"]
    taken, refused = find_bundles(folders, ["two"])
    assert list(taken) == ["two"]
    assert "--conf models" in refused["bundles/one"]
    with pytest.raises(InputError, match=r"three.*one, two"):
        find_bundles(folders, ["two", "three"])


def test_no_bundle_reads_the_code_of_another(tmp_path):
    """An archive's config puts its folder on the path, where the next bundle must not find code."""
    import sys

    own = {
        "imports": ["$import os", "$import sys", "$from liverseg.bundle import require"],
        "liverseg": "$sys.path.append(os.path.abspath(@bundle_root)) or require('0.1')",
    }
    one = tiny_bundle(tmp_path / "one", "unet_liver", **own)
    before = sys.path[:]
    with read_bundle(one).workflow({}):
        assert str(one) in sys.path
    assert sys.path == before


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("inference.json", {"evaluator": None}, "found no evaluator"),
        ("inference.json", {"displayable_configs": {"planes": ["axial"]}}, "planes"),
        ("inference.json", {"displayable_configs": {"modality": ["mr"]}}, "lacks the default"),
        ("metadata.json", {"network_data_format": {}}, "found no labels"),
    ],
)
def test_a_folder_that_is_no_bundle_says_why(tmp_path, file, change, words):
    path = tiny_bundle(tmp_path / "one", "unet_liver") / "configs" / file
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(InputError, match=words):
        read_bundle(tmp_path / "one")
