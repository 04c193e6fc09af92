from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, DistributedSampler

import liverseg
from liverseg.bundle import is_true, iterations_per_epoch, require
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


@pytest.mark.parametrize(
    ("items", "batch_size", "processes", "steps"),
    [(2, 2, 1, 1), (7, 2, 1, 4), (8, 2, 1, 4), (1, 4, 1, 1), (7, 2, 2, 2), (50, 2, 4, 7)],
)
def test_steps_of_an_epoch_are_those_of_a_dataloader(items, batch_size, processes, steps, monkeypatch):
    data = list(range(items))
    sampler = DistributedSampler(data, num_replicas=processes, rank=0)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: processes)
    assert iterations_per_epoch(data, batch_size) == len(DataLoader(data, batch_size, sampler=sampler)) == steps
