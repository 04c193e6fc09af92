from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import GeneralizedDiceLoss

from liverseg.losses import TwoClassLoss


@pytest.mark.parametrize(("w_type", "power"), [("uniform", 0), ("simple", 1), ("square", 2)])
def test_generalised_dice_of_one_logit_weighs_background_and_target(w_type, power):
    generator = np.random.default_rng(0)
    logits, target = generator.normal(0, 2, (2, 1, 9, 8)), generator.random((2, 1, 9, 8)) > 0.8
    p, g = 1 / (1 + np.exp(-logits)), target.astype(float)
    pairs = [(1 - p, 1 - g), (p, g)]
    weights = [1 / of_class.sum() ** power for _, of_class in pairs]
    both = sum(w * (a * b).sum() for w, (a, b) in zip(weights, pairs, strict=True))
    total = sum(w * (a + b).sum() for w, (a, b) in zip(weights, pairs, strict=True))
    loss = GeneralizedDiceLoss(w_type=w_type, to_onehot_y=True, softmax=True, batch=True)
    found = TwoClassLoss(loss)(torch.tensor(logits), torch.tensor(g))
    assert float(found) == pytest.approx(1 - (2 * both + 1e-5) / (total + 1e-5), rel=1e-6)
