from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import block_reduce

from liverseg.outputs.segmentation import Segmentation
from liverseg.outputs.shown import MOST_VOXELS, shown_scan, shown_voxel

COLOURS = {1: "#ff0000", 2: "#00ff00"}


def segmentation(mask: np.ndarray, affine: np.ndarray) -> Segmentation:
    return Segmentation("scan.nii.gz", mask, affine, {1: "liver", 2: "lesion"})


def test_blocks_are_means_and_the_commonest_class():
    rng = np.random.default_rng(0)
    image = rng.normal(0, 100, (20, 12, 9)).astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    mask[4:13, 3:9, 2:7] = 2
    # 0.5 × 0.5 × 0.4 mm: the finest that is shown is 1 mm. x and y lead to the left and back.
    scan = shown_scan(segmentation(mask, np.diag([-0.5, -0.5, 0.4, 1])), image, COLOURS)
    assert scan.spacing_mm == pytest.approx((1, 1, 0.8))
    upright = image[::-1, ::-1]
    whole = block_reduce(upright[..., :8], (2, 2, 2), np.mean)
    np.testing.assert_allclose(scan.image[..., :4], whole, rtol=0, atol=1e-3)
    # The last slab has a single slice.
    last = block_reduce(upright[..., 8], (2, 2), np.mean)
    np.testing.assert_allclose(scan.image[..., 4], last, rtol=0, atol=1e-3)
    share = block_reduce(mask[::-1, ::-1, :8] == 2, (2, 2, 2), np.mean)
    np.testing.assert_array_equal(scan.mask[..., :4] == 2, share >= 0.5)


def test_a_voxel_that_holds_a_point_is_where_it_is_drawn():
    mask = np.zeros((31, 22, 40), np.uint8)
    cos, sin = np.cos(0.3), np.sin(0.3)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    affine = np.eye(4)
    # Axes lead to the feet, the left and the front.
    affine[:3, :3] = rotation[:, [2, 0, 1]] * (-0.4, -0.3, 2)
    affine[:3, 3] = 20, -50, 900
    rng = np.random.default_rng(0)
    for index in rng.integers(0, mask.shape, (20, 3)):
        mask[:] = 0
        # Of a block of 3 × 2 × 1 voxels, more than half.
        mask[tuple(slice(max(0, i - 2), i + 3) for i in index)] = 1
        scan = shown_scan(segmentation(mask, affine), np.zeros(mask.shape), COLOURS)
        point = affine @ (*index, 1)
        assert scan.mask[tuple(shown_voxel(scan, segmentation(mask, affine), point[:3]))] == 1


def test_a_whole_body_fits_the_page():
    # Zeros that take no memory.
    shape = (512, 512, 1000)
    image = np.broadcast_to(np.float32(0), shape)
    mask = np.broadcast_to(np.uint8(0), shape)
    scan = shown_scan(segmentation(mask, np.diag([0.8, 0.8, 1, 1])), image, COLOURS)
    assert 0.5 * MOST_VOXELS < scan.image.size <= MOST_VOXELS
    extent_mm = np.multiply(scan.image.shape, scan.spacing_mm)
    assert (np.abs(extent_mm - (409.6, 409.6, 1000)) < scan.spacing_mm).all()
