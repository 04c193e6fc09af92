"""What the values of settings mean; tests/test_command_line.py has them typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from liverseg.errors import InputError
from liverseg.settings import check_name, is_used, read_setting

SHIPPED = {
    "spatial_size": [64, 64, 64],
    "localise_size": [128, 128],
    "spacing": [3.0, 3.0, 3.0],
    "localise_spacing": [3.0, 3.0, -1.0],
    "hu_window": [-160, 240],
    "planes": ["axial", "coronal", "sagittal"],
    "flips": [],
    "fit": "resize",
    "fits": {"resize": 1, "crop": 2},
    "resampled": "$@fits[@fit]",
    "device": "$select_device()",
    "network_def": "@networks#paper",
    "networks": {"paper": {"_target_": "UNet"}, "quality": {"_target_": "UNet"}},
    "loss": "$@first if @stage else @second",
    "losses": {"dice": {"_target_": "DiceLoss"}},
    "load_pretrain": None,
    "ckpt_path": "$@ckpt_dir + '/model.pt'",
    "copy": "%networks#paper",
    "other_size": "%localise_size",
}


def read(name, value):
    return read_setting(name, value, SHIPPED, ConfigParser(SHIPPED, globals=False))


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("spatial_size", 96, [96, 96, 96]),
        ("localise_size", 96.0, [96, 96]),
        ("spacing", 1.5, [1.5, 1.5, 1.5]),
        ("spacing", [2, 2, -1], [2, 2, -1]),
        ("spacing", [0.1, 20, -1], [0.1, 20, -1]),
        ("spatial_size", [24, 24, 8], [24, 24, 8]),
        ("localise_spacing", 2, [2, 2, -1.0]),
        ("hu_window", (-100, 200.5), [-100, 200.5]),
        ("planes", "axial", ["axial"]),
        ("segmented_targets", ["liver", "lesion"], ["liver", "lesion"]),
        ("flips", [[0], [0, 1]], [[0], [0, 1]]),
        ("device", torch.device("cpu"), "cpu"),
        ("network_def", "quality", "@networks::quality"),
        ("network_def", {"_target_": "FCN"}, {"_target_": "FCN"}),
        ("loss", "dice", "@losses::dice"),
        ("load_pretrain", None, None),
        ("load_pretrain", Path("model.pt"), "model.pt"),
        ("ckpt_path", {"liver": "a.pt"}, {"liver": "a.pt"}),
        ("ckpt_path", 2024, "2024"),
        ("max_epochs", "$3 * 4", "$3 * 4"),
        ("of_ones_own", [1, "x"], [1, "x"]),
    ],
)
def test_what_a_value_means(name, value, meaning):
    assert read(name, value) == meaning


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        (
            "spatial_size",
            [96, 96],
            r"found \[96, 96\], expected 3 numbers of voxels of 8 or more, or a single one",
        ),
        ("spatial_size", [96, 96, -1], "expected 3 numbers of voxels of 8 or more"),
        ("spatial_size", 1, "found 1, expected 3 numbers of voxels of 8 or more"),
        ("localise_size", [128, 7], "expected 2 numbers of voxels of 8 or more"),
        (
            "spacing",
            500,
            "found 500, expected 3 numbers of mm from 0.1 to 20, −1 for an axis that stays as it "
            "is, or",
        ),
        ("spacing", [0.01, 3, -1], "expected 3 numbers of mm from 0.1 to 20"),
        ("localise_spacing", 0.01, "found 0.01, expected 3 numbers of mm from 0.1 to 20"),
        ("spatial_size", 96.5, r'found 96.5, .*: write it as --spatial_size "\[64,64,64\]"\.$'),
        ("spacing", float("nan"), "found nan"),
        ("spacing", float("inf"), "found inf"),
        ("spacing", [2, 0, 2], "expected 3 numbers of mm from 0.1 to 20"),
        ("learning_rate", 0, "expected a number above 0"),
        ("hu_window", [240, -160], "expected two numbers, the lower one first"),
        ("planes", "axail", "expected some of axial, coronal, sagittal"),
        ("planes", [], "expected some of axial"),
        ("flips", 0, "expected a list of lists of the axes 0 and 1"),
        ("flips", [[2]], "expected a list of lists of the axes 0 and 1"),
        ("fit", "rezise", "expected one of resize, crop: choose one"),
        ("device", "gpu", "expected cpu, cuda or cuda:NUMBER"),
        ("network_def", "unet", "expected one of paper, quality: choose one"),
        ("seed", -1, "expected a whole number of 0 or more: write it as --seed 1"),
        ("foreground_ratio", 1.5, "expected a number from 0 to 1"),
        ("resume", 1, "expected true or false"),
        ("ckpt_path", None, "found None, expected a path"),
        ("ckpt_path", ["a.pt"], "expected a path"),
    ],
)
def test_what_no_setting_can_be(name, value, shown):
    with pytest.raises(InputError, match=f"^{name}: .*{shown}"):
        read(name, value)


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("networks#paper#width", True),
        ("networks#quality", False),
        ("localise_size", True),
        ("losses", False),
        ("spacing", False),
    ],
)
def test_what_is_referred_to_is_used(name, used):
    config = ConfigParser(SHIPPED, globals=False)
    assert is_used(name, config, config) == used


def test_what_takes_any_name_is_not_asked():
    content = {
        "logs": {"_target_": "logging.basicConfig"},
        "net": {"_target_": "FCN", "more": {"a": 1}},
    }
    config = ConfigParser({**content, "table": {"_target_": "builtins.dict"}})
    for name in ("logs#level", "net#more#b", "table#x"):
        check_name(name, config, config)
    with pytest.raises(InputError, match="found no colour in the config"):
        check_name("colour", config, config)


def test_a_fit_is_known_where_no_transform_is_chosen_by_it():
    inference = {"fit": "crop", "size": "$@spatial_size if @fit == 'resize' else None"}
    with pytest.raises(InputError, match="fit: found 'rezise', expected one of crop, resize"):
        read_setting("fit", "rezise", inference, ConfigParser(inference, globals=False))
