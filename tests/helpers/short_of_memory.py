"""A network that runs out of memory as CUDA does."""

from __future__ import annotations

import torch

from liverseg.networks import SimpleNet


class ShortOfMemory(SimpleNet):
    """Takes no more than `most` images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
        return super().forward(x)
