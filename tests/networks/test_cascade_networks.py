from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from liverseg.errors import InputError
from liverseg.handlers import WeightsCheckpointLoader
from liverseg.networks import CascadeNetworks, TuningNet, UNet, cascade_weights, merge_weights

NAMES = [
    "liver_localise",
    "liver_axial",
    "liver_sagittal",
    "lesion_localise",
    "lesion_axial",
    "lesion_sagittal",
]


PLANES = ["axial", "sagittal"]


def small_cascade(**options) -> CascadeNetworks:
    localise, tune = nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1))
    return CascadeNetworks(localise, tune, **{"planes": PLANES, **options})


def write_weights(network: CascadeNetworks, folder) -> dict[str, str]:
    """Random weights of each network where training leaves them."""
    paths = cascade_weights(folder, planes=PLANES)
    for number, (name, path) in enumerate(paths.items()):
        for parameter in network[name].parameters():
            nn.init.constant_(parameter, number)
        (folder / path).parent.mkdir(parents=True)
        torch.save(network[name].state_dict(), path)
    return paths


def test_there_is_one_network_for_each_target_and_part():
    assert list(small_cascade()) == NAMES
    assert list(small_cascade(targets=["liver"], planes=["coronal"])) == [
        "liver_localise",
        "liver_coronal",
    ]
    assert len(CascadeNetworks(nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1))) == 8


def test_the_copies_share_no_parameters():
    localise, tune = nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1)
    network = CascadeNetworks(localise, tune)
    places = [p.data_ptr() for part in (network, localise, tune) for p in part.parameters()]
    assert len(set(places)) == len(places) == 2 * (8 + 2)
    nn.init.constant_(network["liver_axial"].weight, 7)
    assert not any((network[name].weight == 7).any() for name in network if name != "liver_axial")


def test_weights_are_where_training_leaves_them(tmp_path):
    paths = cascade_weights(tmp_path, planes=PLANES)
    assert paths == {name: str(tmp_path / name.replace("_", "/") / "model.pt") for name in NAMES}


def test_those_of_a_round_are_of_the_tuning_networks(tmp_path):
    paths = cascade_weights(tmp_path, ["lesion"], ["axial"], 0)
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


def test_all_trained_are_one_file_and_before_that_there_is_none(tmp_path, caplog):
    source, target = small_cascade(), small_cascade()
    paths, merged = cascade_weights(tmp_path, planes=PLANES), tmp_path / "model.pt"
    caplog.set_level("INFO")
    for number, (name, path) in enumerate(write_weights(source, tmp_path).items()):
        content = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        merge_weights(paths, merged)
        assert f"model.pt is made once there is {path}" in caplog.messages[-1]
        assert cascade_weights(tmp_path, planes=PLANES) == paths
        (tmp_path / path).write_bytes(content)
        assert (number, not merged.exists()) == (NAMES.index(name), True)
    merge_weights(paths, merged)
    assert cascade_weights(tmp_path, ["liver"]) == str(merged)
    # A round is no part of what is in use.
    assert cascade_weights(tmp_path, number=1)["liver_axial"] == str(
        tmp_path / "liver" / "axial" / "rounds" / "1" / "model.pt"
    )
    WeightsCheckpointLoader(target, cascade_weights(tmp_path))(None)
    assert all(
        torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items()
    )


def test_a_file_of_all_stays_with_a_warning_where_one_network_is_missing(tmp_path, caplog):
    source = small_cascade()
    paths = write_weights(source, tmp_path)
    merge_weights(paths, tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "lesion" / "axial" / "model.pt").unlink()
    merge_weights(paths, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stays as it is, without what was trained since: there is no" in caplog.messages[0]


def test_one_file_of_all_is_enough_for_some_and_some_are_not_enough_for_all(tmp_path):
    source, some = small_cascade(), small_cascade(targets=["liver"], planes=["sagittal"])
    write_weights(source, tmp_path)
    torch.save(source.state_dict(), tmp_path / "all.pt")
    WeightsCheckpointLoader(some, tmp_path / "all.pt")(None)
    state = source.state_dict()
    assert set(some.state_dict()) < set(state)
    assert all(torch.equal(value, state[key]) for key, value in some.state_dict().items())

    torch.save(some.state_dict(), tmp_path / "some.pt")
    before = {key: value.clone() for key, value in state.items()}
    with pytest.raises(
        InputError, match=r"some\.pt does not fit CascadeNetworks .*: of its 20 keys 14 missing"
    ) as error:
        WeightsCheckpointLoader(source, tmp_path / "some.pt")(None)
    assert "leave out what they lack with planes and segmented_targets" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    torch.save({**state, "spleen_axial.0.weight": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(InputError, match=r"1 unexpected \(first: spleen_axial\.0\.weight\)"):
        WeightsCheckpointLoader(source, tmp_path / "more.pt")(None)


@pytest.mark.parametrize("targets", [["liver"], ["liver", "lesion"]])
def test_as_one_network_it_is_the_vote_of_all_slices_of_each_plane(targets):
    torch.manual_seed(0)
    network = CascadeNetworks(nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 3, padding=1), targets)
    for part in network.values():
        nn.init.normal_(part.weight)
    x = torch.randn(2, 1 + len(targets), 5, 7, 4)
    with torch.no_grad():
        logits = network(x)
        mean = {target: np.zeros((2, 5, 7, 4)) for target in targets}
        for channel, (target, p) in enumerate(mean.items(), start=1):
            see = x[:, [0, channel]]
            for k in range(4):
                p[:, :, :, k] += expit(network[f"{target}_axial"](see[..., k])[:, 0].numpy()) / 3
            for j in range(7):
                p[:, :, j] += expit(network[f"{target}_coronal"](see[:, :, :, j])[:, 0].numpy()) / 3
            for i in range(5):
                p[:, i] += expit(network[f"{target}_sagittal"](see[:, :, i])[:, 0].numpy()) / 3
    assert logits.shape == x.shape
    expected = (mean["liver"] > 0.5) * (1 + (mean["lesion"] > 0.5 if "lesion" in mean else 0))
    assert set(np.unique(expected)) == set(range(len(targets) + 1))
    assert np.array_equal(logits.argmax(1), expected)
    np.testing.assert_allclose(expit(-logits[:, 0]), mean["liver"], atol=1e-6)


def test_the_real_networks_can_be_exported():
    torch.manual_seed(0)
    networks = UNet(num_classes=1, first_filters=4), TuningNet(first_filters=4)
    network = CascadeNetworks(*networks, targets=["liver"], planes=["sagittal"]).eval()
    scripted = torch.jit.script(network)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for shape in ((1, 1, 1), (17, 33, 5)):
            x = torch.rand(1, 2, *shape)
            torch.testing.assert_close(scripted(x), network(x))
            assert network(x).shape == x.shape
        image = torch.rand(1, 1, 24, 24)
        torch.testing.assert_close(scripted.liver_localise(image), network["liver_localise"](image))


def test_missing_weights_are_refused(tmp_path):
    network = small_cascade(targets=["liver"], planes=["axial"])
    with pytest.raises(
        InputError,
        match=re.escape("found weights for liver_axial, expected liver_localise, liver_ax"),
    ):
        network.load_weights({"liver_axial": "model.pt"})
    with pytest.raises(InputError, match=r"liver/localise/model\.pt cannot be read \(No such file"):
        network.load_weights(cascade_weights(tmp_path, ["liver"], ["axial"]))
