from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from liverseg.networks import UNet, WithPostprocessing
from liverseg.transforms import ErodeKeepLargestDilate


class Nearest(nn.Module):
    """A voxel is the class whose number its value is nearest to."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x):
        return torch.cat([-((x - c) ** 2) for c in range(self.num_classes)], 1)


def scans(num_classes, shape=(2, 1, 30, 26, 28)):
    generator = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), (0, 0, 3, 3, 3))
    edges = np.quantile(smooth, np.linspace(0, 1, num_classes + 1)[1:-1])
    labels = np.digitize(smooth, edges)
    specks = generator.random(shape) < 0.002
    return torch.tensor(np.where(specks, num_classes - 1 - labels, labels)).float()


def exported(module):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize(("num_classes", "radius"), [(2, 3), (2, 0), (3, 1), (3, 2.5)])
def test_the_exported_module_equals_the_transform_in_every_voxel(num_classes, radius):
    module = WithPostprocessing(Nearest(num_classes), radius)
    x = scans(num_classes)
    expected = torch.stack([ErodeKeepLargestDilate(radius)(scan.long()) for scan in x])
    assert expected.any()
    assert not torch.equal(expected, x.long())
    for of in (module, exported(module)):
        assert torch.equal(of(x), expected)
        assert not of(torch.zeros(1, 1, 9, 8, 7)).any()


def test_of_equal_components_the_first_stays_also_after_another_shape():
    module = exported(WithPostprocessing(Nearest(2), 1))
    x = torch.zeros(1, 1, 20, 24, 22)
    x[..., 2:10, 14:22, 2:10] = 1
    x[..., 11:19, 2:10, 12:20] = 1
    for scan in (x, x[..., :20], x.flip(2)):
        expected = ErodeKeepLargestDilate(1)(scan[0].long())[None]
        assert torch.equal(module(scan), expected)
        assert 0 < expected.sum() < scan.sum()


def test_a_batch_of_slices_is_a_volume():
    torch.manual_seed(0)
    network = UNet(num_classes=2, first_filters=4).eval()
    x = scans(2, (1, 1, 40, 36, 18))[0, 0].permute(2, 0, 1)[:, None] * 3
    with torch.no_grad():
        logits = network(x)
        # With random weights, half of the voxels.
        half = Threshold(float((logits[:, 1] - logits[:, 0]).median()))
        network_of_half = nn.Sequential(network, half)
        classes = network_of_half(x).argmax(1, keepdim=True)
        expected = ErodeKeepLargestDilate(1)(classes.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)
        found = exported(WithPostprocessing(network_of_half, 1))(x)
    assert expected.any()
    assert torch.equal(found, expected)


class Threshold(nn.Module):
    """Raise the logit of the background."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, logits):
        return torch.cat([logits[:, :1] + self.value, logits[:, 1:]], 1)
