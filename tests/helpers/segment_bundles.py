"""Tiny bundles to segment with, and the command in this process."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from helpers.label_bundles import tiny_bundle, write_weights
from liverseg.workbench.cli import app

SIMPLE = {"network_def": "@networks#simple", "spacing": [-1, -1, -1], "amp": False}


def simple_bundle(folder: Path, seed: int, **settings) -> Path:
    """A 2-D network that sees the slices as they are."""
    bundle = tiny_bundle(folder, "fcn_liver", **{**SIMPLE, **settings})
    write_weights(bundle, seed)
    return bundle


def command(*arguments: object) -> None:
    """`liverseg segment` as a user types it, raising what it ends with."""
    app(["segment", *map(str, arguments)], standalone_mode=False)


def liver_probability(bundle: Path, scan: Path) -> np.ndarray:
    """The softmax of the liver in float64, on the scan's grid, by PyTorch and nibabel alone."""
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def").double().eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    image = nib.load(scan)
    orientation = nib.io_orientation(image.affine)
    low, high = parser["hu_window"]
    ras = nib.apply_orientation(image.get_fdata(), orientation)
    slices = torch.tensor(np.clip((ras - low) / (high - low), 0, 1)).permute(2, 0, 1)[:, None]
    with torch.no_grad():
        found = network(slices).softmax(1)[:, 1].permute(1, 2, 0).numpy()
    back = nib.orientations.axcodes2ornt("RAS")
    return nib.apply_orientation(found, nib.orientations.ornt_transform(back, orientation))
