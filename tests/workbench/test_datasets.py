from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from liverseg.data import load_datalist
from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.datasets.split import split_folder


def test_phantoms_can_be_trained_on(tmp_path):
    size = ["--shape", "16", "16", "8", "--spacing", "24", "24", "25"]
    counts = ["--cases", "4", "--test", "2", "--folds", "2"]
    result = CliRunner().invoke(app, ["data", "phantoms", str(tmp_path / "p"), *counts, *size])
    assert result.exit_code == 0, result.output
    path = tmp_path / "p" / "dataset.json"
    assert [len(load_datalist(path, section)) for section in ("training", "validation", "test")] == [2, 2, 2]
    item = load_datalist(path, "test")[0]
    assert nib.load(item["image"]).shape == nib.load(item["label"]).shape == (16, 16, 8)
    assert set(np.unique(nib.load(item["label"]).dataobj)) <= {0, 1, 2}


def make_folder(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_split_pairs_files_by_patient(tmp_path):
    make_folder(tmp_path, [f"{kind}-{number}.nii" for kind in ("volume", "segmentation") for number in range(10)])
    result = CliRunner().invoke(app, ["data", "split", str(tmp_path), "--folds", "4", "--seed", "3"])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert (len(content["training"]), len(content["test"])) == (8, 2)
    for item in content["training"] + content["test"]:
        assert item["image"] == f"volume-{item['patient']}.nii"
        assert item["label"] == f"segmentation-{item['patient']}.nii"
    assert {item["fold"] for item in content["training"]} == {0, 1, 2, 3}


def test_split_other_layouts(tmp_path):
    make_folder(tmp_path, [f"{kind}/liver_{number}.nii.gz" for kind in ("imagesTr", "labelsTr") for number in range(4)])
    split_folder(tmp_path, "imagesTr/liver_{}.nii.gz", "labelsTr/liver_{}.nii.gz", 0.0, 2, 0)
    assert len(load_datalist(tmp_path / "dataset.json", "training")) == 2
    make_folder(tmp_path, [f"{kind}/{name}.nii" for kind in ("ct", "seg") for name in ("a", "b", "._a", "._b")])
    split_folder(tmp_path, "ct/{}.nii", "seg/{}.nii", 0.0, 2, 0)
    assert len(load_datalist(tmp_path / "dataset.json", "training")) == 1


@pytest.mark.parametrize(
    ("patterns", "share", "words"),
    [
        (("volume.nii", "segmentation-{}.nii"), 0.2, "pattern 'volume.nii'"),
        (("scan-{}.nii", "segmentation-{}.nii"), 0.2, "no file matches 'scan-{}.nii'"),
        (("volume-{}.nii", "label-{}.nii"), 0.2, "there is no label for volume-0.nii"),
        (("volume-{}.nii", "segmentation-{}.nii"), 1.0, "test_share is 1.0"),
    ],
)
def test_split_says_what_is_wrong(tmp_path, patterns, share, words):
    make_folder(tmp_path, ["volume-0.nii", "segmentation-0.nii"])
    with pytest.raises(InputError) as error:
        split_folder(tmp_path, *patterns, share, 2, 0)
    assert words in str(error.value)


def test_the_command_prints_the_sentence_and_fails(tmp_path):
    command = [sys.executable, "-c", "from liverseg.workbench.cli import main; main()"]
    run = subprocess.run([*command, "data", "split", tmp_path], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path}: no file matches")
    assert "Traceback" not in run.stderr


DATA_VERBS = ("phantoms", "split", "chaos-ct", "chaos-mr", "lits", "msd", "ircadb", "btcv", "check")


@pytest.mark.parametrize("verb", [[], ["data"], *(["data", verb] for verb in DATA_VERBS), ["zoo", "build"], ["demo"]])
def test_every_verb_has_help(verb):
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0
    if len(verb) == 2 or verb == ["demo"]:
        assert "Example" in result.output
