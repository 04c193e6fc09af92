"""Norms that stay as they were loaded while a network trains."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer

from liverseg.errors import InputError
from liverseg.handlers import WeightsCheckpointLoader


def train(path, start, freeze_norms):
    """The state dict after a few steps from `start`."""
    torch.save(start, path)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.InstanceNorm2d(2, affine=True)
    )
    data = [
        {"image": torch.randn(1, 4, 4) * 5 + 3, "label": torch.randn(2, 4, 4)} for _ in range(3)
    ]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(Dataset(data)),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=torch.nn.MSELoss(),
        decollate=False,
        train_handlers=[WeightsCheckpointLoader(network, path, freeze_norms=freeze_norms)],
    ).run()
    return network.state_dict()


def test_statistics_stay_and_weights_change(tmp_path):
    torch.manual_seed(0)
    start = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.InstanceNorm2d(2, affine=True)
    )
    start[1].running_mean.copy_(torch.tensor([0.5, -1]))
    before = {key: value.clone() for key, value in start.state_dict().items()}
    statistics = {key for key in before if "running" in key or "tracked" in key}
    assert len(statistics) == 3
    for freeze_norms in (True, False):
        after = train(tmp_path / "model.pt", before, freeze_norms)
        same = {key for key, value in before.items() if torch.equal(value, after[key])}
        assert statistics & same == (statistics if freeze_norms else set())
        # Norms have weights that learn, too.
        assert {"0.weight", "1.weight", "2.weight"} & same == set()


def test_without_weights_there_is_nothing_to_freeze():
    with pytest.raises(
        InputError,
        match=r"freeze_norms: found no weights to start from, expected .*--load_pretrain",
    ):
        WeightsCheckpointLoader(torch.nn.BatchNorm2d(1), None, freeze_norms=True)
