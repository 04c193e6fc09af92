"""Bad input ends a command with one message and a non-zero status, and changes no file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import (
    AFFINE,
    BUNDLE,
    SHORT,
    make_scan,
    monai_bundle,
    monai_bundle_here,
    save,
)
from monai.bundle import create_workflow

from liverseg.errors import message

TRAIN = str(BUNDLE / "configs" / "train.json")
INFERENCE = str(BUNDLE / "configs" / "inference.json")


def error_line(run) -> str:
    assert run.returncode == 1, run.stdout[-2000:] + run.stderr[-2000:]
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in run.stderr
    return line


def test_the_command_line_ends_with_the_message(tmp_path):
    run = monai_bundle(
        "run", "training", "--config_file", TRAIN, cwd=tmp_path, bundle_root="2024", device="cuda:7"
    )
    assert "cuda:7 was asked for" in error_line(run)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"loss": "dise"},
            ["loss", "'dise'", "dice_ce", "iou_xy", "focal_tversky", "perhaps dice"],
        ),
        ({"postprocessing": "@postprocessings#x"}, ["@postprocessings#x", "clean_slices"]),
        ({"modality": "pet"}, ["modality", "'pet'", "ct, mr"]),
        ({"modalty": "mr"}, ["modalty", "--modality"]),
        ({"network_def#output_strde": 8}, ["output_strde", "--network_def#output_stride"]),
        ({"device": "gpu"}, ["device", "'gpu'", "cpu, cuda"]),
        ({"max_epochs": 0}, ["max_epochs", "whole number of 1 or more"]),
        ({"dataset_dir": "1e5"}, ["/1e5/dataset.json", "no such datalist"]),
    ],
)
def test_what_is_typed_is_checked(dataset, tmp_path, monkeypatch, setting, words):
    monkeypatch.chdir(tmp_path)
    settings = {**SHORT, "dataset_dir": dataset, **setting}
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", "training", "--config_file", TRAIN, **settings)
    found = message(error.value)
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    ("bundle", "setting"),
    [
        ("cascade_lits", "in_channels"),
        ("unet3d_abdomen", "iou_xy_beta"),
    ],
)
def test_a_setting_that_a_bundle_lacks_is_refused(tmp_path, monkeypatch, bundle, setting):
    config = BUNDLE.parent / bundle / "configs" / "train.json"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", "training", "--config_file", config, **{setting: 3})
    assert message(error.value).startswith(f"{setting}: found no {setting} in the config")


@pytest.mark.parametrize("bundle", ["cascade_lits", "mixed_unet_lits", "deepedit_liver"])
def test_mri_is_refused_by_a_bundle_for_ct(tmp_path, monkeypatch, bundle):
    config = BUNDLE.parent / bundle / "configs" / "train.json"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", "training", "--config_file", config, modality="mr")
    assert message(error.value) == "modality: found 'mr', expected one of ct: choose one."


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        (
            {"mask_cleaning": "none"},
            "mask_cleaning: found the name of an earlier version, expected postprocessing: write "
            "--postprocessing.",
        ),
        ({"loss": "iou_15_05"}, "write iou_xy with --iou_xy_alpha 1.5, which is the same."),
        ({"loss": "@losses#iou_10_10"}, "write iou, which is the same."),
        (
            {"learning_rte": 0.1},
            "learning_rte in the config, expected a name that is there: correct it, perhaps to "
            "--learning_rate.",
        ),
    ],
)
def test_what_an_old_or_misspelt_name_is_now_called(tmp_path, monkeypatch, setting, advice):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", "training", "--config_file", TRAIN, **setting)
    assert message(error.value).endswith(advice)


def test_lesions_in_mri_are_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = BUNDLE.parent / "unet3d_liver" / "configs" / "inference.json"
    settings = {"dataset_dir": dataset, "modality": "mr", "segmented_targets": "lesion"}
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", "inference", "--config_file", config, **settings)
    assert message(error.value) == (
        "segmented_targets, with modality mr: found 'lesion', expected one of liver: set it to one "
        "of these."
    )


@pytest.mark.parametrize("run_id", ["train", "validate"])
def test_a_section_is_not_run(tmp_path, monkeypatch, run_id):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", run_id, "--config_file", TRAIN)
    assert message(error.value).startswith(
        f"run {run_id}: found no id of this config that runs anything, expected one"
    )


def run_training(dataset: Path, tmp_path: Path, **settings) -> str:
    """The sentence that a training ends with, run in this process."""
    values = {
        **SHORT,
        "dataset_dir": str(dataset),
        "ckpt_dir": str(tmp_path / "m"),
        "output_dir": str(tmp_path / "e"),
    }
    return run_workflow(TRAIN, "train", {**values, **settings})


def run_workflow(config: str | list[str], kind: str, settings: dict) -> str:
    with pytest.raises(Exception) as error:
        create_workflow(
            config_file=config, workflow_type=kind, bundle_root=str(BUNDLE), **settings
        ).run()
    found = message(error.value)
    assert found is not None, repr(error.value)
    assert "\n" not in found
    return found


def spoil(dataset: Path, tmp_path: Path, what: str) -> Path:
    folder = shutil.copytree(dataset, tmp_path / "data")
    image, label = make_scan(1)
    volume, segmentation, datalist = (
        folder / n for n in ("volume-1.nii", "segmentation-1.nii", "dataset.json")
    )
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
    assert "cannot be written" in run_training(
        dataset, tmp_path, ckpt_dir=str(tmp_path / "file" / "models")
    )


def test_weights_of_another_network(dataset, tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    found = run_training(dataset, tmp_path, load_pretrain=str(tmp_path / "other.pt"))
    assert "other.pt" in found
    assert "conv.weight" in found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ckpt_path": "gone.pt"}, "gone.pt cannot be read (No such file or directory)"),
        ({"dataset_dir": "/gone"}, "/gone: there is no such"),
    ],
)
def test_inference_without_weights_or_scans(dataset, settings, words):
    assert words in run_workflow(INFERENCE, "infer", {"dataset_dir": str(dataset), **settings})


@pytest.mark.parametrize("ext", [".mha", ".nrrd", "nii"])
def test_inference_in_a_format_that_masks_are_not_written_in(dataset, ext):
    settings = {"dataset_dir": str(dataset), "output_ext": ext, "ckpt_path": "gone.pt"}
    assert run_workflow(INFERENCE, "infer", settings).startswith(
        f"output_ext: found '{ext}', expected .nii.gz or .nii"
    )


def test_a_broken_scan_does_not_end_the_others(trained, tmp_path):
    """TotalSegmentator's layout, all scans called alike, by a datalist."""
    folders = [tmp_path / f"s{number}" for number in range(4)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        save(folder / "ct.nii.gz", make_scan(number)[0])
    broken = folders[1] / "ct.nii.gz"
    broken.write_bytes(broken.read_bytes()[:3000])
    save(folders[2] / "ct.nii.gz", make_scan(2)[0][..., None].repeat(2, -1))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"training": [], "test": [f"{folder.name}/ct.nii.gz" for folder in folders]})
    )
    settings = {
        "dataset_dir": tmp_path,
        "output_dir": tmp_path / "out",
        "spacing": SHORT["spacing"],
    }
    run = monai_bundle(
        "run",
        "inference",
        "--config_file",
        INFERENCE,
        cwd=tmp_path,
        bundle_root=trained,
        **settings,
    )
    line = error_line(run)
    assert line.startswith("error: 2 of 4 scans failed")
    assert (
        f"{broken}: not readable as a volume" in line
        and f"{folders[2] / 'ct.nii.gz'}: the volume is 4-D" in line
    )
    masks = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert [path.name for path in masks] == ["s0_ct_liver.nii.gz", "s3_ct_liver.nii.gz"]
    assert all(
        nib.load(path).shape == (48, 40, 8) and np.allclose(nib.load(path).affine, AFFINE)
        for path in masks
    )
    scans = {
        scan["image"]: scan
        for scan in json.loads((tmp_path / "out" / "summary.json").read_text())["scans"]
    }
    assert sorted(scans) == [str(folder / "ct.nii.gz") for folder in folders]
    assert [scan.get("mask") for _, scan in sorted(scans.items())] == [
        masks[0].name,
        None,
        None,
        masks[1].name,
    ]
    done = scans[str(folders[0] / "ct.nii.gz")]
    voxels = int((np.asarray(nib.load(masks[0]).dataobj) == 1).sum())
    assert done["volume_ml"] == {"liver": pytest.approx(voxels * 6 * 6 * 10 / 1000)}
    # What these scans hold is noise around 0 and a ball of 100.
    assert "not those of a CT in HU" in done["flags"]["intensities"] and done["warnings"] == []
    assert f"{folders[0] / 'ct.nii.gz'}: the intensities" in run.stdout
    assert "4-D" in scans[str(folders[2] / "ct.nii.gz")]["error"]


def test_a_broken_scan_does_not_end_an_evaluation(trained, dataset, tmp_path):
    folder = spoil(dataset, tmp_path, "truncated")
    settings = {
        **{
            "dataset_dir": str(folder),
            "output_dir": str(tmp_path / "e"),
            "section": "validation",
            "fold": 1,
        },
        **{"ckpt_dir": str(trained / "models"), "spacing": SHORT["spacing"]},
    }
    found = run_workflow([TRAIN, str(BUNDLE / "configs" / "evaluate.json")], "train", settings)
    assert found.startswith("1 of 2 scans failed") and "volume-1.nii: not readable" in found
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["number_of_cases"] == 1
    assert [Path(failure["image"]).name for failure in summary["failures"]] == ["volume-1.nii"]
    assert "volume-3.nii" in (tmp_path / "e" / "cases.csv").read_text()
