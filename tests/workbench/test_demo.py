"""The demo with whichever bundle: a folder of its own, its own mask, its own name."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import ROOT, make_scan, save, write_dataset
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.handlers import SegmentationReport
from liverseg.transforms import LoadVolumed
from liverseg.workbench.cli import app

HISTORY = "epoch,iteration,loss,learning_rate,val_mean_dice,seconds\n1,5,1.2,1e-3,0.5,3.1\n"


def tiny_bundle(folder, name):
    """A bundle whose network is one convolution."""
    bundle = folder / "bundles" / name
    shutil.copytree(ROOT / "bundles" / name / "configs", bundle / "configs")
    for file in ("train.json", "inference.json"):
        content = json.loads((bundle / "configs" / file).read_text())
        network = {
            "_target_": "torch.nn.Conv2d",
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": 1,
        }
        (bundle / "configs" / file).write_text(json.dumps({**content, "network_def": network}))
    return bundle


def leave_all_but_the_mask(out, name, logit):
    """Write what a demo has before it segments; `logit` is that of liver, everywhere."""
    own = out / name
    (own / "models").mkdir(parents=True)
    state = {"weight": torch.zeros(2, 1, 1, 1), "bias": torch.tensor([0.0, logit])}
    torch.save(state, own / "models" / "model.pt")
    (own / "training").mkdir()
    (own / "training" / "history.csv").write_text(HISTORY)
    (own / "training" / "metrics.json").write_text(json.dumps({"epochs": 1}))
    for choice in ("none", "erode_keep_largest_dilate", "clean_slices"):
        item = {
            key: str(out / "phantoms" / f"segmentation-{key == 'image':d}.nii")
            for key in ("image", "label")
        }
        SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset([item], LoadVolumed(["image", "label"]))),
            network=torch.nn.Identity(),
            postprocessing=AsDiscreted(["pred", "label"], threshold=1),
            val_handlers=[SegmentationReport(own / "evaluation" / choice, ["background", "liver"])],
        ).run()


def test_each_bundle_has_its_weights_its_mask_and_its_name(tmp_path):
    out = tmp_path / "demo"
    write_dataset(out / "phantoms")
    leave_all_but_the_mask(out, "deeplabv3_liver", -1.0)
    leave_all_but_the_mask(out, "unet_liver", 1.0)
    older = out / "unet_liver" / "masks" / "z_liver.nii.gz"
    older.parent.mkdir()
    save(older, np.zeros((48, 40, 8), np.uint8))
    scan = tmp_path / "scans" / "deeper" / "case.001.NII"
    scan.parent.mkdir(parents=True)
    save(tmp_path / "case.nii", make_scan(7)[0])
    (tmp_path / "case.nii").rename(scan)

    bundle = tiny_bundle(tmp_path, "unet_liver")
    arguments = [
        "demo",
        "--scan",
        str(tmp_path / "scans"),
        "--out",
        str(out),
        "--bundle",
        str(bundle),
    ]
    arguments += ["--starting-model", str(tmp_path / "none")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (
        f"Without the trained weights or the CT: {tmp_path / 'none'}: found no bundle there"
        in done.output
    )
    page = (out / "report.html").read_text()
    assert "<h1>unet_liver, trained on phantoms</h1>" in page
    assert scan.name in page
    assert "Your scan, segmented by unet_liver as it was trained here on phantoms." in page
    # Everything is liver: 48 x 40 x 8 voxels of 6 x 6 x 10 mm, less what the bundle's cleaning
    # takes away.
    (mask,) = (path for path in older.parent.rglob("*.nii*") if path != older)
    millilitres = np.count_nonzero(nib.load(mask).dataobj) * 6 * 6 * 10 / 1000
    assert millilitres > 0.9 * 48 * 40 * 8 * 0.36
    assert f"<b>{millilitres:.0f} ml</b> liver volume" in page
    assert not (out / "deeplabv3_liver" / "masks").exists()


@pytest.mark.parametrize(
    ("name", "finds"),
    [
        ("deeplabv3_abdomen_mr", "left_kidney, liver, right_kidney, spleen"),
        ("cascade_lits", "lesion, liver"),
    ],
)
def test_a_bundle_of_more_than_the_liver_is_refused_before_anything_is_made(tmp_path, name, finds):
    out = tmp_path / "demo"
    error = (
        CliRunner()
        .invoke(app, ["demo", "--out", str(out), "--bundle", str(ROOT / "bundles" / name)])
        .exception
    )
    assert isinstance(error, InputError)
    assert f"{name}: found a bundle of {finds}, expected one of the liver alone" in str(error)
    assert not out.exists()


def test_a_folder_of_several_scans_is_refused_before_anything_is_made(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii", make_scan(7)[0])
    error = (
        CliRunner()
        .invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--scan", str(tmp_path)])
        .exception
    )
    assert isinstance(error, InputError)
    assert f"{tmp_path}: found 2 scans in it, expected one" in str(error)
    assert not (tmp_path / "demo").exists()
