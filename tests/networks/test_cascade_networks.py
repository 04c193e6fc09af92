from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from liverseg.errors import InputError
from liverseg.handlers import WeightsCheckpointLoader
from liverseg.networks import CascadeNetworks

NAMES = ["liver_localise", "liver_axial", "liver_sagittal", "lesion_localise", "lesion_axial", "lesion_sagittal"]


def small_cascade(**options) -> CascadeNetworks:
    localise, tune = nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1))
    return CascadeNetworks(localise, tune, **{"planes": ["axial", "sagittal"], **options})


def write_weights(network: CascadeNetworks, folder) -> dict[str, str]:
    """Random weights of each network where training leaves them."""
    paths = network.weights_in(folder)
    for number, (name, path) in enumerate(paths.items()):
        for parameter in network[name].parameters():
            nn.init.constant_(parameter, number)
        (folder / path).parent.mkdir(parents=True)
        torch.save(network[name].state_dict(), path)
    return paths


def test_there_is_one_network_for_each_target_and_part():
    assert list(small_cascade()) == NAMES
    assert list(small_cascade(targets=["liver"], planes=["coronal"])) == ["liver_localise", "liver_coronal"]
    assert len(CascadeNetworks(nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1))) == 8


def test_the_copies_share_no_parameters():
    localise, tune = nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1)
    network = CascadeNetworks(localise, tune)
    places = [p.data_ptr() for part in (network, localise, tune) for p in part.parameters()]
    assert len(set(places)) == len(places) == 2 * (8 + 2)
    nn.init.constant_(network["liver_axial"].weight, 7)
    assert not any((network[name].weight == 7).any() for name in network if name != "liver_axial")


def test_weights_are_where_training_leaves_them(tmp_path):
    paths = small_cascade().weights_in(tmp_path)
    assert paths == {name: str(tmp_path / name.replace("_", "/") / "model.pt") for name in NAMES}


def test_those_of_a_round_are_of_the_tuning_networks(tmp_path):
    paths = small_cascade(targets=["lesion"], planes=["axial"]).weights_in(tmp_path, 0)
    assert paths == {
        "lesion_localise": str(tmp_path / "lesion" / "localise" / "model.pt"),
        "lesion_axial": str(tmp_path / "lesion" / "axial" / "rounds" / "0" / "model.pt"),
    }


def test_each_network_loads_its_own_weights(tmp_path):
    source, target = small_cascade(), small_cascade()
    paths = write_weights(source, tmp_path)
    WeightsCheckpointLoader(target, dict(reversed(paths.items())))(None)
    state = target.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())
    assert {float(value.mean()) for value in state.values()} == set(range(6))


def test_weights_of_all_in_one_file_load_too(tmp_path):
    source, target = small_cascade(), small_cascade()
    torch.save(source.state_dict(), tmp_path / "model.pt")
    WeightsCheckpointLoader(target, tmp_path / "model.pt")(None)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_missing_weights_are_refused(tmp_path):
    network = small_cascade(targets=["liver"], planes=["axial"])
    with pytest.raises(InputError, match=re.escape("found weights for liver_axial, expected liver_localise, liver_ax")):
        network.load_weights({"liver_axial": "model.pt"})
    with pytest.raises(InputError, match=r"liver/localise/model\.pt can not be read \(No such file"):
        network.load_weights(network.weights_in(tmp_path))
