from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liverseg.errors import InputError
from liverseg.networks import TuningNet

PAPER = 38_059_141
PAPER_NOT_TRAINED = 3_072


@pytest.mark.parametrize(
    "options",
    [{}, {"in_channels": 3, "patches": "unshuffle", "patch_levels": [4], "use_prior": False}],
)
def test_is_a_segmentation_network(check_segmentation_network, options) -> None:
    in_channels = options.get("in_channels", 1)
    check_segmentation_network(
        lambda: TuningNet(first_filters=8, **options), in_channels + 1, 1, stride=16
    )


def convolution(inputs: int, outputs: int, size: int, bias: bool = True) -> int:
    return inputs * outputs * size**2 + (outputs if bias else 0)


def parameters_by_hand(in_channels: int, levels: tuple[int, ...], use_prior: bool) -> int:
    widths = [64, 128, 256, 512, 1024]
    total = 4 * convolution(in_channels, 16, 3) + 2 * convolution(64, 64, 3)
    for factor, below, width in zip((2, 4, 8, 16), widths, widths[1:], strict=False):
        if factor in levels:
            total += convolution(in_channels * factor**2, below, 1) + convolution(
                2 * below, width, 3
            )
        else:
            total += convolution(below, width, 3) + convolution(below, width, 1)  # and the shortcut
        total += convolution(width, width, 3)
    total += 2 * convolution(1024, 256, 1, bias=False) + 3 * convolution(1024, 256, 3, bias=False)
    total += convolution(5 * 256, 256, 1, bias=False) + 6 * 2 * 256
    below = 256
    for width in (512, 256, 128, 64):
        total += (
            convolution(below + width, width, 3)
            + convolution(width, width, 3)
            + convolution(width, 1, 1)
        )
        if use_prior:
            total += convolution(1, 64, 3) + convolution(64, 64, 3) + convolution(64, 1, 3)
        below = width
    return total


@pytest.mark.parametrize(
    ("in_channels", "levels", "use_prior"), [(1, (2, 4, 8), True), (3, (4,), True), (1, (), False)]
)
@pytest.mark.parametrize("patches", ["tiles", "unshuffle"])
def test_number_of_parameters(in_channels, levels, use_prior, patches) -> None:
    with torch.device("meta"):
        network = TuningNet(in_channels, patches=patches, patch_levels=levels, use_prior=use_prior)
    assert sum(p.numel() for p in network.parameters()) == parameters_by_hand(
        in_channels, levels, use_prior
    )


def test_the_default_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        network = TuningNet()
    not_trained = [
        b.shape
        for name, b in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
    assert not_trained == 12 * [(256,)]
    assert sum(shape.numel() for shape in not_trained) == PAPER_NOT_TRAINED
    total = sum(p.numel() for p in network.parameters()) + PAPER_NOT_TRAINED
    assert total == 38_057_992  # as the docstring says
    assert abs(total - PAPER) / PAPER < 0.01


def patches_by_hand(image: np.ndarray, f: int, kind: str) -> np.ndarray:
    """Channel by channel, as slices of the image (B, C, H, W)."""
    height, width = image.shape[2] // f, image.shape[3] // f
    channels = []
    for channel in range(image.shape[1]):
        for row in range(f):
            for column in range(f):
                if kind == "tiles":
                    rows = slice(row * height, (row + 1) * height)
                    columns = slice(column * width, (column + 1) * width)
                else:
                    rows, columns = slice(row, None, f), slice(column, None, f)
                channels.append(image[:, channel, rows, columns])
    return np.stack(channels, axis=1)


class ByHand:
    """The network of its docstring, operation by operation, with its parameters in their order."""

    def __init__(self, network: TuningNet, dropout: float) -> None:
        self.state = {name: list(module.parameters()) for name, module in network.named_children()}
        self.norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self.dropout = dropout

    def convolve(
        self, group: str, x: torch.Tensor, dilation: int = 1, bias: bool = True
    ) -> torch.Tensor:
        weight = self.state[group].pop(0)
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(
            x,
            weight,
            self.state[group].pop(0) if bias else None,
            padding=padding,
            dilation=dilation,
        )

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = self.state["aspp"].pop(0), self.state["aspp"].pop(0)
        m = self.norms.pop(0)
        z = (x - m.running_mean[:, None, None]) / (m.running_var[:, None, None] + 1e-5).sqrt()
        return (z * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    def residual(self, group: str, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.convolve(group, x).clamp(min=0), self.dropout)
        y = self.convolve(group, y)
        shortcut = x if x.shape[1] == y.shape[1] else self.convolve(group, x)
        return (y + shortcut).clamp(min=0)

    def __call__(
        self, x: torch.Tensor, patches: str, levels: tuple[int, ...]
    ) -> list[torch.Tensor]:
        image, prior = x[:, :-1], x[:, -1:]
        y = torch.cat([self.convolve("first", image, d) for d in (1, 2, 4, 8)], 1).clamp(min=0)
        skips = [self.residual("first_block", y)]
        for factor in (2, 4, 8, 16):
            y = F.max_pool2d(skips[-1], 2)
            if factor in levels:
                stacked = torch.from_numpy(patches_by_hand(image.numpy(), factor, patches))
                y = torch.cat([y, self.convolve("encoder", stacked).clamp(min=0)], 1)
            skips.append(self.residual("encoder", y))
        x = skips.pop()
        branches = [
            self.norm(self.convolve("aspp", x, rate, bias=False)) for rate in (1, 6, 12, 18)
        ]
        pooled = self.norm(self.convolve("aspp", x.mean((2, 3), keepdim=True), bias=False))
        y = self.norm(
            self.convolve(
                "aspp", torch.cat([*branches, pooled.expand_as(branches[0])], 1), bias=False
            )
        )
        sides = []
        for factor in (8, 4, 2, 1):
            box = F.max_pool2d(prior, factor)
            box = self.convolve("boxes", self.convolve("boxes", box).clamp(min=0)).clamp(min=0)
            box = 1 / (1 + torch.exp(-self.convolve("boxes", box)))
            up = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
            y = self.convolve("decoder", torch.cat([up, skips.pop() * box], 1)).clamp(min=0)
            y = self.convolve("decoder", F.dropout(y, self.dropout)).clamp(min=0)
            sides.append(self.convolve("outputs", y))
        assert not any(self.state.values())
        return sides[::-1]


@pytest.mark.parametrize("patches", ["tiles", "unshuffle"])
@pytest.mark.parametrize("levels", [(2, 4, 8), (4,), ()])
def test_equals_the_description_written_out(randomise_batch_norms, patches, levels) -> None:
    torch.manual_seed(0)
    network = TuningNet(2, first_filters=4, patches=patches, patch_levels=levels).double().eval()
    randomise_batch_norms(network)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = ByHand(network, dropout=0.0)(x, patches, levels)
        torch.testing.assert_close(network(x), expected[0])
        # With batch norm alone in eval mode, training shows the dropout and the side outputs.
        network.train().aspp.eval()
        torch.manual_seed(1)
        sides = network(x)
        torch.manual_seed(1)
        torch.testing.assert_close(sides, ByHand(network, dropout=0.2)(x, patches, levels))


def test_without_patches_is_without_levels() -> None:
    networks = []
    for options in ({"patches": None}, {"patch_levels": ()}):
        torch.manual_seed(0)
        networks.append(TuningNet(first_filters=4, **options).eval())
    x = torch.randn(1, 2, 32, 32)
    assert torch.equal(networks[0](x), networks[1](x))


def test_training_gives_each_level_at_its_own_resolution() -> None:
    torch.manual_seed(0)
    network = TuningNet(first_filters=4).train()
    sides = network(torch.randn(2, 2, 61, 67))
    assert [tuple(side.shape) for side in sides] == [
        (2, 1, 61, 67),
        (2, 1, 31, 34),
        (2, 1, 16, 17),
        (2, 1, 8, 9),
    ]


def test_a_batch_of_one_image_trains_and_leaves_finite_statistics() -> None:
    torch.manual_seed(0)
    network = TuningNet(first_filters=4).train()
    x = torch.randn(1, 2, 48, 48)
    network(x)
    pooled = network.aspp.image_pooling[2]
    assert torch.equal(pooled.running_var, torch.ones(256))
    network(torch.randn(2, 2, 48, 48))
    assert not torch.equal(pooled.running_var, torch.ones(256))
    assert network.eval()(x).isfinite().all()


def saturate(network: TuningNet, open_above: float) -> None:
    """Make each location map 0 where the prior is below ``open_above`` and 1 above it."""
    for box in network.boxes:
        for layer in box.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        first, second, last = (layer for layer in box.layers if isinstance(layer, nn.Conv2d))
        first.weight.data[0, 0, 1, 1] = 1
        second.weight.data[0, 0, 1, 1] = 1
        last.weight.data[0, 0, 1, 1] = 2000
        last.bias.data[0] = -2000 * open_above


def test_the_prior_gates_the_skips() -> None:
    """Where the location map is 0 the skips, and with them the fine image, have no effect."""
    torch.manual_seed(0)
    network = TuningNet(first_filters=4).eval()
    saturate(network, 0.5)
    network.aspp = Zeros()  # so that the skips are the only way from the image to the output
    image = torch.randn(1, 1, 128, 128)
    other = torch.randn(1, 1, 128, 128)
    prior = torch.zeros(1, 1, 128, 128)
    prior[..., 80:112, 16:64] = 1
    with torch.no_grad():
        closed = [network(torch.cat([x, torch.zeros_like(prior)], 1)) for x in (image, other)]
        opened = [network(torch.cat([x, prior], 1)) for x in (image, other)]
    assert torch.equal(*closed)
    changed = (opened[0] != opened[1])[0, 0]
    assert changed[80:112, 16:64].float().mean() > 0.9
    # Four levels of two 3x3 convolutions reach 2 · (8 + 4 + 2 + 1) pixels and the border of an
    # eighth.
    reach = torch.zeros_like(changed)
    reach[80 - 38 : 112 + 38, : 64 + 38] = True
    assert not (changed & ~reach).any()

    without = TuningNet(first_filters=4, use_prior=False).eval()
    without.load_state_dict(
        {k: v for k, v in network.state_dict().items() if "boxes" not in k}, strict=False
    )
    without.aspp = Zeros()
    x = torch.cat([image, torch.ones_like(prior)], 1)
    with torch.no_grad():
        torch.testing.assert_close(without(x), network(x))
        assert torch.equal(without(x), without(torch.cat([image, prior], 1)))


class Zeros(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 256, *x.shape[2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": "grid"}, "patches is 'grid'"),
        ({"patch_levels": [2, 16]}, r"patch_levels is \[2, 16\]"),
        ({"first_filters": 6}, "first_filters is 6"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        TuningNet(**options)
