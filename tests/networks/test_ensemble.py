"""An ensemble's probability is the mean of its members'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.networks import NetworkEnsemble, SimpleNet


def make_members() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {f"fold{number}": SimpleNet(num_classes=3).eval() for number in range(3)}


def test_members_vote_with_the_mean_of_their_probabilities():
    members = make_members()
    with torch.no_grad():
        # A member that is very sure has one vote, like the others.
        for parameter in members["fold2"].parameters():
            parameter.mul_(8)
        x = torch.randn(2, 1, 16, 12)
        found = NetworkEnsemble(members)(x)
        logits = [member(x).double().numpy() for member in members.values()]
    shares = [np.exp(score - score.max(1, keepdims=True)) for score in logits]
    shares = [share / share.sum(1, keepdims=True) for share in shares]
    assert max(share.max() for share in shares) > 0.99
    assert np.allclose(found.softmax(1).numpy(), np.mean(shares, axis=0), atol=1e-6)
    assert torch.isfinite(found).all()


def test_each_member_has_its_own_file(tmp_path):
    members = make_members()
    paths = {name: tmp_path / f"{name}.pt" for name in members}
    for name, member in members.items():
        torch.save(member.state_dict(), paths[name])
    torch.manual_seed(1)
    # As the config of a bundle does: one network for all.
    ensemble = NetworkEnsemble(dict.fromkeys(members, SimpleNet(num_classes=3)))
    ensemble.load_weights(paths)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(ensemble.eval()(x), NetworkEnsemble(members)(x))


def test_torchscript_takes_an_ensemble():
    ensemble = NetworkEnsemble(make_members()).eval()
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(ensemble)(x), ensemble(x), atol=1e-6)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(InputError, match="found none, expected the members"):
        NetworkEnsemble({})
