"""A bundle trained on the masks of another, with real runs of both."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import AFFINE, BUNDLE, make_scan, options, save
from helpers.dataset_trees import write_series
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app

LEAST_HU = 50.0
# As in `bundle_runs.SHORT`, with phantoms that are as coarse.
SHORT = {
    "max_epochs": 1,
    "val_interval": 1,
    "spacing": "[6.0,6.0,-1]",
    "spatial_size": "[48,48]",
    "num_workers": 0,
}


@pytest.fixture
def teacher(tmp_path):
    """A bundle whose network is a threshold: what is above 50 HU is liver."""
    folder = tmp_path / "teacher"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models", "eval", "output"))
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    low, high = content["hu_window"]
    content["network_def"] = {
        "_target_": "torch.nn.Conv2d",
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": 1,
    }
    content |= {"postprocessing": "@postprocessings#none", "spacing": [-1, -1, -1], "amp": False}
    config.write_text(json.dumps(content))
    bias = -(LEAST_HU - low) / (high - low)
    state = {
        "weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1),
        "bias": torch.tensor([0.0, bias]),
    }
    (folder / "models").mkdir()
    torch.save(state, folder / "models" / "model.pt")
    return folder


def make_ct(number):
    """A scan with some fat, as every abdomen has."""
    image = make_scan(number)[0]
    image[:, :4] = -100
    return image


def write_scans(folder, count=3):
    folder.mkdir()
    for number in range(count):
        save(folder / f"scan{number}.nii.gz", make_ct(number))
    return folder


def distil(teacher, scans, out, *more):
    arguments = [
        "zoo",
        "distill",
        str(BUNDLE),
        "--from",
        str(teacher),
        "--scans",
        str(scans),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, [*arguments, "--phantoms", "1", *more])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def training_of(out):
    return json.loads((out / "dataset.json").read_text())["training"]


def test_scans_get_the_masks_of_the_teacher_and_phantoms_never_validate(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    # A scan without a liver has an empty mask, which is no label.
    save(scans / "scan2.nii.gz", np.minimum(make_ct(2), 40))
    with pytest.raises(
        InputError, match=r"scan2: the mask of the liver is empty.*--leave-out scan2"
    ):
        distil(teacher, scans, out, "--labels-only")
    distil(teacher, scans, out, "--labels-only", "--leave-out", "scan2")
    real, phantoms = training_of(out)[:2], training_of(out)[2:]
    assert [item["patient"] for item in real] == ["scan0", "scan1"]
    assert sorted(item["fold"] for item in real) == [0, 1]
    assert [item["fold"] for item in phantoms] == [2]
    for item in real:
        image, label = (np.asarray(nib.load(out / item[key]).dataobj) for key in ("image", "label"))
        np.testing.assert_array_equal(label, image > LEAST_HU)
    assert (out / "check.html").is_file()
    assert not (out / "training").exists()


def test_scans_called_alike_are_of_different_patients(teacher, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for number in range(3):
        (scans / f"s{number}").mkdir(parents=True)
        save(scans / f"s{number}" / "ct.nii.gz", make_ct(number))
    distil(teacher, scans, out, "--labels-only", "--leave-out", "s1_ct")
    assert [item["patient"] for item in training_of(out)] == ["s0_ct", "s2_ct", "phantom-0"]
    assert {"s0_ct", "s2_ct"} <= {
        case["name"] for case in json.loads((out / "check.json").read_text())["cases"]
    }


def test_copies_and_series_of_a_patient_do_not_train_and_validate(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    shutil.copy(scans / "scan1.nii.gz", scans / "again.nii.gz")
    # Of the third, DICOM does not say whose it is.
    for number, patient in enumerate(("Ann", "Ann", "")):
        image = make_ct(number + 3)
        write_series(
            scans / f"series{number}",
            image,
            AFFINE,
            [str(index) for index in range(image.shape[2])],
            SeriesInstanceUID=f"1.2.{number}",
            PatientID=patient,
        )
    distil(teacher, scans, out, "--labels-only")
    patients = {Path(item["image"]).name: item["patient"] for item in training_of(out)}
    assert patients["again.nii.gz"] == patients["scan1.nii.gz"]
    assert [patients[f"series{number}"] for number in range(3)] == ["Ann", "Ann", "series2"]
    # Three scans, Ann, the one without a name, and the phantom.
    assert len(set(patients.values())) == 6
    folds = {item["patient"]: set() for item in training_of(out)}
    for item in training_of(out):
        folds[item["patient"]].add(item["fold"])
    assert all(len(found) == 1 for found in folds.values())


@pytest.mark.parametrize("name", ["gone.nii.gz", "dangling.nii.gz"])
def test_a_scan_that_cannot_be_read_is_named(name, teacher, tmp_path):
    scans = write_scans(tmp_path / "scans")
    (scans / "dangling.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    if name == "gone.nii.gz":
        (scans / "dataset.json").write_text(json.dumps({"test": ["scan0.nii.gz", name]}))
    with pytest.raises(InputError, match=f"{name}: cannot be read .No such file or directory."):
        distil(teacher, scans, tmp_path / "out", "--labels-only")


def test_a_torn_summary_is_what_is_named(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    distil(teacher, scans, out, "--labels-only")
    (out / "labels" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="summary"):
        distil(teacher, scans, out, "--labels-only")


def test_a_corrected_mask_is_kept_and_labels_that_are_given_validate(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    own = make_scan(2)[1]
    save(scans / "label2.nii.gz", own)
    save(scans / "label1.nii.gz", make_scan(1)[1])
    items = {
        "training": [{"image": "scan2.nii.gz", "label": "label2.nii.gz"}],
        "validation": [{"image": "scan1.nii.gz", "label": "label1.nii.gz"}],
        "test": [{"image": "scan0.nii.gz"}],
    }
    (scans / "dataset.json").write_text(json.dumps(items))
    distil(teacher, scans, out, "--labels-only")
    folds = {item["patient"]: item["fold"] for item in training_of(out)}
    assert folds == {"scan2": 1, "scan1": 0, "scan0": 1, "phantom-0": 1}
    by_patient = {item["patient"]: out / item["label"] for item in training_of(out)}
    np.testing.assert_array_equal(np.asarray(nib.load(by_patient["scan2"]).dataobj), own)
    corrected = np.zeros_like(own)
    corrected[20:28, 20:28, 2:5] = 1
    save(by_patient["scan0"], corrected)
    # Without validation, the labels that are given have folds; that of the teacher's masks is none
    # of these.
    del items["validation"]
    (scans / "dataset.json").write_text(json.dumps(items))
    distil(teacher, scans, out, "--labels-only")
    assert {item["patient"]: item["fold"] for item in training_of(out)} == {
        "scan2": 0,
        "scan0": 1,
        "phantom-0": 1,
    }
    np.testing.assert_array_equal(np.asarray(nib.load(by_patient["scan0"]).dataobj), corrected)
    np.testing.assert_array_equal(nib.load(by_patient["scan0"]).affine, AFFINE)
    # A correction that nobody would read.
    save(out / "labels" / "scan0_corrected.nii.gz", corrected)
    with pytest.raises(InputError, match=r"scan0_corrected\.nii\.gz: found a file that is no mask"):
        distil(teacher, scans, out, "--labels-only")


def test_labels_of_other_organs_and_folders_of_others_are_refused(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    save(scans / "label1.nii.gz", make_scan(1)[1])
    items = {
        "training": [{"image": "scan1.nii.gz", "label": "label1.nii.gz"}],
        "test": [{"image": "scan0.nii.gz"}],
    }
    (scans / "dataset.json").write_text(
        json.dumps({**items, "labels": {"1": "spleen", "2": "kidney"}})
    )
    with pytest.raises(InputError, match="found 'spleen' for the value 1, expected 'liver'"):
        distil(teacher, scans, out, "--labels-only")
    with pytest.raises(InputError, match=r"--scans: found .*nowhere, which is not there"):
        distil(teacher, tmp_path / "nowhere", out, "--labels-only")
    with pytest.raises(InputError, match="the folder of the scans, expected another one"):
        distil(teacher, scans, scans, "--labels-only")
    out.mkdir()
    (out / "dataset.json").write_text(json.dumps({"name": "mine", "training": []}))
    with pytest.raises(InputError, match="a datalist of mine is there"):
        distil(teacher, write_scans(tmp_path / "others"), out, "--labels-only")
    with pytest.raises(InputError, match="found 1 patient with a scan to use, expected 2"):
        distil(teacher, write_scans(tmp_path / "one", 1), tmp_path / "out1", "--labels-only")


def test_scans_of_another_modality_are_left_out_and_flags_are_shown(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    save(scans / "scan2.nii.gz", (make_ct(2) + 1024).astype(np.int16))
    result = distil(teacher, scans, out, "--labels-only")
    assert "Left out scan2: the intensities" in result.output
    assert "Above all at scan0: the liver reaches the scan's" in result.output
    (case,) = (
        case
        for case in json.loads((out / "check.json").read_text())["cases"]
        if case["name"] == "scan0"
    )
    assert case["verdict"] == "suspicious"
    assert [item["patient"] for item in training_of(out)] == ["scan0", "scan1", "phantom-0"]


@pytest.mark.slow
def test_it_trains_goes_on_and_begins_anew_where_labels_have_changed(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    result = distil(teacher, scans, out, *options(**SHORT))
    assert str(out / "models") in result.output.replace("\n", "")
    state = torch.load(out / "models" / "model.pt", weights_only=True)
    best = torch.load(out / "training" / "fine_tuning" / "models" / "model.pt", weights_only=True)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    for key, value in best.items():
        torch.testing.assert_close(state[key], value.half() if value.is_floating_point() else value)
    record = json.loads((out / "models" / "model.json").read_text())
    sha256 = hashlib.sha256((out / "models" / "model.pt").read_bytes()).hexdigest()
    taught = hashlib.sha256((teacher / "models" / "model.pt").read_bytes()).hexdigest()
    assert (record["sha256"], record["teacher"]) == (sha256, {"name": "teacher", "sha256": taught})
    assert (record["scans"], record["phantoms"]) == (3, 1)
    assert 0 <= record["val_mean_dice"] <= 1
    assert (
        "distill deeplabv3_liver --from teacher --scans DIR --phantoms 1 --max_epochs 1"
        in record["command"]
    )
    assert str(tmp_path) not in (out / "models" / "model.json").read_text()

    distil(teacher, scans, out, *options(**SHORT))
    assert hashlib.sha256((out / "models" / "model.pt").read_bytes()).hexdigest() == sha256
    result = distil(teacher, scans, out, "--leave-out", "scan1", *options(**SHORT))
    assert "a new training begins" in result.output
    record = json.loads((out / "models" / "model.json").read_text())
    assert record["scans"] == 2
    assert "--leave-out scan1" in record["command"]
    assert record["sha256"] != sha256
    (kept,) = out.glob("training_*")
    assert (kept / "first" / "models" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("bundle", "source", "sentence"),
    [
        ("deeplabv3_abdomen_mr", "unet3d_liver", "expected one of the liver"),
        ("deepedit_liver", "deeplabv3_liver", "expected one that finds liver, lesion"),
    ],
)
def test_bundles_that_do_not_go_together_are_refused_before_anything_is_made(
    bundle, source, sentence, tmp_path
):
    arguments = [
        "zoo",
        "distill",
        str(BUNDLE.parent / bundle),
        "--from",
        str(BUNDLE.parent / source),
        "--labels-only",
    ]
    scans = write_scans(tmp_path / "scans", 1)
    result = CliRunner().invoke(
        app, [*arguments, "--scans", str(scans), "--out", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, InputError)
    assert sentence in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--leave-out", "scan7"],
            "--leave-out: found 'scan7', expected names out of 'scan0', 'scan1', 'scan2'",
        ),
        (["--max_epochs"], "expected settings of the training"),
        (["--max_epoch", "3"], "found no such setting of deeplabv3_liver.*perhaps --max_epochs"),
    ],
)
def test_a_slip_is_named_before_anything_is_made(more, sentence, teacher, tmp_path):
    with pytest.raises(InputError, match=sentence):
        distil(teacher, write_scans(tmp_path / "scans"), tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
