"""PreactivationUNet3D and the conversion of Keras' weights, against NumPy after the paper."""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.networks import PreactivationUNet3D
from liverseg.workbench.zoo.keras import read_keras_weights

FLAT, CUBE, POINT = (3, 3, 1), (3, 3, 3), (1, 1, 1)


def layers(valid: bool) -> list[tuple[tuple[int, ...], int, int]]:
    """Kernel, channels in and out of `conv3d_1`, `conv3d_2`, …"""
    found = []
    stages = [(FLAT, CUBE, 1, 20, 40), (FLAT, CUBE, 40, 40, 80), (FLAT, CUBE, 80, 80, 160)]
    stages += [(FLAT if valid else CUBE, CUBE, 160, 160, 160)]
    stages += [(CUBE, FLAT, 320, 160, 80), (CUBE, FLAT, 160, 80, 40), (CUBE, FLAT, 80, 40, 20)]
    for one, two, inputs, middle, outputs in stages:
        found += [(one, inputs, middle), (two, middle, outputs)]
        if valid and inputs != outputs:
            found.append((POINT, inputs, outputs))
    return [*found, (POINT, 20, 1)]


@pytest.fixture(scope="module", params=[False, True], ids=["liver", "lesion"])
def keras(request, tmp_path_factory):
    """A file as Keras writes it, with random weights, and what is in it by the layers' numbers."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("keras") / "weights.hdf5"
    numbers = []
    with h5py.File(path, "w") as file:
        for n, (kernel, inputs, outputs) in enumerate(layers(request.param), 1):
            scale = (inputs * np.prod(kernel)) ** -0.5
            weights = rng.normal(0, scale, (*kernel, inputs, outputs)).astype(np.float32)
            bias = rng.normal(0, 0.1, outputs).astype(np.float32)
            group = file.create_group(f"conv3d_{n}/conv3d_{n}")
            group["kernel:0"], group["bias:0"] = weights, bias
            numbers.append((weights.astype(np.float64), bias.astype(np.float64)))
        file["header/voxel_size"] = [3.0, 3.0, 3.0]
    return request.param, path, numbers


def convolve(x: np.ndarray, weights: np.ndarray, bias: np.ndarray, valid: bool) -> np.ndarray:
    """Of (H, W, D, C), one shift of the input after another."""
    kernel = weights.shape[:3]
    if not valid:
        x = np.pad(x, [(n // 2, n // 2) for n in kernel] + [(0, 0)])
    size = [length - n + 1 for length, n in zip(x.shape, kernel, strict=False)]
    total = np.zeros((*size, weights.shape[-1])) + bias
    for at in itertools.product(*map(range, kernel)):
        part = x[tuple(slice(n, n + length) for n, length in zip(at, size, strict=True))]
        total += part @ weights[at]
    return total


def activate(x: np.ndarray) -> np.ndarray:
    x = (x - x.mean((0, 1, 2))) / (x.std((0, 1, 2)) + 1e-7)
    return np.where(x > 0, x, 0.01 * x)


def centre(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    starts = [
        (length - wanted) // 2 for length, wanted in zip(x.shape, like.shape[:3], strict=False)
    ]
    return x[
        tuple(slice(start, start + n) for start, n in zip(starts, like.shape[:3], strict=True))
    ]


def pool(x: np.ndarray, n: int) -> np.ndarray:
    height, width, depth, channels = x.shape
    return x.reshape(height // n, n, width // n, n, depth // n, n, channels).max((1, 3, 5))


def upsample(x: np.ndarray, valid: bool) -> np.ndarray:
    for axis in range(3):
        x = np.repeat(x, 2 if valid else 3, axis)
    if valid:
        return x
    for axis in range(3):
        x = np.lib.stride_tricks.sliding_window_view(x, 3, axis).mean(-1)
    return x


def forward(x: np.ndarray, numbers: list, valid: bool) -> np.ndarray:
    """Logits of the foreground (h, w, d) for a window (H, W, D)."""
    left = iter(numbers)

    def stage(x: np.ndarray, first: bool = False) -> np.ndarray:
        y = convolve(x if first else activate(x), *next(left), valid)
        y = convolve(activate(y), *next(left), valid)
        if not valid:
            return y
        shortcut = centre(x, y)
        return y + (
            shortcut if x.shape[-1] == y.shape[-1] else convolve(shortcut, *next(left), True)
        )

    x, skips = x[..., None], []
    for level in range(3):
        x = stage(x, first=level == 0)
        skips.append(x)
        x = pool(x, 2 if valid else 3)
    x = stage(x)
    for skip in reversed(skips):
        x = upsample(x, valid)
        x = stage(np.concatenate([centre(skip, x), x], -1))
    return convolve(activate(x), *next(left), True)[..., 0]


def test_the_converted_network_gives_what_the_file_says(keras):
    valid, path, numbers = keras
    network = PreactivationUNet3D(valid=valid).eval()
    network.load_state_dict(read_keras_weights(path, valid))
    size = network.window([4, 4, 4] if valid else [28, 28, 28])
    x = np.random.default_rng(0).uniform(-0.5, 0.5, size)
    expected = forward(x, numbers, valid)
    with torch.no_grad():
        found = network(torch.from_numpy(x)[None, None].float(), padded=False)
    assert found.shape == (1, 2, *expected.shape)
    assert np.subtract(size, expected.shape).tolist() == network.context
    assert found[:, 0].abs().max() == 0
    assert expected.std() > 0.01
    np.testing.assert_allclose(found[0, 1].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("valid", "window", "logits", "parameters"),
    [
        (False, (189, 162, 162), (163, 136, 136), 3_874_961),
        (True, (180, 172, 86), (92, 84, 42), 3_464_221),
    ],
)
def test_windows_and_parameters_are_the_published_ones(valid, window, logits, parameters):
    network = PreactivationUNet3D(valid=valid)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert tuple(network.window(list(logits))) == window
    assert np.subtract(window, logits).tolist() == network.context


@pytest.mark.parametrize("valid", [False, True])
def test_padded_logits_are_those_of_a_window_with_zeros_around(valid):
    torch.manual_seed(0)
    network = PreactivationUNet3D(width=2, valid=valid).eval()
    x = torch.rand(1, 1, 30, 9, 5) - 0.5
    window, context = network.window(list(x.shape[2:])), network.context
    seen = torch.zeros(1, 1, *window)
    inside = tuple(slice(c // 2, c // 2 + n) for c, n in zip(context, x.shape[2:], strict=True))
    seen[(..., *inside)] = x
    with torch.no_grad():
        expected = network(seen, padded=False)[..., :30, :9, :5]
        torch.testing.assert_close(network(x), expected)


def test_another_file_is_refused(keras, tmp_path):
    valid, path, _ = keras
    with pytest.raises(InputError, match="it is another network"):
        read_keras_weights(path, not valid)
    half = tmp_path / "half.hdf5"
    half.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"half\.hdf5: .* expected the weights"):
        read_keras_weights(half, valid)
