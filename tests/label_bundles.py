"""Tiny bundles for the tests of the MONAI Label app, and what they give without it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import torch
from bundle_runs import ROOT
from monai.bundle import ConfigParser, create_workflow


def tiny_bundle(folder: Path, source: str, **settings) -> Path:
    """A copy of a bundle's configs with other settings."""
    shutil.copytree(ROOT / "bundles" / source / "configs", folder / "configs")
    file = folder / "configs" / "inference.json"
    parser = ConfigParser(json.loads(file.read_text()))
    parser.update({"postprocessings#none#keys": "pred", "mask_cleaning": "@postprocessings#none", **settings})
    file.write_text(json.dumps({key: value for key, value in parser.get().items() if key != "_meta_"}))
    return folder


def write_weights(bundle: Path, seed: int) -> Path:
    """Random weights where the bundle looks for them, so large that its masks hold several labels."""
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser["bundle_root"] = str(bundle)
    generator = torch.Generator().manual_seed(seed)
    state = parser.get_parsed_content("network").state_dict()
    for value in state.values():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator))
    path = bundle / "models" / "model.pt"
    path.parent.mkdir(exist_ok=True)
    # Replaced at once, as training does.
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    return path


def run_bundle(bundle: Path, image: Path, folder: Path, **settings) -> Path:
    """The mask that the bundle's own inference writes."""
    config = str(bundle / "configs" / "inference.json")
    paths = {"bundle_root": str(bundle), "dataset_dir": str(image), "output_dir": str(folder)}
    create_workflow(config_file=config, workflow_type="infer", logging_file=False, **paths, **settings).run()
    (mask,) = folder.glob("*.nii.gz")
    return mask


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
