from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers.two_class_networks import Fixed, small_network

from liverseg.errors import InputError
from liverseg.handlers import WeightsCheckpointLoader
from liverseg.networks import LiverLesionNetworks, merge_weights


def test_the_largest_logit_is_the_decision_of_the_two_stages():
    generator = np.random.default_rng(0)
    liver, lesion = generator.normal(0, 3, (2, 2, 2, 40, 30))
    by_stages = np.where(liver.argmax(1) == 1, 1 + lesion.argmax(1), 0)
    logits = LiverLesionNetworks(Fixed(liver), Fixed(lesion))(torch.zeros(2, 1, 40, 30))
    assert logits.shape == (2, 3, 40, 30)
    assert set(np.unique(by_stages)) == {0, 1, 2}
    assert np.array_equal(logits.argmax(1), by_stages)


@pytest.mark.parametrize(
    ("liver", "lesion", "expected"), [(0, 5, 0), (-1e-3, 50, 0), (1e-3, 0, 1), (1e-3, -9, 1)]
)
def test_undecided_pixels_go_to_the_lower_class(liver, lesion, expected):
    networks = [Fixed(np.array([0.0, margin]).reshape(1, 2, 1, 1)) for margin in (liver, lesion)]
    assert int(LiverLesionNetworks(*networks)(torch.zeros(1, 1, 1, 1)).argmax(1)) == expected


def test_it_is_a_segmentation_network(check_segmentation_network):
    check_segmentation_network(
        lambda: LiverLesionNetworks(small_network(), small_network()), 1, 3, stride=1
    )


def test_each_network_loads_its_own_weights(tmp_path):
    torch.manual_seed(0)
    source, target = (
        LiverLesionNetworks(small_network(), small_network()).eval() for _ in range(2)
    )
    paths = {"lesion": tmp_path / "lesion.pt", "liver": tmp_path / "liver.pt"}
    for name, path in paths.items():
        torch.save(getattr(source, name).state_dict(), path)
    WeightsCheckpointLoader(target, paths)(None)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(target(x), source(x))


def test_weights_of_both_in_one_file_load_too(tmp_path):
    torch.manual_seed(0)
    source, target = (
        LiverLesionNetworks(small_network(), small_network()).eval() for _ in range(2)
    )
    paths = {"lesion": tmp_path / "lesion.pt", "liver": tmp_path / "liver.pt"}
    for name, path in paths.items():
        assert not (tmp_path / "model.pt").exists()
        torch.save(getattr(source, name).state_dict(), path)
        merge_weights(paths, tmp_path / "model.pt")
    WeightsCheckpointLoader(target, tmp_path / "model.pt")(None)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(target(x), source(x))


def test_weights_for_one_of_them_are_refused():
    with pytest.raises(
        InputError,
        match=re.escape("found weights for liver, expected liver, lesion: give one path"),
    ):
        LiverLesionNetworks(small_network(), small_network()).load_weights({"liver": "model.pt"})
