from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Spacing

from liverseg.errors import InputError
from liverseg.transforms import ResampleVolumed, resize_volume, spaced_size

# Turned by 30 degrees about one axis, with another mirrored: 0.8, 1.5 and 4 mm.
C, S = np.cos(np.pi / 6), np.sin(np.pi / 6)
AFFINE = np.array(
    [
        [0.0, -1.5, 0.0, 20.0],
        [0.8 * C, 0.0, -4 * S, -7.0],
        [0.8 * S, 0.0, 4 * C, 30.0],
        [0, 0, 0, 1.0],
    ]
)


def waves(shape) -> MetaTensor:
    """Smooth along each axis, no two axes alike."""
    grids = np.meshgrid(*(np.linspace(0, np.pi, n) for n in shape), indexing="ij")
    image = np.sin(grids[0]) + np.cos(grids[1]) + np.sin(2 * grids[2])
    return MetaTensor(
        torch.tensor(image, dtype=torch.float32)[None], affine=torch.as_tensor(AFFINE)
    )


@pytest.mark.parametrize("spacing", [(2.0, 3.0, -1), (0.4, 1.0, 2.0), (1.0, 1.5, 6.0)])
def test_the_same_voxels_as_monais_spacing_over_the_extent(spacing):
    volume = waves((60, 48, 30))
    here = ResampleVolumed(keys="x", spacing=spacing)({"x": volume})["x"]
    there = Spacing(pixdim=spacing, scale_extent=True)(volume, output_spatial_shape=here.shape[1:])
    assert here.shape == there.shape
    corners = torch.tensor(
        [[0.0, 0, 0, 1], [*(n - 1 for n in here.shape[1:]), 1]], dtype=torch.float64
    ).T
    # MONAI keeps the spacing asked for, and the last voxel is where the size was rounded to.
    assert (
        float((here.affine @ corners - there.affine @ corners).abs().max())
        < max(np.abs(spacing)) / 2
    )
    assert float((here.as_tensor() - there.as_tensor()).abs().max()) < 0.05


def test_the_affine_says_where_the_voxels_are():
    """An image of its world coordinates is linear: resampled, it shows those of its new voxels."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (40, 30, 20)), indexing="ij"))
    for axis in range(3):
        world = np.einsum("a,ahwd->hwd", AFFINE[axis, :3], grid) + AFFINE[axis, 3]
        volume = MetaTensor(
            torch.tensor(world, dtype=torch.float32)[None], affine=torch.as_tensor(AFFINE)
        )
        found = ResampleVolumed(keys="x", spacing=(1.6, 3.1, 9.0))({"x": volume})["x"]
        index = np.stack(np.meshgrid(*(np.arange(n) for n in found.shape[1:]), indexing="ij"))
        affine = found.affine.numpy()
        expected = np.einsum("a,ahwd->hwd", affine[axis, :3], index) + affine[axis, 3]
        inner = (slice(2, -2),) * 3
        # The centre of the few voxels that are averaged is off by up to 0.06 voxels where the ratio
        # is not whole.
        assert np.abs(found[0].numpy()[inner] - expected[inner]).max() < 0.06 * 4


def test_linear_where_an_axis_grows_and_averaged_where_it_shrinks():
    volume = torch.randn(10, 12, 8)
    larger = F.interpolate(volume[None, None], (25, 13, 9), mode="trilinear", align_corners=False)[
        0, 0
    ]
    assert torch.allclose(resize_volume(volume, (25, 13, 9)), larger, atol=1e-5)
    for position in ((8, 8, 8), (9, 6, 5)):  # nothing falls between the voxels that are left
        spike = torch.zeros(16, 16, 16)
        spike[position] = 64
        assert float(resize_volume(spike, (4, 4, 4)).sum()) == pytest.approx(1, rel=0.2)


def test_labels_keep_their_values_and_dtype():
    label = MetaTensor(torch.randint(0, 8, (1, 21, 30, 18), dtype=torch.uint8), affine=torch.eye(4))
    found = ResampleVolumed(keys=["x"], spacing=(3, 3, 3), mode="nearest")({"x": label})["x"]
    assert found.dtype == torch.uint8
    assert torch.equal(found.as_tensor(), label.as_tensor()[:, 1::3, 1::3, 1::3])


def test_nothing_to_do_and_wrong_modes():
    volume = waves((6, 5, 4))
    assert ResampleVolumed(keys="x", spacing=(-1, -1, -1))({"x": volume})["x"] is volume
    assert spaced_size(
        (100, 30, 6), torch.diag(torch.tensor([0.75, 3.0, 5.0, 1.0])), (1.5, 1.5, -1)
    ) == (50, 60, 6)
    with pytest.raises(InputError, match="'cubic'"):
        ResampleVolumed(keys="x", spacing=(1, 1, 1), mode="cubic")
