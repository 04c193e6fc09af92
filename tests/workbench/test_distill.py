"""A bundle trained on the masks of another, with real runs of both."""

from __future__ import annotations

import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import AFFINE, BUNDLE, make_scan, options, save
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app

LEAST_HU = 50.0
# As in `bundle_runs.SHORT`, with phantoms that are as coarse.
SHORT = {"max_epochs": 1, "val_interval": 1, "spacing": "[6.0,6.0,-1]", "spatial_size": "[48,48]", "num_workers": 0}


@pytest.fixture
def teacher(tmp_path):
    """A bundle whose network is a threshold: what is above 50 HU is liver."""
    folder = tmp_path / "teacher"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models", "eval", "output"))
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    low, high = content["hu_window"]
    content["network_def"] = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    content |= {"mask_cleaning": "@postprocessings#none", "spacing": [-1, -1, -1], "amp": False}
    config.write_text(json.dumps(content))
    bias = -(LEAST_HU - low) / (high - low)
    state = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), "bias": torch.tensor([0.0, bias])}
    (folder / "models").mkdir()
    torch.save(state, folder / "models" / "model.pt")
    return folder


def write_scans(folder, count=3):
    folder.mkdir()
    for number in range(count):
        save(folder / f"scan{number}.nii.gz", make_scan(number)[0])
    return folder


def distil(teacher, scans, out, *more):
    arguments = ["zoo", "distill", str(BUNDLE), "--from", str(teacher), "--scans", str(scans), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--phantoms", "1", *more])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_scans_get_the_masks_of_the_teacher_and_phantoms_never_validate(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    with pytest.raises(InputError, match=r"1 of 4 cases are broken"):
        # A scan of air has no liver, and its mask is no label.
        save(scans / "scan2.nii.gz", np.full((48, 40, 8), -1000, np.int16))
        distil(teacher, scans, out, "--labels-only")
    distil(teacher, scans, out, "--labels-only", "--leave-out", "scan2")
    content = json.loads((out / "dataset.json").read_text())
    real, phantoms = content["training"][:2], content["training"][2:]
    assert [item["patient"] for item in real] == ["scan0", "scan1"]
    assert sorted(item["fold"] for item in real) == [0, 1]
    assert [item["fold"] for item in phantoms] == [5]
    for item in real:
        image, label = (np.asarray(nib.load(out / item[key]).dataobj) for key in ("image", "label"))
        np.testing.assert_array_equal(label, image > LEAST_HU)
    assert (out / "check.html").is_file()
    assert not (out / "training").exists()


def test_a_corrected_mask_is_kept_and_labels_that_are_given_are_used(teacher, tmp_path):
    scans, out = write_scans(tmp_path / "scans"), tmp_path / "out"
    own = make_scan(2)[1]
    save(scans / "label2.nii.gz", own)
    items = {
        "training": [{"image": "scan2.nii.gz", "label": "label2.nii.gz"}],
        "validation": [{"image": "scan1.nii.gz", "label": "label2.nii.gz", "patient": "scan2"}],
        "test": [{"image": "scan0.nii.gz"}],
    }
    (scans / "dataset.json").write_text(json.dumps(items))
    with pytest.raises(InputError, match="patient scan2 is in training"):
        distil(teacher, scans, out, "--labels-only")
    save(scans / "label1.nii.gz", make_scan(1)[1])
    items["validation"] = [{"image": "scan1.nii.gz", "label": "label1.nii.gz"}]
    (scans / "dataset.json").write_text(json.dumps(items))
    distil(teacher, scans, out, "--labels-only")
    content = json.loads((out / "dataset.json").read_text())
    assert [item["patient"] for item in content["training"]] == ["scan2", "scan0", "phantom-0"]
    assert [item["patient"] for item in content["validation"]] == ["scan1"]
    assert not any("fold" in item for item in content["training"])
    np.testing.assert_array_equal(np.asarray(nib.load(out / content["training"][0]["label"]).dataobj), own)
    mask = out / content["training"][1]["label"]
    corrected = np.zeros_like(own)
    corrected[20:28, 20:28, 2:5] = 1
    save(mask, corrected)
    distil(teacher, scans, out, "--labels-only")
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), corrected)
    np.testing.assert_array_equal(nib.load(mask).affine, AFFINE)


@pytest.mark.slow
def test_it_trains_and_writes_half_precision_weights_with_what_made_them(teacher, tmp_path):
    out = tmp_path / "out"
    result = distil(teacher, write_scans(tmp_path / "scans"), out, *options(**SHORT))
    assert str(out / "models") in result.output.replace("\n", "")
    state = torch.load(out / "models" / "model.pt", weights_only=True)
    best = torch.load(out / "fine_tuning" / "models" / "model.pt", weights_only=True)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    for key, value in best.items():
        torch.testing.assert_close(state[key], value.half() if value.is_floating_point() else value)
    record = json.loads((out / "models" / "model.json").read_text())
    assert record["sha256"] == hashlib.sha256((out / "models" / "model.pt").read_bytes()).hexdigest()
    taught = hashlib.sha256((teacher / "models" / "model.pt").read_bytes()).hexdigest()
    assert record["teacher_sha256"] == taught
    assert (record["scans"], record["phantoms"]) == (3, 1)
    assert 0 <= record["val_mean_dice"] <= 1
    assert "deeplabv3_liver --from teacher --scans DIR --max_epochs 1" in record["command"]
    assert str(tmp_path) not in (out / "models" / "model.json").read_text()


@pytest.mark.parametrize(
    ("bundle", "source", "sentence"),
    [
        ("deeplabv3_abdomen_mr", "unet3d_liver", "expected one of the liver"),
        ("deepedit_liver", "deeplabv3_liver", "expected one that finds liver, lesion"),
    ],
)
def test_bundles_that_do_not_go_together_are_refused_before_anything_is_made(bundle, source, sentence, tmp_path):
    arguments = ["zoo", "distill", str(BUNDLE.parent / bundle), "--from", str(BUNDLE.parent / source), "--labels-only"]
    scans = write_scans(tmp_path / "scans", 1)
    result = CliRunner().invoke(app, [*arguments, "--scans", str(scans), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, InputError)
    assert sentence in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--leave-out", "scan7"], "--leave-out: found scan7, expected names out of scan0, scan1, scan2"),
        (["--max_epochs"], "expected settings of the training"),
    ],
)
def test_a_slip_is_named_before_anything_is_made(more, sentence, teacher, tmp_path):
    with pytest.raises(InputError, match=sentence):
        distil(teacher, write_scans(tmp_path / "scans"), tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
