from __future__ import annotations

import pytest
import torch

from liverseg.devices import local_device, select_device
from liverseg.errors import InputError


def test_the_device():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match=r"device: cuda:63 was asked for, found \d+ CUDA devices"):
        select_device("cuda:63")
    for name in ("gpu", "cuda:x", "", 3.5):
        with pytest.raises(
            InputError, match=r"device: found .*, expected cpu, cuda or cuda:NUMBER: use one"
        ):
            select_device(name)


def test_the_device_of_one_of_several_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match=r"found no LOCAL_RANK .* start with `torchrun"):
        local_device()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert local_device() == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
