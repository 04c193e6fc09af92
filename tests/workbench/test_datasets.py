from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers.waiting import SECONDS
from typer.testing import CliRunner

from liverseg.data import load_datalist
from liverseg.data.datalist_schema import read_datalist
from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.datasets.split import split_folder


def test_phantoms_can_be_trained_on(tmp_path):
    size = ["--shape", "16", "16", "8", "--spacing", "24", "24", "25"]
    counts = ["--cases", "4", "--test", "2", "--folds", "2"]
    result = CliRunner().invoke(app, ["data", "phantoms", str(tmp_path / "p"), *counts, *size])
    assert result.exit_code == 0, result.output
    path = tmp_path / "p" / "dataset.json"
    assert [
        len(load_datalist(path, section)) for section in ("training", "validation", "test")
    ] == [2, 2, 2]
    item = load_datalist(path, "test")[0]
    assert nib.load(item["image"]).shape == nib.load(item["label"]).shape == (16, 16, 8)
    assert set(np.unique(nib.load(item["label"]).dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("wrong", [("--cases", "0"), ("--folds", "1"), ("--cases", "3")])
def test_phantoms_that_cannot_be_split_are_not_written(tmp_path, wrong):
    result = CliRunner().invoke(app, ["data", "phantoms", str(tmp_path / "p"), *wrong])
    assert isinstance(result.exception, InputError) and "folds: found" in str(result.exception)
    assert not (tmp_path / "p").exists()


def make_folder(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_split_pairs_files_by_patient(tmp_path):
    make_folder(
        tmp_path,
        [f"{kind}-{number}.nii" for kind in ("volume", "segmentation") for number in range(10)],
    )
    result = CliRunner().invoke(
        app, ["data", "split", str(tmp_path), "--folds", "4", "--seed", "3"]
    )
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert (len(content["training"]), len(content["test"])) == (8, 2)
    for item in content["training"] + content["test"]:
        assert item["image"] == f"volume-{item['patient']}.nii"
        assert item["label"] == f"segmentation-{item['patient']}.nii"
    assert {item["fold"] for item in content["training"]} == {0, 1, 2, 3}


def test_split_other_layouts(tmp_path):
    make_folder(
        tmp_path,
        [
            f"{kind}/liver_{number}.nii.gz"
            for kind in ("imagesTr", "labelsTr")
            for number in range(4)
        ],
    )
    patterns = "imagesTr/liver_{}.nii.gz", "labelsTr/liver_{}.nii.gz"
    with pytest.raises(InputError, match="--names 1=liver"):
        split_folder(tmp_path, *patterns, 0.0, 2, 0)
    (tmp_path / "imagesTr" / "._liver_0.nii.gz").touch()
    split_folder(tmp_path, *patterns, 0.0, 2, 0, "1=spleen, 2 = right kidney")
    assert len(load_datalist(tmp_path / "dataset.json", "training")) == 2
    names = {0: "background", 1: "spleen", 2: "right kidney"}
    assert read_datalist(tmp_path / "dataset.json").labels == names
    # Names that were given once are known.
    split_folder(tmp_path, *patterns, 0.0, 2, 1)
    assert read_datalist(tmp_path / "dataset.json").labels == names
    with pytest.raises(InputError, match="names: found '1=liver,lesion'"):
        split_folder(tmp_path, *patterns, 0.0, 2, 0, "1=liver,lesion")
    for zero in ("0", "00"):
        with pytest.raises(
            InputError, match="names: found 0=liver, expected 0 to be the background"
        ):
            split_folder(tmp_path, *patterns, 0.0, 2, 0, f"{zero}=liver")
    split_folder(tmp_path, *patterns, 0.0, 2, 0, "0=Background,01=liver")
    assert read_datalist(tmp_path / "dataset.json").labels == {0: "Background", 1: "liver"}


@pytest.mark.parametrize(
    "there",
    [
        {
            "name": "Liver",
            "labels": {"0": "background", "1": "liver", "2": "cancer"},
            "training": [{"image": "a"}],
        },
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "cancer": 2},
            "file_ending": ".nii.gz",
        },
    ],
    ids=["msd", "nnunet"],
)
def test_split_takes_the_names_of_the_data_sets_own_list_and_leaves_it_alone(tmp_path, there):
    make_folder(
        tmp_path,
        [
            f"{kind}/liver_{number}.nii.gz"
            for kind in ("imagesTr", "labelsTr")
            for number in range(4)
        ],
    )
    own = tmp_path / "dataset.json"
    own.write_text(json.dumps(there))
    patterns = "imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"
    with pytest.raises(InputError, match=r"dataset\.json: a datalist of .* is there"):
        split_folder(tmp_path, *patterns, 0.0, 2, 0)
    assert json.loads(own.read_text()) == there
    out = tmp_path / "lists" / "folds.json"
    out.parent.mkdir()
    split_folder(tmp_path, *patterns, 0.0, 2, 0, out=out)
    assert read_datalist(out).labels == {0: "background", 1: "liver", 2: "cancer"}
    assert len(load_datalist(out, "validation")) == 2


@pytest.mark.parametrize(
    ("patterns", "share", "words"),
    [
        (("volume.nii", "segmentation-{}.nii"), 0.2, "pattern 'volume.nii'"),
        (("scan-{}.nii", "segmentation-{}.nii"), 0.2, "no file matches 'scan-{}.nii'"),
        (("volume-{}.nii", "label-{}.nii"), 0.2, "there is no label for volume-0.nii"),
        (("volume-{}.nii", "segmentation-{}.nii"), 1.0, "test_share is 1.0"),
        (
            ("/etc/{}.nii", "segmentation-{}.nii"),
            0.2,
            "pattern '/etc/{}.nii': found an absolute path",
        ),
        (("volume-{}.nii", "/etc/{}.nii"), 0.2, "pattern '/etc/{}.nii': found an absolute path"),
    ],
)
def test_split_says_what_is_wrong(tmp_path, patterns, share, words):
    make_folder(tmp_path, ["volume-0.nii", "segmentation-0.nii"])
    with pytest.raises(InputError) as error:
        split_folder(tmp_path, *patterns, share, 2, 0)
    assert words in str(error.value)


def test_the_command_prints_the_message_and_fails(tmp_path):
    command = [sys.executable, "-c", "from liverseg.workbench.cli import main; main()"]
    run = subprocess.run(
        [*command, "data", "split", tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path}: no file matches")
    assert "Traceback" not in run.stderr


DATA_VERBS = ("phantoms", "split", "chaos-ct", "chaos-mr", "lits", "msd", "ircadb", "btcv", "check")


@pytest.mark.parametrize(
    "verb", [[], ["data"], *(["data", verb] for verb in DATA_VERBS), ["zoo", "build"], ["demo"]]
)
def test_every_verb_has_help(verb):
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0
    if len(verb) == 2 or verb == ["demo"]:
        assert "Example" in result.output
