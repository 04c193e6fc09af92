from __future__ import annotations

import pytest
import torch
from monai.data import DistributedSampler

import liverseg
from liverseg.bundle import is_true, local_device, require, select_device, sentence
from liverseg.errors import InputError


def test_require_gives_the_package_with_its_rooms():
    assert require("0.1") is liverseg
    assert liverseg.data.load_datalist
    assert liverseg.handlers.Checkpoints
    assert liverseg.networks.DeepLabV3Plus


def test_an_archive_asks_for_the_patch_that_is_in_it():
    assert require("0.1.0") is liverseg


@pytest.mark.parametrize("version", ["0.2", "1.1", "0.10", "0.1.1", "0.1.00"])
def test_another_version_says_which_was_found_where_and_what_to_do(version):
    with pytest.raises(
        InputError, match=rf"liverseg: found liverseg 0\.1\.0, expected {version} for this bundle: run it in"
    ):
        require(version)


@pytest.mark.parametrize(("value", "meaning"), [(True, True), ("true", True), ("False", False), (False, False)])
def test_switches_mean_what_a_command_line_says(value, meaning):
    assert is_true(value) is meaning


def test_a_switch_that_is_neither():
    with pytest.raises(InputError, match="found 'no'"):
        is_true("no")


def test_the_device():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match=r"device: cuda:63 was asked for, found \d+ CUDA devices"):
        select_device("cuda:63")


def test_the_device_of_one_of_several_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match=r"found no LOCAL_RANK .* start with `torchrun"):
        local_device()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert local_device() == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def test_fewer_scans_than_processes_are_said_in_a_sentence():
    with pytest.raises(ValueError, match="ranks") as caught:
        DistributedSampler([1, 2], even_divisible=False, num_replicas=3, rank=0)
    assert sentence(caught.value).startswith("validation: found fewer scans than processes")


def test_the_sentence_is_found_behind_other_errors_and_only_there():
    try:
        try:
            raise InputError("a.nii: broken.")
        except InputError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as error:
        assert sentence(error) == "a.nii: broken."
    assert sentence(KeyError("a fault of ours")) is None
