"""3-D U-Net whose convolutions follow norm and activation, for whole windows of a body."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liverseg.networks.blocks import centre, two_class_logits

LEVELS = 3


class PreactivationUNet3D(nn.Module):
    """Segment the liver, or lesions in it, with the networks of Tang et al. 2020.

    Three resolutions and the bottom, two convolutions each; every convolution but the first follows
    instance norm and leaky ReLU. Feature maps lose voxels at their border on the way, so the logits
    of a window are those of its centre. `context` says how many voxels are lost: what a voxel's
    logits are worked out from goes on beyond the window.

    The liver's network pads its convolutions with zeros, pools by 3 and upsamples linearly, which
    takes a voxel of either border: 3,874,961 parameters. With `valid` it is the lesions':
    convolutions without padding, pooled by 2, upsampled by repetition, the input of each stage
    added to its output: 3,464,221 parameters.

    Args:
        in_channels: channels of the volume.
        width: of the first convolution; all others grow with it.
        valid: the lesions' network.

    Attributes:
        context: voxels of a window along (H, W, D) that have no logits, both borders together.
    """

    def __init__(self, in_channels: int = 1, *, width: int = 20, valid: bool = False) -> None:
        super().__init__()
        self.scale = 2 if valid else 3
        self.valid = valid
        # Attributes, for TorchScript knows no constants of a module and no whole power.
        self.step = self.scale**LEVELS
        self.context = [88, 88, 44] if valid else [26, 26, 26]
        # What convolutions without padding take away before the last pooling is no
        # multiple of its step.
        taken = sum(self.scale**level for level in range(LEVELS)) if valid else 0
        self.taken = [4 * taken, 4 * taken, 2 * taken]
        down = [in_channels, *(width * 2**level for level in range(1, LEVELS + 1))]
        middle = [width * 2**level for level in range(LEVELS)]
        flat, cube = (3, 3, 1), (3, 3, 3)
        self.encoder = nn.ModuleList(
            _Stage(down[n], middle[n], down[n + 1], (flat, cube), valid, first=n == 0)
            for n in range(LEVELS)
        )
        self.bottom = _Stage(down[-1], down[-1], down[-1], (flat if valid else cube, cube), valid)
        self.decoder = nn.ModuleList(
            _Stage(2 * down[n + 1], down[n + 1], middle[n], (cube, flat), valid)
            for n in reversed(range(LEVELS))
        )
        self.classifier = nn.Conv3d(middle[0], 1, 1)

    def window(self, size: list[int]) -> list[int]:
        """Return the least window (H, W, D) that poolings divide and whose logits cover `size`."""
        found: list[int] = []
        for axis in range(3):
            needed = size[axis] + self.context[axis] - self.taken[axis]
            found.append(self.taken[axis] + max(-(-needed // self.step), 1) * self.step)
        return found

    def forward(self, x: Tensor, padded: bool = True) -> Tensor:
        """Map volumes (B, in_channels, H, W, D) to logits (B, 2, …) of background and foreground.

        Args:
            x: intensities from −0.5 to 0.5.
            padded: put zeros around `x` in place of its context: the logits have the size of `x`.
                Else they have that of `x` less `context`, and `x` that of a `window`.
        """
        size = list(x.shape[2:])
        if padded:
            pads: list[int] = []
            window = self.window(size)
            for axis in (2, 1, 0):
                before = self.context[axis] // 2
                pads += [before, window[axis] - size[axis] - before]
            x = F.pad(x, pads)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
            x = F.max_pool3d(x, self.scale)
        x = self.bottom(x)
        for stage in self.decoder:
            x = self._upsample(x)
            x = stage(torch.cat([centre(skips.pop(), x), x], dim=1))
        logits = self.classifier(_activate(x))
        if padded:
            logits = logits[..., : size[0], : size[1], : size[2]]
        return two_class_logits(logits)

    def _upsample(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._enlarge(x)
        # Autocast would make these float32, and with them all that they are put beside.
        with torch.autocast(x.device.type, enabled=False):
            return self._enlarge(x)

    def _enlarge(self, x: Tensor) -> Tensor:
        if self.valid:
            return F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        return F.interpolate(x, scale_factor=float(self.scale), mode="trilinear")[
            ..., 1:-1, 1:-1, 1:-1
        ]


class _Stage(nn.Module):
    """Two convolutions.

    With `valid` they take the border away, and the input is added to their output.
    """

    def __init__(
        self,
        in_channels: int,
        middle: int,
        out_channels: int,
        kernels: tuple[tuple[int, int, int], tuple[int, int, int]],
        valid: bool,
        first: bool = False,
    ) -> None:
        super().__init__()
        padding = 0 if valid else "same"
        self.first = first
        self.convolutions = nn.ModuleList(
            [
                nn.Conv3d(in_channels, middle, kernels[0], padding=padding),
                nn.Conv3d(middle, out_channels, kernels[1], padding=padding),
            ]
        )
        self.shortcut: nn.Module | None = None
        if valid:
            self.shortcut = (
                nn.Identity()
                if in_channels == out_channels
                else nn.Conv3d(in_channels, out_channels, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W, D) to (B, out_channels, …)."""
        y = self.convolutions[0](x if self.first else _activate(x))
        y = self.convolutions[1](_activate(y))
        return y if self.shortcut is None else y + self.shortcut(centre(x, y))


def _activate(x: Tensor, slope: float = 0.01, channels: int = 8) -> Tensor:
    """Return norm and leaky ReLU.

    By a few channels, as float32 beside bfloat16 would be the most that memory holds.
    """
    return torch.cat(
        [F.leaky_relu_(_norm(part), slope) for part in x.split(channels, dim=1)], dim=1
    )


def _norm(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x.float(), (2, 3, 4), correction=0, keepdim=True)
    return ((x - mean) / (deviation + 1e-7)).to(x.dtype)
