from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from liverseg.metrics import VoxelAccuracy, confusion_matrix, pooled_metrics


def test_it_is_the_global_accuracy_of_all_voxels_of_a_validation():
    generator = np.random.default_rng(0)
    cases = [
        [generator.integers(0, 3, shape).astype(np.uint8) for _ in range(2)]
        for shape in ((4, 5, 6), (7, 3, 2), (2, 2, 9))
    ]
    engine = Engine(
        lambda _, pair: [
            {
                key: torch.as_tensor(label_map)[None]
                for key, label_map in zip(("pred", "label"), pair, strict=True)
            }
        ]
    )
    VoxelAccuracy().attach(engine, "val_accuracy")
    for _ in range(2):  # a second validation starts anew
        engine.run(cases)
    matrices = [confusion_matrix(pred, label, 3) for pred, label in cases]
    expected = pooled_metrics(np.sum(matrices, axis=0), ["background", "liver", "spleen"])
    assert engine.state.metrics["val_accuracy"] == pytest.approx(expected["global_accuracy"])
