"""Each archive does what its README says, with the packages in its metadata.json and no others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import AFFINE, ROOT, make_scan, options, save, write_dataset
from helpers.dataset_trees import write_series
from helpers.readme_commands import commands
from helpers.waiting import SECONDS
from monai.bundle import ConfigParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from liverseg.networks import merge_weights
from liverseg.workbench.zoo.build import build_archive

SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))
SLICES, WINDOWS = {"spacing": [6, 6, -1]}, {"spacing": [12, 12, 12], "spatial_size": [16, 16, 16]}
# What makes the networks of a bundle narrow; what every run takes besides; what makes a training
# short.
NARROW = {
    "unet_liver": {"network_def#first_filters": 8},
    "fcn_liver": {"networks#fcn8s#fc_channels": 64},
    "cascade_lits": {"localise_network#first_filters": 8, "tune_network#first_filters": 4},
    "mixed_unet_lits": {"stage_network#first_filters": 8},
    "unet3d_abdomen": {"networks#paper#width": 4},
    "deepedit_liver": {"network_def#init_filters": 8},
    "unet3d_liver": {"stage_networks#liver#width": 4, "stage_networks#lesion#width": 4},
}
SETTINGS = {
    "unet_liver": {**SLICES, "modality": "mr"},
    "cascade_lits": {"spacing": [6, 6, 6], "localise_spacing": [6, 6, -1]},
    "mixed_unet_lits": {"spatial_size": [32, 32]},
    "unet3d_abdomen": WINDOWS,
    "deepedit_liver": WINDOWS,
    "unet3d_liver": {
        "spatial_size": [28, 28, 28],
        "lesion_spatial_size": [20, 20, 20],
        "lesion_spacing": [6, 6, 10],
    },
}
SHORT = {"max_epochs": 1, "val_interval": 1}
TRAINING = {
    # One of the networks, for each is trained by a process of its own.
    "cascade_lits": {
        "stage": "localise",
        "target": "liver",
        "localise_size": [48, 48],
        "spatial_size": [48, 48],
    },
    "mixed_unet_lits": {"stage": "liver"},
    "unet3d_abdomen": {"iterations_per_epoch": 1},
    "deepedit_liver": {"amp": False},
    "unet3d_liver": {"stage": "liver"},
}
# What `torchrun --nproc_per_node 1` sets.
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


@cache
def modules() -> dict[str, set[str]]:
    """The installed distributions by the modules they bring."""
    return {
        name: set(map(canonicalize_name, found))
        for name, found in metadata.packages_distributions().items()
    }


def with_all_they_need(names: list[str]) -> set[str]:
    """The distributions `names` and those that they require."""
    todo, done = list(names), set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in done:
            done.add(name)
            needs = map(Requirement, metadata.distribution(name).requires or ())
            todo += [
                need.name
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return done


def write_data(folder: Path, bundle: str, classes: int) -> None:
    """Write what the README's commands name; `series` holds compressed DICOM."""
    # An ensemble has a network of each fold.
    write_dataset(folder / "data", num_cases=5, num_folds=5)
    for path in sorted((folder / "data").glob("segmentation-*")) if classes > 3 else ():
        label = np.asarray(nib.load(path).dataobj)
        # The organs side by side.
        save(
            path,
            ((label > 0) * (1 + np.arange(len(label)) // 2 % (classes - 1))[:, None, None]).astype(
                np.uint8
            ),
        )
    # As large as the README's clicks are far.
    shape, affine = (
        ((320, 256, 72), np.diag([0.75, 0.75, 1, 1]))
        if bundle == "deepedit_liver"
        else ((48, 40, 8), AFFINE)
    )
    image, _ = make_scan(9, shape)
    save(folder / "scan.nii.gz", image, affine)
    write_compressed(folder / "series", *make_scan(9)[:1])
    if SCHEMA.is_file():
        shutil.copy(SCHEMA, folder / "schema.json")


def write_compressed(folder: Path, array: np.ndarray) -> None:
    """A DICOM series in JPEG 2000."""
    from openjpeg.utils import encode_array
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    write_series(folder, array, AFFINE, [f"{k}.dcm" for k in range(array.shape[2])])
    for path in folder.iterdir():
        file = dcmread(path)
        file.PixelData = encapsulate([encode_array(file.pixel_array)])
        file["PixelData"].is_undefined_length = True
        file.file_meta.TransferSyntaxUID = JPEG2000Lossless
        file.save_as(path)


def write_weights(bundle: Path, narrow: dict) -> None:
    """Random weights of the networks of a chain, as its trainings write them."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    parser.update({"bundle_root": str(bundle), **narrow})
    torch.manual_seed(0)
    networks, paths = (
        parser.get_parsed_content("network_def"),
        parser.get_parsed_content("stage_models"),
    )
    for name, network in networks.named_children():
        Path(paths[name]).parent.mkdir(parents=True)
        torch.save(network.state_dict(), paths[name])
    merge_weights(paths, bundle / "models" / "model.pt")


def with_settings(command: list[str], bundle: str) -> list[str] | None:
    """Return a command's arguments for a small run; None for a command that belongs elsewhere."""
    if "monai.bundle" not in command:
        return None
    arguments = command[command.index("monai.bundle") + 1 :]
    values = dict(NARROW.get(bundle, {}))
    if arguments[0] == "verify_metadata":
        return arguments if SCHEMA.is_file() else None
    if arguments[0] == "run":
        values |= SETTINGS.get(bundle, SLICES)
    if arguments[0] == "run" and arguments[1] in ("training", "run"):
        values |= SHORT | TRAINING.get(bundle, {"spatial_size": [48, 48], "slices_per_volume": 2})
    if command[0] == "torchrun":
        values |= {"ckpt_dir": "several", "output_dir": "several"}
    typed = {argument for argument in arguments if argument.startswith("--")}
    return [
        *arguments,
        *options(**{name: value for name, value in values.items() if f"--{name}" not in typed}),
    ]


@pytest.fixture(scope="module", params=BUNDLES)
def unpacked(request, tmp_path_factory):
    """A bundle that was archived and unpacked, where all that its README types has been run."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    source, folder = root / "source" / name, root / name
    ignored = shutil.ignore_patterns("models", "eval", "output")
    shutil.copytree(ROOT / "bundles" / name, source, ignore=ignored)
    chain = "all_stages" in json.loads((source / "configs" / "train.json").read_text())
    if chain:
        write_weights(source, NARROW[name])
    with zipfile.ZipFile(build_archive(source, root)) as archive:
        archive.extractall(root)
    described = json.loads((folder / "configs" / "metadata.json").read_text())
    labels = described["network_data_format"]["outputs"]["pred"]["channel_def"]
    write_data(folder, name, len(labels))
    required = ["monai", "torch", "numpy", *described["required_packages_version"]]
    (root / "task.json").write_text(json.dumps(task_of(folder, name, required, root)))
    return SimpleNamespace(
        name=name,
        folder=folder,
        chain=chain,
        source=source,
        labels=labels,
        required=required,
        described=described,
        loaded=run_task(folder, root),
    )


def task_of(folder, name, required, root):
    """What `helpers/run_archive.py` is to run, and the modules that it is not to find."""
    # What the README asks for besides, to verify the metadata.
    present = with_all_they_need([*required, "jsonschema"]) | {"liverseg"}
    assert "pip install jsonschema" in (folder / "docs" / "README.md").read_text()
    series = ["run", "inference", "--config_file", "configs/inference.json", "--dataset_dir"]
    typed = commands(folder / "docs" / "README.md", root)
    assert ["python", "-m", "monai.bundle", *series, "scan.nii.gz"] in typed
    # Those of torchrun last, for its process group outlives them.
    every = sorted(
        [*typed, ["monai.bundle", *series, "series"]],
        key=lambda command: command[0] == "torchrun",
    )
    arguments = [with_settings(command, name) for command in every]
    return {
        "absent": [module for module, found in modules().items() if not found & present],
        # A chain of rounds is another test's.
        "commands": [words for words in arguments if words and "iterate" not in words],
    }


def run_task(folder, root):
    """Run `task.json`; returns which modules were loaded."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "OMP_NUM_THREADS": "1",
        **ONE_PROCESS,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = ROOT / "tests" / "helpers" / "run_archive.py"
    done = subprocess.run(
        [sys.executable, str(script), str(root / "task.json")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_readme_runs_with_the_packages_that_the_metadata_lists(unpacked):
    loaded = unpacked.loaded
    assert loaded["liverseg"] == str(unpacked.folder / "liverseg" / "__init__.py")
    brought = {
        distribution for module in loaded["modules"] for distribution in modules().get(module, ())
    }
    assert {canonicalize_name(package) for package in unpacked.required} - brought == set()


@pytest.mark.slow
def test_the_readme_evaluates(unpacked):
    summary = json.loads((unpacked.folder / "eval" / "summary.json").read_text())
    assert summary["number_of_cases"] == 1
    assert len(summary["cases"]) == len(unpacked.labels) - 1
    if "lesion" in unpacked.labels.values():
        assert summary["lesions"]["reference_lesions"] == 1


@pytest.mark.slow
def test_the_readme_gives_masks_of_a_file_and_of_a_series(unpacked):
    masks = [nib.load(path) for path in (unpacked.folder / "output").rglob("*.nii.gz")]
    assert len(masks) == 2
    file = nib.load(unpacked.folder / "scan.nii.gz")
    for scan in (file, nib.Nifti1Image(np.zeros((48, 40, 8)), AFFINE)):
        on_its_grid = [mask for mask in masks if mask.shape == scan.shape]
        assert any(
            np.abs(np.abs(np.diag(mask.affine)) - np.abs(np.diag(scan.affine))).max() < 1e-3
            for mask in on_its_grid
        )
    for mask in masks:
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) <= set(map(int, unpacked.labels))


@pytest.mark.slow
def test_the_readme_leaves_one_file_of_all_networks_and_an_export(unpacked):
    if unpacked.chain:
        check_one_file_of_all(unpacked.folder, unpacked.source)
    image = unpacked.described["network_data_format"]["inputs"]["image"]
    check_export(unpacked.folder, unpacked.name, image)


def check_one_file_of_all(folder: Path, source: Path) -> None:
    """`models/model.pt` holds the network just trained, and the archive's other weights."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "train.json")
    parser["bundle_root"] = str(folder)
    merged = torch.load(folder / "models" / "model.pt", weights_only=True)
    before = torch.load(source / "models" / "model.pt", weights_only=True)
    changed = set()
    for name, path in parser.get_parsed_content("stage_models").items():
        for key, value in torch.load(path, weights_only=True).items():
            assert torch.equal(merged[f"{name}.{key}"], value)
            changed |= {name} if not torch.equal(before[f"{name}.{key}"], value) else set()
    assert len(changed) == 1


def check_export(folder: Path, name: str, image: dict) -> None:
    """`ckpt_export` writes the config's network with the weights in `models/model.pt`."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.update({"bundle_root": str(folder), **NARROW.get(name, {})})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    exported = torch.jit.load(folder / "models" / "model.ts").eval()
    x = torch.rand(1, image["num_channels"], *[16] * len(image["spatial_shape"]))
    with torch.no_grad(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(exported(x), network(x), rtol=1e-3, atol=1e-3)
