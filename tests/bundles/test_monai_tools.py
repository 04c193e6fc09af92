"""The bundles in other programs of MONAI than its command `run`."""

from __future__ import annotations

import pytest
import torch
from helpers.bundle_runs import BUNDLE, SHORT
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

CONVOLUTION = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}


def state_that_says(liver: bool) -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(2, 1, 1, 1), "bias": torch.tensor([0.0, 1.0 if liver else -1.0])}


@pytest.mark.filterwarnings("ignore:executing the bundle config")
@pytest.mark.parametrize("liver", [True, False])
def test_a_federated_client_evaluates_the_weights_that_it_is_sent(dataset, tmp_path, liver):
    torch.save(state_that_says(not liver), tmp_path / "model.pt")
    settings = {
        "spacing": SHORT["spacing"],
        "postprocessing": "@postprocessings#none",
        "network_def": CONVOLUTION,
    }
    folders = {
        "dataset_dir": str(dataset),
        "ckpt_dir": str(tmp_path),
        "output_dir": str(tmp_path / "eval"),
    }
    client = MonaiAlgo(str(BUNDLE), config_train_filename=None, eval_kwargs={**settings, **folders})
    client.initialize({ExtraItems.CLIENT_NAME: "hospital"})
    metrics = client.evaluate(ExchangeObject(weights=state_that_says(liver))).metrics
    # All is liver, of which there is some, or none is.
    assert (metrics["val_mean_dice"] > 0.02) == liver
