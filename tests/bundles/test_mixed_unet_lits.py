"""What the settings of mixed_unet_lits do to the slices that it trains on."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.bundle_runs import BUNDLE, write_dataset
from monai.bundle import ConfigParser

FOLDER = BUNDLE.parent / "mixed_unet_lits"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("mixed"))


def batch_of(scans, **settings) -> dict[str, torch.Tensor]:
    parser = ConfigParser()
    parser.read_config(FOLDER / "configs" / "train.json")
    settings = {"bundle_root": str(FOLDER), "dataset_dir": str(scans), "device": "cpu", **settings}
    for name, value in {"batch_size": 2, "slices_per_volume": 2, **settings}.items():
        parser[name] = value
    return next(iter(parser.get_parsed_content("train#dataloader")))


def slices_of(scans) -> torch.Tensor:
    """All slices in the window, 0 to 1, averaged over areas to 96 x 96 pixels, not equalised."""
    volumes = [nib.load(path).get_fdata() for path in sorted(scans.glob("volume-*.nii"))]
    slices = torch.from_numpy(np.concatenate([(volume + 100) / 400 for volume in volumes], axis=2))
    return F.interpolate(
        slices.clamp(0, 1).permute(2, 0, 1)[:, None], (96, 96), mode="area"
    ).float()


def nearest(batch: dict[str, torch.Tensor], known: torch.Tensor) -> list[float]:
    """The largest difference of each image of the batch from the slice that is most like it."""
    return [float((known - image).abs().amax((1, 2, 3)).min()) for image in batch["image"]]


def test_without_augmentation_and_equalisation_slices_are_the_scans_own(scans):
    plain = {"augmentation": "@augmentations#none", "equalize": False}
    batch = batch_of(scans, **plain)
    assert batch["image"].shape == batch["label"].shape == (4, 1, 96, 96)
    assert max(nearest(batch, slices_of(scans))) < 1e-5
    # Each of the two changes them.
    assert min(nearest(batch_of(scans, **{**plain, "equalize": True}), slices_of(scans))) > 0.01
    affine = batch_of(scans, **{**plain, "augmentation": "@augmentations#affine"})
    assert min(nearest(affine, slices_of(scans))) > 0.01


def test_without_augmentation_slices_at_their_own_scale_have_one_size(scans):
    settings = {"fit": "crop", "spacing": [6.0, 6.0, -1.0], "spatial_size": [64, 32]}
    batch = batch_of(scans, augmentation="@augmentations#none", **settings)
    assert batch["image"].shape == batch["label"].shape == (4, 1, 64, 32)
    # Of 48 pixels along the first axis, eight on either side are empty.
    assert not batch["image"][:, :, :8].any()
    assert batch["image"][:, :, 8:-8].any()


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (["train.json"], "validate#preprocessing"),
        (["train.json", "evaluate.json"], "validate#preprocessing"),
        (["inference.json"], "preprocessing"),
    ],
)
@pytest.mark.parametrize("equalize", [False, True])
def test_equalisation_is_left_out_wherever_a_scan_is_read(names, place, equalize):
    parser = ConfigParser()
    parser.read_config([FOLDER / "configs" / name for name in names])
    parser["bundle_root"], parser["equalize"] = str(FOLDER), equalize
    steps = [type(step).__name__ for step in parser.get_parsed_content(place).transforms]
    assert "NoneType" not in steps
    assert ("EqualizeHistogramd" in steps) == equalize
