"""Postprocessing as the last layers of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WithPostprocessing(nn.Module):
    """A network and Algorithm 1 of Furtado 2021 in one module, which TorchScript exports.

    The postprocessing in the last layers of the network is the future work that the paper names.
    The output equals `ErodeKeepLargestDilate` of the network's classes in every voxel: a ball
    erodes and dilates as a convolution. PyTorch has no connected components, so the number of its
    first voxel spreads through each component by 3 × 3 × 3 maximum pooling, as often as the longest
    way in the mask has voxels. That needs a loop: `torch.jit.script` keeps it, a trace does not.
    Algorithm 2 is not there.

    ``torch.jit.script(WithPostprocessing(network)).save("model.ts")`` after the weights are loaded
    into `network`.

    Args:
        network: gives logits (B, C, H, W, D) of volumes, or (B, C, H, W) of slices.
        radius: of the ball, in voxels.
    """

    def __init__(self, network: nn.Module, radius: float = 3) -> None:
        super().__init__()
        self.network = network
        squares = torch.arange(-int(radius), int(radius) + 1) ** 2
        distances = squares[:, None, None] + squares[:, None] + squares
        ball = (distances <= radius**2).float()
        # TorchScript reads no annotation of the class that is text.
        self.ball: Tensor
        self.register_buffer("ball", ball[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes of a batch of volumes (B, 1, H, W, D), int64.

        Slices (B, C, H, W) are those of one volume along its last axis, in their order; they become
        (B, 1, H, W).
        """
        logits = self.network(x)
        labels = logits.argmax(1, keepdim=True)
        of_slices = labels.dim() == 4
        if of_slices:
            labels = labels.permute(1, 2, 3, 0).unsqueeze(0)
        found = torch.zeros_like(labels)
        for index in range(labels.shape[0]):
            volume = labels[index : index + 1]
            for label in range(1, logits.shape[1]):
                opened = self._dilate(self._largest(~self._dilate(volume != label)))
                found[index : index + 1] = found[index : index + 1].masked_fill(opened, label)
        return found[0].permute(3, 0, 1, 2) if of_slices else found

    def _dilate(self, mask: Tensor) -> Tensor:
        reach = self.ball.shape[-1] // 2
        return F.conv3d(mask.to(self.ball.dtype), self.ball, padding=reach) > 0.5

    def _largest(self, mask: Tensor) -> Tensor:
        """Return the largest 26-connected component; among equals the first in C order."""
        if not mask.any():
            return mask
        # float64 has a number for each voxel; the first voxel has the highest.
        count = mask.numel()
        numbers = torch.arange(count, 0, -1, dtype=torch.float64, device=mask.device)
        roots = numbers.view(mask.shape) * mask
        changed = True
        while changed:
            spread = F.max_pool3d(roots, kernel_size=3, stride=1, padding=1) * mask
            changed = not torch.equal(spread, roots)
            roots = spread
        sizes = torch.bincount(roots[mask].long())
        return roots == int(torch.nonzero(sizes == sizes.max()).max())
