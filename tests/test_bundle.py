from __future__ import annotations

import pytest

import liverseg
from liverseg.bundle import is_true, require
from liverseg.errors import InputError


def test_require_gives_the_package_with_its_subpackages():
    assert require("0.1") is liverseg
    assert liverseg.data.load_datalist
    assert liverseg.handlers.Checkpoints
    assert liverseg.networks.DeepLabV3Plus


def test_an_archive_asks_for_the_patch_that_is_in_it():
    assert require("0.1.0") is liverseg


@pytest.mark.parametrize("version", ["0.2", "1.1", "0.10", "0.1.1", "0.1.00"])
def test_another_version_says_which_was_found_where_and_what_to_do(version):
    with pytest.raises(
        InputError,
        match=rf"liverseg: found liverseg 0\.1\.0, expected {version} for this bundle: run it in",
    ):
        require(version)


@pytest.mark.parametrize(
    ("value", "meaning"), [(True, True), ("true", True), ("False", False), (False, False)]
)
def test_switches_mean_what_a_command_line_says(value, meaning):
    assert is_true(value) is meaning


def test_a_switch_that_is_neither():
    with pytest.raises(InputError, match="found 'no'"):
        is_true("no")
