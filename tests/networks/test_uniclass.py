from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers.two_class_networks import Fixed, small_network
from torch import nn

from liverseg.errors import InputError
from liverseg.handlers import WeightsCheckpointLoader
from liverseg.networks import UniclassNetworks

ORGANS = ("liver", "right kidney", "spleen")


def fixed_logits() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 3, (2, 2, 20, 30)) for name in ORGANS}


def convolutions(seed: int) -> UniclassNetworks:
    torch.manual_seed(seed)
    return UniclassNetworks({name: nn.Conv2d(1, 2, 3, padding=1) for name in ORGANS})


def test_each_organ_has_the_margin_of_its_own_network():
    own = fixed_logits()
    logits = UniclassNetworks({name: Fixed(own[name]) for name in ORGANS})(
        torch.zeros(2, 1, 20, 30)
    )
    assert logits.shape == (2, 4, 20, 30)
    assert logits.dtype == torch.float64
    assert (logits[:, 0] == 0).all()
    for index, name in enumerate(ORGANS, start=1):
        assert np.allclose(logits[:, index], own[name][:, 1] - own[name][:, 0])


@pytest.mark.parametrize("names", [ORGANS, ORGANS[::-1]])
def test_the_mask_is_the_organ_of_highest_probability_above_one_half(names):
    own = fixed_logits()
    exponentials = {name: np.exp(logits) for name, logits in own.items()}
    p = np.stack([exponentials[name][:, 1] / exponentials[name].sum(1) for name in names], 1)
    by_probability = np.where(p.max(1) > 0.5, p.argmax(1) + 1, 0)
    mask = UniclassNetworks({name: Fixed(own[name]) for name in names})(
        torch.zeros(2, 1, 20, 30)
    ).argmax(1)
    assert set(np.unique(by_probability)) == {0, 1, 2, 3}
    assert np.array_equal(mask, by_probability)


def test_it_is_a_segmentation_network(check_segmentation_network):
    check_segmentation_network(
        lambda: UniclassNetworks({name: small_network() for name in ORGANS}), 1, 4, stride=1
    )


def test_each_organ_loads_its_own_weights_in_any_order(tmp_path):
    source, target = convolutions(1).eval(), convolutions(2).eval()
    paths = {name: tmp_path / f"{name}.pt" for name in reversed(ORGANS)}
    for name, path in paths.items():
        torch.save(source.networks[name].state_dict(), path)
    WeightsCheckpointLoader(target, paths)(None)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("names", [(), ("liver", "spleen"), (*ORGANS, "pancreas")])
def test_weights_for_other_organs_are_refused(names):
    found = f"found weights for {', '.join(names) or 'no network'}, expected {', '.join(ORGANS)}"
    with pytest.raises(InputError, match=re.escape(found)):
        convolutions(0).load_weights(dict.fromkeys(names, "model.pt"))


def test_weights_by_organ_for_one_network_are_refused():
    with pytest.raises(InputError, match="found weights for liver, expected one path for Conv2d"):
        WeightsCheckpointLoader(nn.Conv2d(1, 2, 1), {"liver": "model.pt"})(None)


def test_no_network_is_refused():
    with pytest.raises(InputError, match="networks: found none"):
        UniclassNetworks({})
