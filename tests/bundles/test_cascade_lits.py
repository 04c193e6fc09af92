"""What the configs of cascade_lits must agree on: training a plane, evaluating and inferring it."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.bundle_runs import BUNDLE, monai_bundle_here
from monai.bundle import ConfigParser

from liverseg.errors import message
from liverseg.networks import CascadeNetworks, cascade_weights
from liverseg.networks.cascade import PLANE_AXES

CONFIGS = BUNDLE.parent / "cascade_lits" / "configs"
SPACING = [1.1, 1.2, 1.3]


def config(*names: str, **settings) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([CONFIGS / name for name in names])
    for key, value in {"bundle_root": str(CONFIGS.parent), "spacing": SPACING, **settings}.items():
        parser[key] = value
    return parser


@pytest.mark.parametrize("plane", PLANE_AXES)
def test_inference_looks_at_a_plane_as_it_was_trained(plane):
    grid = config("train.json", stage="tune", plane=plane).get_parsed_content("grid")
    assert [{"R": 0, "A": 1, "S": 2}[letter] for letter in grid["axcodes"]] == list(
        PLANE_AXES[plane]
    )
    assert grid["spacing"] == [1.1, 1.2, -1]  # of x and y; slices along z stay where they are
    assert grid["slice_spacing"] == [
        -1,
        -1 if plane == "axial" else 1.3,
        -1,
    ]  # then the columns, which are z
    inferer = config("inference.json").get_parsed_content("inferer#inferer")
    assert inferer.slices[plane].spacing == tuple(grid["slice_spacing"][:2])
    assert inferer.region_grid.spacing == tuple(grid["spacing"][:2])


def test_evaluation_segments_as_inference_does():
    inference, evaluation = config("inference.json"), config("train.json", "evaluate.json")
    pairs = {
        "inferer#inferer": "validate#inferer",
        "cascade": "cascade",
        "liver_postprocessing": "liver_postprocessing",
        "localisers": "localisers",
        "slice_inferers": "slice_inferers",
        "cascade_inferer": "cascade_inferer",
        "liver_localised": "liver_localised",
    }
    for one, other in pairs.items():
        assert inference[one] == evaluation[other]


def test_training_localises_as_inference_does():
    training, inference = config("train.json"), config("inference.json")
    for target in ("liver", "lesion"):
        transform = training[f"targets#{target}#prior"]
        assert transform["keys"] == "@keys"
        trained = transform["localiser"]
        used = inference[f"localisers#{target}"]
        assert used.pop("_mode_") == "callable"
        assert {trained.pop(key) is None for key in ("network", "weights")} == {False}
        if target == "lesion":
            # Training reads of the lesions' mask only its box: it crops to the liver, and learns
            # without a finding too.
            assert (
                trained.pop("postprocessing")
                == f"${used.pop('postprocessing')} if @prior == 'box' else None"
            )
        assert used == trained


def test_every_stage_has_its_place_and_none_is_forgotten():
    stages = json.loads((CONFIGS / "train.json").read_text())["all_stages"]
    expected = [
        {"target": target, **stage}
        for target in ("liver", "lesion")
        for stage in (
            {"stage": "localise"},
            *({"stage": "tune", "plane": plane} for plane in PLANE_AXES),
        )
    ]
    assert stages == expected


def test_every_training_ends_with_one_file_of_what_all_stages_have_written():
    content = json.loads((CONFIGS / "train.json").read_text())
    written = {}
    for stage in content["all_stages"]:
        parser = config("train.json", ckpt_dir="weights", **stage)
        written[f"{stage['target']}_{parser.get_parsed_content('part')}"] = (
            parser.get_parsed_content("train#ckpt_dir").rstrip("/") + "/model.pt"
        )
    parser = config("train.json", ckpt_dir="weights")
    assert parser.get_parsed_content("stage_models") == written
    assert cascade_weights("weights") == written
    assert list(CascadeNetworks(torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(2, 1, 1))) == list(
        written
    )
    assert "run" not in json.loads((CONFIGS / "multi_gpu_train.json").read_text())
    merge = "$@liverseg.networks.merge_weights(@stage_models, os.path.join(@ckpt_dir, 'model.pt'))"
    assert content["run"][-1] == content["rounds"][-1] == merge


def test_what_segments_is_part_of_what_is_checked_and_exported():
    for parser in (config("inference.json"), config("train.json", "evaluate.json")):
        some = {**parser["cascade"]}
        assert (some.pop("targets"), some.pop("planes")) == ("@segmented_targets", "@planes")
        assert some == parser["network_def"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"stage": "tuning"}, "stage: found 'tuning', expected one of localise, tune"),
        ({"target": "spleen"}, "target: found 'spleen', expected one of liver, lesion"),
        ({"plane": "oblique"}, "plane: found 'oblique', expected one of axial, coronal, sagittal"),
    ],
)
def test_an_unknown_stage_or_plane_is_one_message(tmp_path, monkeypatch, setting, words):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--config_file", CONFIGS / "train.json"]
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", *arguments, **setting)
    assert message(error.value).startswith(words)
