"""What is typed after `python -m monai.bundle`, or given to MONAI from Python, is checked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.bundle_runs import BUNDLE, monai_bundle, monai_bundle_here
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.bundle import run as run_bundle

from liverseg.errors import message

CONFIG = {
    "imports": ["$import json", "$from pkgutil import resolve_name"],
    "liverseg": "$resolve_name('liverseg.bundle').require('0.1')",
    "bundle_root": ".",
    "dataset_dir": "data",
    "datalist": "$@dataset_dir + '/dataset.json'",
    "output_dir": "$@bundle_root + '/eval'",
    "load_pretrain": None,
    "experiment_name": "tiny",
    "spacing": [1.5, 1.5, -1.0],
    "max_epochs": 5,
    "learning_rate": 0.1,
    "amp": True,
    "modality": "ct",
    "network_def": {
        "_target_": "torch.nn.Conv2d",
        "_requires_": "@liverseg",
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": 1,
        "bias": True,
    },
    "both": {"one": "%network_def"},
    "loss": "@losses#dice",
    "losses": {
        "dice": {"_target_": "DiceLoss", "batch": True},
        "iou": {"_target_": "DiceLoss", "jaccard": True},
    },
    "rates": ["@learning_rate", "@modality"],
    "trainer": {
        "_target_": "torch.nn.ModuleList",
        "modules": ["@network_def", "@both#one", "@loss"],
    },
    "train": {
        "seen": [
            "@dataset_dir",
            "@datalist",
            "@output_dir",
            "@load_pretrain",
            "@spacing",
            "@experiment_name",
        ]
    },
    "unused": 0,
    "initialize": ["$@liverseg"],
    "run": [
        "$@liverseg and "
        "json.dump([@train#seen, str(@trainer), @max_epochs, @amp], open('seen.json', 'w'))"
    ],
    "training": "%run",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A bundle without logging.conf, that writes down what its settings are when it runs."""
    (tmp_path / "train.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def typed(monkeypatch):
    """Run what is typed in this process; return the config's settings, or the error message."""

    def run(*words):
        try:
            monai_bundle_here(monkeypatch, "run", *words)
        except RuntimeError as error:
            assert not Path("seen.json").exists()
            found = message(error)
            assert found is not None and "\n" not in found, error
            return found
        (names, modules, max_epochs, amp) = json.loads(Path("seen.json").read_text())
        keys = (
            "dataset_dir",
            "datalist",
            "output_dir",
            "load_pretrain",
            "spacing",
            "experiment_name",
        )
        return {
            **dict(zip(keys, names, strict=True)),
            "modules": modules,
            "max_epochs": max_epochs,
            "amp": amp,
        }

    return run


TRAIN = ("training", "--config_file", "train.json")


@pytest.mark.parametrize(
    "name",
    [
        "2024",
        "a,b",
        "1e5",
        "{x}",
        "[CT] x",
        "None",
        "True",
        "null",
        "a#b",
        "0x10",
        "a b",
        "'q'",
        "1_000",
        "(1)",
    ],
)
def test_a_path_is_a_path(typed, name):
    seen = typed(*TRAIN, "--dataset_dir", name, f"--output_dir={name}", "--experiment_name", name)
    assert (seen["dataset_dir"], seen["datalist"]) == (name, f"{name}/dataset.json")
    assert (seen["output_dir"], seen["experiment_name"]) == (name, name)


@pytest.mark.parametrize("name", ["@x", "$x", "@dataset_dir", "$@dataset_dir", "%dataset_dir"])
def test_a_path_that_is_there_is_no_part_of_the_config(typed, folder, name):
    (folder / name).mkdir()
    assert typed(*TRAIN, "--output_dir", name)["output_dir"] == f"./{name}"


def test_there_may_be_a_path_for_each_of_several_networks(typed):
    paths = {"liver": "tuned/liver.pt", "lesion": "1e5"}
    assert typed(*TRAIN, "--load_pretrain", str(paths))["load_pretrain"] == paths


def test_a_path_may_be_given_by_the_config(typed):
    assert (
        typed(*TRAIN, "--output_dir", "$@dataset_dir + '/x'", "--dataset_dir", "7")["output_dir"]
        == "7/x"
    )
    assert typed(*TRAIN, "--output_dir", "@dataset_dir")["output_dir"] == "data"


def test_a_path_in_the_users_home(typed, monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    assert typed(*TRAIN, "--dataset_dir=~/scans")["dataset_dir"] == "/home/user/scans"


@pytest.mark.parametrize("word", ["None", "null"])
def test_nothing_is_still_nothing_where_a_config_ships_it(typed, word):
    assert typed(*TRAIN, "--load_pretrain", word)["load_pretrain"] is None


@pytest.mark.parametrize(
    ("words", "key", "meaning"),
    [
        ("--loss iou", "modules", "(2): DiceLoss"),
        ("--loss @losses#iou", "modules", "(2): DiceLoss"),
        (
            "--spacing 3",
            "spacing",
            [3, 3, -1.0],
        ),  # slices stay where they are, as in the bundle's own spacing
        ("--spacing 2,2,4", "spacing", [2, 2, 4]),
        ("--max-epochs 1e1", "max_epochs", 10),
        ("--amp false", "amp", False),
        ("--amp", "amp", True),
        (
            "--network_def#bias false",
            "modules",
            "(0-1): 2 x Conv2d(1, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)",
        ),
        ("--network_def#stride 2", "modules", "stride=(2, 2)"),
        ("--max_epochs $2*3", "max_epochs", 6),
        ("--my_epochs 7 --max_epochs @my_epochs", "max_epochs", 7),
    ],
)
def test_short_and_other_forms_mean_what_they_say(typed, words, key, meaning):
    found = typed(*TRAIN, *words.split())[key]
    assert meaning in found if key == "modules" else found == meaning


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            "--modalty mr",
            "modalty: found no modalty in the config, .*: correct it, perhaps to --modality.",
        ),
        ("--max_epoch 3", ".*perhaps to --max_epochs."),
        ("--config_fil x", ".*perhaps to --config_file."),
        (
            "--ckpt_path x",
            "ckpt_path: found no ckpt_path in the config, .*: correct it or leave it out.",
        ),
        (
            "--network_def#kernl_size 3",
            ".*: found no kernl_size in torch.nn.Conv2d, .*#kernel_size.",
        ),
        (
            "--losses#dice#smoth_nr 3",
            ".*found no smoth_nr in DiceLoss, .*perhaps to --losses#dice#smooth_nr.",
        ),
        ("--train#max_epochs 3", "train#max_epochs: found no max_epochs in the config"),
        ("--kernel_size 3", ".*perhaps to --network_def#kernel_size."),
        ("--loss dise", "loss: found 'dise', expected one of dice, iou: choose one, perhaps dice."),
        (
            "--loss @losses#dise",
            "loss: found @losses#dise, expected one of dice, iou: choose one, perhaps dice.",
        ),
        ("--loss None", "loss: found None, expected one of dice, iou: choose one."),
        (
            "--spacing @spacng",
            "spacing: found @spacng, expected a name of the config after the @: correct it",
        ),
        (
            "--spacing 0",
            "spacing: found 0, expected 3 numbers of mm from 0.1 to 20, −1 for an axis that stays",
        ),
        ("--spacing [3,3]", r"spacing: found \[3, 3\], expected 3 numbers"),
        (
            "--spacing none",
            r"spacing: found 'none', .*: write it as --spacing \"\[1.5,1.5,-1.0\]\".",
        ),
        (
            "--max_epochs 0",
            "max_epochs: found 0, expected a whole number of 1 or more: write it as "
            "--max_epochs 5.",
        ),
        ("--max_epochs 2.5", "max_epochs: found 2.5, expected a whole number"),
        ("--max_epochs None", "max_epochs: found None, expected a whole number"),
        ("--max_epochs --amp", "max_epochs: found True, expected a whole number"),
        ("--learning_rate -1e-3", "learning_rate: found -0.001, expected a number above 0"),
        ("--amp no", "amp: found 'no', expected true or false"),
        (
            "--dataset_dir --amp",
            "dataset_dir: found nothing, expected a path: give one, and check whether a variable",
        ),
        ("--dataset_dir=", "dataset_dir: found nothing, expected a path"),
        (
            "--dataset_dir @x",
            "dataset_dir: found @x, expected .*: correct it, or write ./@x for a path.",
        ),
        (
            "--dataset_dir $x",
            r"dataset_dir: found \$x, expected text or a path: write ./\$x for a path",
        ),
        (
            "--dataset_dir my scans",
            "init_id: found 'scans', expected a name of the config: put a value with spaces in",
        ),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_message(typed, words, shown):
    found = typed(*TRAIN, *words.split())
    assert isinstance(found, str), found
    assert re.match(shown, found), found
    assert found.endswith(".")


@pytest.mark.parametrize(
    "run_id", ["train", "trainer", "network_def", "loss", "initialize", "imports", "predict"]
)
def test_what_runs_nothing_is_refused(typed, run_id):
    found = typed(run_id, *TRAIN[1:])
    assert found.startswith(
        f"run {run_id}: found no id of this config that runs anything, expected one of run, "
        "training"
    )


@pytest.mark.parametrize("unused", ["unused", "losses#iou#batch"])
def test_a_setting_that_changes_nothing_is_refused(typed, unused):
    assert typed(*TRAIN, f"--{unused}", "3") == (
        f"{unused}: found a setting that nothing in train.json uses, expected one that changes "
        "something: leave it out."
    )


def test_settings_in_a_file_of_arguments(typed, folder):
    (folder / "args.json").write_text(
        json.dumps({"config_file": "train.json", "spacing": 3, "dataset_dir": 2024})
    )
    seen = typed("training", "--args_file", "args.json", "--max_epochs", "2")
    assert (seen["spacing"], seen["dataset_dir"], seen["max_epochs"]) == ([3, 3, -1.0], "2024", 2)
    (folder / "args.json").write_text(json.dumps({"config_file": "train.json", "max_epoch": 3}))
    (folder / "seen.json").unlink()
    assert "perhaps to --max_epochs" in typed("training", "--args_file", "args.json")


def test_several_config_files(typed, folder):
    (folder / "more.json").write_text(json.dumps({"spacing": 2, "own": 1, "train#seen#3": "@own"}))
    seen = typed("training", "--config_file", "['train.json','more.json']", "--own", "5")
    assert (seen["spacing"], seen["load_pretrain"]) == ([2, 2, -1.0], 5)


def test_what_the_terminal_cannot_show_is_logged_all_the_same(folder, monkeypatch):
    shutil.copy(BUNDLE / "configs" / "logging.conf", folder)
    say = r"$__import__('logging').getLogger('liverseg').info('\xd7 \udce9')"
    (folder / "say.json").write_text(json.dumps({**CONFIG, "say": [say]}))
    for name, value in {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    run = monai_bundle("run", "say", "--config_file", "say.json", cwd=folder)
    assert (
        run.returncode == 0
        and r"INFO - \xd7 \udce9" in run.stdout
        and "Logging error" not in run.stderr
    )


def test_from_python_the_same_is_checked_and_meant(folder):
    run_bundle(
        "training",
        config_file="train.json",
        loss="iou",
        spacing=3,
        dataset_dir=folder / "1e5",
        amp="false",
    )
    names, _, _, amp = json.loads(Path("seen.json").read_text())
    assert (names[0], names[4], amp) == (str(folder / "1e5"), [3, 3, -1.0], False)
    workflow = create_workflow(config_file="train.json", loss="iou")
    assert workflow.parser.get_parsed_content("loss").jaccard
    workflow.initialize()  # anew, as MONAI's tools do
    assert workflow.parser.get_parsed_content("loss").jaccard
    with pytest.raises(RuntimeError) as error:
        create_workflow(config_file="train.json", loss="dise")
    assert message(error.value).startswith("loss: found 'dise'")
    with pytest.raises(RuntimeError) as error:
        run_bundle("train", config_file="train.json")
    assert message(error.value).startswith("run train: found no id")


def test_a_network_is_taken_out_of_a_config_by_the_same_rule(folder, monkeypatch):
    torch.save(torch.nn.Conv2d(1, 2, 1, bias=False).state_dict(), folder / "model.pt")
    command = [
        "ckpt_export",
        "--config_file",
        "train.json",
        "--ckpt_file",
        "model.pt",
        "--filepath",
        "model.ts",
    ]
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, *command, "--network_def#bais", "false")
    assert message(error.value).endswith("correct it, perhaps to --network_def#bias.")
    monai_bundle_here(monkeypatch, *command, "--network_def#bias", "false")
    assert [name for name, _ in torch.jit.load(folder / "model.ts").named_parameters()] == [
        "weight"
    ]


def test_other_uses_of_a_config_are_left_alone(folder):
    parser = ConfigParser()
    parser.read_config("train.json")
    parser.update({"own": 3, "loss": "@losses#iou"})
    assert parser.get_parsed_content("liverseg").__name__ == "liverseg"
    workflow = ConfigWorkflow(config_file="train.json", own=3)
    workflow.initialize()
    assert isinstance(workflow.parser.get_parsed_content("network_def"), torch.nn.Conv2d)
