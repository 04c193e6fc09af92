"""A bundle whose network is two thresholds, so that the mask of any scan is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from typer.testing import CliRunner

from helpers.bundle_runs import AFFINE, ROOT
from liverseg.workbench.cli import app

SHAPE = (30, 26, 8)
LIVER_HU, LESION_HU = 40, 100
NETWORK = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}


def write_bundle(folder: Path, name: str = "thresholds") -> Path:
    """Write a bundle that finds the liver above 40 HU, and lesions above 100 HU."""
    source, bundle = ROOT / "bundles" / "fcn_liver", folder / name
    (bundle / "models").mkdir(parents=True)
    shutil.copytree(source / "configs", bundle / "configs")
    shutil.copytree(source / "docs", bundle / "docs")
    shutil.copy(source / "LICENSE", bundle)
    _edit(
        bundle / "configs" / "inference.json",
        # The scans' own spacing, so that no voxel is resampled.
        {"network_def": NETWORK, "num_classes": 3, "spacing": [-1.0, -1.0, -1.0], "amp": False}
        | {"postprocessing": "@postprocessings#none"},
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    output = metadata["network_data_format"]["outputs"]["pred"]
    output["channel_def"] = {"0": "background", "1": "liver", "2": "lesion"}
    _edit(bundle / "configs" / "metadata.json", metadata)
    network = torch.nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        # Of HU scaled from -160...240 to 0...1: the lines cross at 40 and at 100 HU.
        network.weight[:] = torch.tensor([0.0, 10, 20])[:, None, None, None]
        network.bias[:] = torch.tensor([0.0, -5, -11.5])
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


def make_hu(seed: int = 0) -> np.ndarray:
    """A liver of 60 HU with a lesion of 140 HU, somewhere in fat."""
    generator = np.random.default_rng(seed)
    centre = np.array(SHAPE) / 2 + generator.uniform(-2, 2, 3)
    distance = np.linalg.norm((np.indices(SHAPE).T - centre) / (9, 7, 2.5), axis=-1).T
    hu = np.select([distance < 0.3, distance < 1], [140, 60], -80)
    return (hu + generator.integers(-15, 15, SHAPE)).astype(np.int16)


def expected_mask(hu: np.ndarray) -> np.ndarray:
    return (hu > LIVER_HU).astype(np.uint8) + (hu > LESION_HU)


def save_scan(path: Path, seed: int = 0, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(make_hu(seed), affine), path)
    return path


def liverseg(*arguments: object) -> str:
    """Run `liverseg …` in this process; return what it prints, or raise what it raises."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def _edit(path: Path, values: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
