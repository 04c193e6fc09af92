from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import correlate

from liverseg.networks import SimpleNet


def test_is_a_segmentation_network(check_segmentation_network) -> None:
    check_segmentation_network(lambda: SimpleNet(3, 5), 3, 5, stride=2)


def test_layers_and_parameters(count_operations) -> None:
    network = SimpleNet()
    assert count_operations(network) == {
        "conv2d": 3,
        "relu": 2,
        "max_pool2d": 1,
        "conv_transpose2d": 1,
    }
    expected = (9 * 1 + 1) * 64 + (9 * 64 + 1) * 64 + (16 * 64 + 1) * 64 + (64 + 1) * 2
    assert sum(p.numel() for p in network.parameters()) == expected


def test_equals_the_description_written_out() -> None:
    torch.manual_seed(0)
    network = SimpleNet(num_classes=3).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    (k1, b1), (k2, b2), (k3, b3), (k4, b4) = np.split(
        np.array([p.detach().numpy() for p in network.parameters()], dtype=object), 4
    )
    x = np.random.default_rng(0).normal(size=(1, 8, 10))

    def convolve(image: np.ndarray, kernels: np.ndarray, bias: np.ndarray) -> np.ndarray:
        maps = [
            sum(correlate(c, k, mode="constant") for c, k in zip(image, ks, strict=True))
            for ks in kernels
        ]
        return np.stack(maps) + bias[:, None, None]

    y = np.maximum(convolve(x, k1, b1), 0)
    y = y.reshape(64, 4, 2, 5, 2).max(axis=(2, 4))
    y = np.maximum(convolve(y, k2, b2), 0)
    # The transpose of a convolution of stride 2 that pads by 1: each value spreads its kernel over
    # 4x4 output pixels.
    up = np.zeros((64, 10, 12))
    for row in range(4):
        for column in range(5):
            up[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += np.tensordot(
                y[:, row, column], k3, axes=1
            )
    up = up[:, 1:-1, 1:-1] + b3[:, None, None]
    expected = np.einsum("oc,chw->ohw", k4[:, :, 0, 0], up) + b4[:, None, None]
    with torch.no_grad():
        np.testing.assert_allclose(
            network(torch.from_numpy(x)[None])[0].numpy(), expected, rtol=1e-9, atol=1e-9
        )
