"""A training of one convolution whose validation metrics are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from liverseg.handlers import Checkpoints, Overlays, RunSummary


def train(
    folder: Path,
    metrics: Sequence[float],
    cases: Sequence[np.ndarray],
    *handlers,
    resume: bool = False,
    start: float | None = None,
) -> None:
    """Train as bundles do, with `handlers` added; epoch N predicts the label moved by N along x.

    `start` is the metric of the weights it starts from, as epoch 0, if these are validated.
    """
    of_epochs = [start, *metrics]
    network = torch.nn.Conv3d(1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    volumes = [torch.from_numpy(case)[None] for case in cases]
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader([{"image": MetaTensor(volume.float()), "label": volume} for volume in volumes]),
        network,
        inferer=lambda inputs, network: torch.roll(inputs, evaluator.state.epoch, 2).to(
            torch.uint8
        ),
    )
    evaluator.add_event_handler(
        Events.COMPLETED,
        lambda engine: engine.state.metrics.update(val_mean_dice=of_epochs[engine.state.epoch]),
    )
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=len(metrics),
        train_data_loader=[
            {"image": torch.ones(1, 1, 2, 2, 2), "label": torch.ones(1, 1, 2, 2, 2)}
        ],
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        decollate=False,
        train_handlers=[
            ValidationHandler(1, evaluator),
            Checkpoints(
                folder,
                network,
                optimizer,
                scheduler,
                evaluator,
                [],
                resume=resume,
                validate_start=start is not None,
            ),
            RunSummary(folder, evaluator),
            Overlays(folder, evaluator),
            *handlers,
        ],
    )
    trainer.run()
