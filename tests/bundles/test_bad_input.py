"""Bad input ends a command with one sentence and a status that is not zero, and what was there before is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import AFFINE, BUNDLE, SHORT, make_scan, monai_bundle, save, write_dataset
from monai.bundle import create_workflow

from liverseg.bundle import sentence

TRAIN = str(BUNDLE / "configs" / "train.json")
INFERENCE = str(BUNDLE / "configs" / "inference.json")


def error_line(run) -> str:
    assert run.returncode == 1, run.stdout[-2000:] + run.stderr[-2000:]
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in run.stderr
    return line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"loss": "@losses#dise"}, ["losses", "dise", "dice_ce", "iou_xy", "focal_tversky"]),
        ({"mask_cleaning": "@postprocessings#x"}, ["postprocessings", "clean_slices"]),
        ({"modality": "pet"}, ["modality", "'pet'", "ct, mr"]),
        ({"device": "cuda:7"}, ["cuda:7", "--device cpu"]),
        ({"dataset_dir": "/gone"}, ["/gone/dataset.json", "no such datalist"]),
    ],
)
def test_the_command_line_ends_with_the_sentence(dataset, tmp_path, setting, words):
    settings = {**SHORT, "dataset_dir": dataset, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path / "e", **setting}
    line = error_line(monai_bundle("run", "training", "--config_file", TRAIN, cwd=tmp_path, **settings))
    assert all(word in line for word in words), line


def run_training(dataset: Path, tmp_path: Path, **settings) -> str:
    """The sentence that a training ends with, run in this process."""
    values = {**SHORT, "dataset_dir": str(dataset), "ckpt_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "e")}
    return run_workflow(TRAIN, "train", {**values, **settings})


def run_workflow(config: str, kind: str, settings: dict) -> str:
    with pytest.raises(Exception) as error:
        create_workflow(config_file=config, workflow_type=kind, bundle_root=str(BUNDLE), **settings).run()
    found = sentence(error.value)
    assert found is not None, repr(error.value)
    assert "\n" not in found
    return found


def spoil(dataset: Path, tmp_path: Path, what: str) -> Path:
    folder = shutil.copytree(dataset, tmp_path / "data")
    image, label = make_scan(1)
    volume, segmentation, datalist = (folder / n for n in ("volume-1.nii", "segmentation-1.nii", "dataset.json"))
    content = json.loads(datalist.read_text())
    if what == "missing file":
        volume.unlink()
    elif what == "not an image":
        volume.write_text("no image")
    elif what == "truncated":
        volume.write_bytes(volume.read_bytes()[:2000])
    elif what == "2-D":
        save(volume, image[..., 0])
    elif what == "4-D":
        save(volume, np.stack([image, image], -1))
    elif what == "NaN":
        broken = image.astype(np.float32)
        broken[3, 4, 5] = np.nan
        save(volume, broken)
    elif what == "label value":
        save(segmentation, np.where(label == 2, 8, label).astype(np.uint8))
    elif what == "other grid":
        save(segmentation, label, np.diag([5.0, 6.0, 10.0, 1.0]))
    elif what == "empty":
        datalist.write_text(json.dumps({"training": []}))
    elif what == "patient in two folds":
        for item in content["training"]:
            item["patient"] = "p"
        datalist.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing file", ["volume-1.nii", "not there"]),
        ("not an image", ["volume-1.nii", "not readable as a volume"]),
        ("truncated", ["volume-1.nii", "not readable", "replace"]),
        ("2-D", ["volume-1.nii", "2-D"]),
        ("4-D", ["volume-1.nii", "4-D"]),
        ("NaN", ["volume-1.nii", "1 voxels are NaN"]),
        ("label value", ["segmentation-1.nii", "8", "[0, 1, 2]"]),
        ("other grid", ["segmentation-1.nii", "grid"]),
        ("empty", ["dataset.json", "empty"]),
        ("patient in two folds", ["patient p", "fold 0", "fold 1"]),
    ],
)
def test_a_spoilt_data_set(dataset, tmp_path, what, words):
    found = run_training(spoil(dataset, tmp_path, what), tmp_path)
    assert all(word in found for word in words), found


def test_an_output_folder_that_cannot_be_written(dataset, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in run_training(dataset, tmp_path, ckpt_dir=str(tmp_path / "file" / "models"))


def test_weights_of_another_network(dataset, tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    found = run_training(dataset, tmp_path, load_pretrain=str(tmp_path / "other.pt"))
    assert "other.pt" in found
    assert "conv.weight" in found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ckpt_path": "gone.pt"}, "gone.pt can not be read (No such file or directory)"),
        ({"dataset_dir": "/gone"}, "/gone: there is no such"),
    ],
)
def test_inference_without_weights_or_scans(dataset, settings, words):
    assert words in run_workflow(INFERENCE, "infer", {"dataset_dir": str(dataset), **settings})


def test_the_masks_before_a_broken_scan_are_kept(trained, tmp_path):
    folder = write_dataset(tmp_path / "scans", 1)
    (folder / "dataset.json").unlink()
    for path in folder.glob("segmentation-*.nii"):
        path.unlink()
    (folder / "volume-2.nii").write_bytes((folder / "volume-1.nii").read_bytes()[:3000])
    settings = {"dataset_dir": folder, "output_dir": tmp_path / "out", "spacing": SHORT["spacing"]}
    run = monai_bundle("run", "inference", "--config_file", INFERENCE, cwd=tmp_path, bundle_root=trained, **settings)
    assert "volume-2.nii" in error_line(run)
    masks = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert [path.name for path in masks] == ["volume-0_liver.nii.gz", "volume-1_liver.nii.gz"]
    assert all(nib.load(path).shape == (48, 40, 8) and np.allclose(nib.load(path).affine, AFFINE) for path in masks)
