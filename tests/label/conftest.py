"""A real server of the app with tiny bundles, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.bundle_runs import AFFINE, make_scan, save
from helpers.label_bundles import SMALL_2D, SMALL_3D, copy_app, serve, tiny_bundle, write_weights

# A run that says it has begun, and goes on when it is told to.
GATE = [
    "$open({begun!r}, 'w').close()",
    "$[time.sleep(0.05) for _ in iter(lambda: os.path.exists({opened!r}), True)]",
    "$@evaluator.run()",
]

# One convolution of one voxel: bright is liver, and what is clicked is of the class of the click.
CLICKS = {
    "network_def": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 4,
        "out_channels": 3,
        "kernel_size": 1,
    },
    "spacing": [6, 6, 6],
    "spatial_size": [16, 16, 16],
    "amp": False,
}


def write_clickable(folder: Path) -> None:
    """Weights for `CLICKS`."""
    (folder / "models").mkdir()
    weight = torch.tensor([[0.0, 4, 0, 0], [1, 0, 4, 0], [0, 0, 0, 4]])[..., None, None, None]
    torch.save(
        {"weight": weight, "bias": torch.tensor([0.4, 0, 0])}, folder / "models" / "model.pt"
    )


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A project with the app, eight bundles of which three are none, and studies."""
    root = tmp_path_factory.mktemp("label")
    copy_app(root)
    bundles = root / "bundles"
    write_weights(tiny_bundle(bundles / "two_d", "mixed_unet_lits", **SMALL_2D), 0)
    write_weights(
        tiny_bundle(root / "monailabel_app" / "model" / "three_d", "unet3d_abdomen", **SMALL_3D), 1
    )
    tiny_bundle(bundles / "untrained", "mixed_unet_lits", **SMALL_2D)
    write_clickable(tiny_bundle(bundles / "clicks", "deepedit_liver", **CLICKS))
    gate = [line.format(begun=str(root / "begun"), opened=str(root / "opened")) for line in GATE]
    imports = ["$import os", "$import time", "$from liverseg.bundle import require"]
    write_weights(
        tiny_bundle(bundles / "waits", "mixed_unet_lits", **SMALL_2D, imports=imports, run=gate), 2
    )
    (tiny_bundle(bundles / "damaged", "unet_liver") / "configs" / "inference.json").write_text("{")
    other = tiny_bundle(bundles / "of_the_future", "unet_liver") / "configs" / "inference.json"
    other.write_text(other.read_text().replace("require('0.1')", "require('9.1')"))
    script = tiny_bundle(bundles / "with_code", "unet_liver") / "scripts" / "network.py"
    script.parent.mkdir()
    script.touch()

    studies = root / "studies"
    studies.mkdir()
    save(studies / "plain.nii.gz", make_scan(0)[0])
    oblique = AFFINE.copy()
    angle = np.deg2rad(20)
    oblique[:3, :3] = [
        [np.cos(angle), -np.sin(angle), 0],
        [np.sin(angle), np.cos(angle), 0],
        [0, 0, 1],
    ] @ AFFINE[:3, :3]
    oblique[:3, :3] @= np.diag([-1, 1, -1])
    oblique[:3, 3] = 31, -17, 5
    save(studies / "oblique.nii", make_scan(1, (40, 48, 7))[0], oblique)
    (studies / "damaged.nii.gz").write_bytes((studies / "plain.nii.gz").read_bytes()[:2000])
    return root


@pytest.fixture(scope="session")
def server(root) -> Iterator[SimpleNamespace]:
    """The server as `liverseg serve` starts it, without any network but this machine."""
    # Scores would keep the cores busy, and never end for the bundle that waits.
    conf = ["--conf", "max_upload_mb", "4", "--conf", "hosts", "Label.example"]
    with serve(root, *conf, MONAI_LABEL_AUTO_UPDATE_SCORING="false") as server:
        yield server


@pytest.fixture
def client(server, tmp_path):
    """MONAI Label's own client of it."""
    from monailabel.client import MONAILabelClient

    return MONAILabelClient(server.url, str(tmp_path))
