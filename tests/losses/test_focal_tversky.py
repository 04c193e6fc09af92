from __future__ import annotations

import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.losses import FocalTverskyLoss


@pytest.mark.parametrize("gamma", [1.0, 4 / 3, 3.0])
def test_three_classes_in_3d_equal_the_formula_in_float64(gamma):
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), (2, 4, 5, 6)).transpose(0, 4, 1, 2, 3)
    g = np.eye(3)[generator.integers(0, 3, (2, 4, 5, 6))].transpose(0, 4, 1, 2, 3)
    axes = (0, 2, 3, 4)
    tp, fp, fn = (p * g).sum(axes), (p * (1 - g)).sum(axes), ((1 - p) * g).sum(axes)
    index = (tp + 1e-5) / (tp + 0.3 * fp + 0.7 * fn + 1e-5)
    loss = FocalTverskyLoss(gamma=gamma, alpha=0.3, beta=0.7, batch=True)
    found = loss(torch.tensor(p), torch.tensor(g))
    assert float(found) == pytest.approx(((1 - index) ** (1 / gamma)).mean(), abs=1e-9)


def test_a_perfect_prediction_has_a_finite_gradient():
    g = torch.eye(2)[torch.zeros(1, 3, 3, dtype=torch.long)].movedim(-1, 1).double()
    p = g.clone().requires_grad_()
    FocalTverskyLoss(batch=True)(p, g).backward()
    assert torch.isfinite(p.grad).all()


def test_gamma_below_one_is_refused():
    with pytest.raises(InputError, match=r"gamma is 0\.5"):
        FocalTverskyLoss(gamma=0.5)
