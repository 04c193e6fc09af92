"""Two-class networks to merge, for the tests of networks that hold several."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Fixed(nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
