from __future__ import annotations

import pytest
import torch
from torch import nn

from liverseg.errors import InputError
from liverseg.networks import load_weights


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_loads_a_state_dict_and_a_checkpoint(tmp_path, wrap):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(wrap(source.state_dict()), tmp_path / "model.pt")
    assert load_weights(target, tmp_path / "model.pt") is target
    assert same(source, target)


def test_weights_of_another_network_name_the_keys_and_change_nothing(tmp_path):
    torch.save({"weight": torch.zeros(5, 3), "extra": torch.zeros(1)}, tmp_path / "model.pt")
    network = nn.Linear(3, 2)
    before = nn.Linear(3, 2)
    before.load_state_dict(network.state_dict())
    with pytest.raises(InputError) as error:
        load_weights(network, tmp_path / "model.pt")
    for words in (
        "model.pt",
        "1 keys are missing (first: bias)",
        "unexpected (first: extra)",
        "(5, 3) instead of (2, 3)",
    ):
        assert words in str(error.value)
    assert same(network, before)


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there are no weights"),
        (lambda path: path.write_bytes(b"no weights"), "not readable as weights"),
        (lambda path: path.write_bytes(b""), "not readable as weights"),
        (lambda path: torch.save(Code(), path), "not readable as weights"),
        (lambda path: torch.save([1, 2], path), "holds no state dict"),
        (lambda path: torch.save({"a": "text"}, path), "holds no state dict"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path, capsys, write, words):
    write(tmp_path / "model.pt")
    with pytest.raises(InputError, match=rf"model\.pt: .*{words}") as error:
        load_weights(nn.Linear(1, 1), tmp_path / "model.pt")
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(100, 100).state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="not readable as weights"):
        load_weights(nn.Linear(100, 100), path)
