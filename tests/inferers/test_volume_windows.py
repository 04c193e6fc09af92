from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import ResampleToMatch

from liverseg.errors import InputError
from liverseg.inferers import VolumeWindowInferer, volume_windows
from liverseg.inferers.volume_windows import planes_between
from liverseg.transforms import ResampleVolumed

ROI = (16, 24, 16)


def small_network(num_classes=4):
    """Three layers that see beyond the window, so that overlapping windows disagree."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv3d(1, 6, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv3d(6, num_classes, 3, padding=1),
    ]
    return torch.nn.Sequential(*layers).eval()


def smooth_volume(shape, affine=None):
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    image = torch.tensor(1 - np.sqrt(sum(grid**2 for grid in grids)), dtype=torch.float32)[
        None, None
    ]
    return image if affine is None else MetaTensor(image, affine=torch.as_tensor(affine))


def threshold(x):
    return torch.cat([0.5 - x, x - 0.5], 1)


def monais_logits(volume, network, overlap=0.5):
    with torch.no_grad():
        return sliding_window_inference(volume, ROI, 4, network, overlap=overlap, mode="gaussian")


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize(
    "shape", [(40, 50, 61), (16, 24, 16), (16, 70, 17), (9, 30, 40), (30, 30, 5), (5, 6, 7)]
)
def test_equals_monais_sliding_window_and_argmax(shape, overlap):
    volume, network = torch.randn(1, 1, *shape), small_network()
    labels = VolumeWindowInferer(ROI, overlap=overlap, sw_batch_size=3, amp=False)(volume, network)
    assert labels.dtype == torch.uint8
    assert labels.shape == volume.shape
    logits = monais_logits(volume, network, overlap)
    assert torch.equal(labels, logits.argmax(1, keepdim=True).to(torch.uint8))


@pytest.mark.parametrize("shape", [(40, 50, 61), (9, 30, 40)])
def test_keeps_the_probabilities_of_monais_logits(shape):
    volume, network = torch.randn(2, 1, *shape), small_network()
    inferer = VolumeWindowInferer(ROI, amp=False)
    _, found = inferer.segment(volume, network, probabilities=True)
    expected = monais_logits(volume, network).softmax(1)[:, 1:]
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    assert (found - 255 * expected).abs().max() < 0.51


@pytest.fixture
def finished_planes(monkeypatch):
    """The blended logits that inferers hand on to be resampled, (planes, num_classes, h, w)."""
    seen = []

    def record(finished, source_depth, depth):
        return planes_between((seen.append(one) or one for one in finished), source_depth, depth)

    monkeypatch.setattr(volume_windows, "planes_between", record)
    return seen


@pytest.mark.parametrize("shape", [(40, 50, 61), (9, 30, 40), (30, 30, 5)])
def test_the_blended_logits_are_monais(shape, finished_planes):
    volume, network = torch.randn(1, 1, *shape), small_network()
    VolumeWindowInferer(ROI, sw_batch_size=2, amp=False)(volume, network)
    logits = torch.cat(finished_planes).permute(1, 2, 3, 0)[None]
    assert torch.allclose(logits, monais_logits(volume, network), atol=1e-5)


@pytest.mark.parametrize(
    "depths", [(12, 12), (12, 50), (50, 12), (7, 100), (100, 7), (1, 9), (9, 1)]
)
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_planes_are_interpolated_as_a_whole_volume_is(depths, parts):
    source = torch.randn(depths[0], 3, 4, 5)
    found = list(planes_between(iter(source.split(-(-depths[0] // parts))), *depths))
    assert [position for position, _ in found] == np.cumsum(
        [0, *(len(planes) for _, planes in found)]
    )[:-1].tolist()
    expected = F.interpolate(
        source.permute(1, 2, 3, 0)[None], (4, 5, depths[1]), mode="trilinear", align_corners=False
    )
    assert torch.allclose(
        torch.cat([planes for _, planes in found]).permute(1, 2, 3, 0)[None], expected, atol=1e-4
    )


@pytest.mark.parametrize(
    "spacing", [(3.0, 3.0, 3.0), (0.9, 1.1, 1.3), (-1, 3.0, -1), (2.0, -1, 4.0)]
)
def test_resampled_there_and_back_as_trilinear_logits_of_the_whole_volume(spacing):
    affine = np.diag([1.5, 0.8, 2.0, 1.0])
    volume, network = (
        MetaTensor(torch.randn(1, 1, 40, 50, 30), affine=torch.as_tensor(affine)),
        small_network(),
    )
    labels = VolumeWindowInferer(ROI, spacing=spacing, amp=False)(volume, network)
    seen = ResampleVolumed(keys="image", spacing=spacing)({"image": volume[0]})[
        "image"
    ].as_tensor()[None]
    logits = F.interpolate(
        monais_logits(seen, network), (40, 50, 30), mode="trilinear", align_corners=False
    )
    assert (labels != logits.argmax(1, keepdim=True)).float().mean() < 1e-4  # but for ties
    assert np.allclose(labels.affine, affine)


def test_the_mask_lies_where_monais_affine_resampling_puts_it():
    """MONAI resamples the logits from the grid that the network saw to the scan's oblique grid."""
    c, s = np.cos(0.4), np.sin(0.4)
    turned = np.array(
        [[-c, s, 0, 31.0], [s, c, 0, -17.0], [0, 0, 1, 400.0], [0, 0, 0, 1]]
    ) @ np.diag([1.5, 0.8, 2, 1])
    volume, network = smooth_volume((40, 50, 30), turned), small_network()
    labels = VolumeWindowInferer(ROI, spacing=(2.5, 2.5, 3.5), amp=False)(volume, network)
    seen = ResampleVolumed(keys="image", spacing=(2.5, 2.5, 3.5))({"image": volume[0]})["image"]
    logits = MetaTensor(monais_logits(seen.as_tensor()[None], network)[0], affine=seen.affine)
    there = ResampleToMatch(mode="bilinear", padding_mode="border")(logits, img_dst=volume[0])
    assert there.shape == (4, 40, 50, 30)
    assert len(labels.unique()) > 2
    assert float((labels[0] != there.argmax(0, keepdim=True)).as_tensor().float().mean()) < 1e-3


@pytest.mark.parametrize("mm", [0.5, 3.0])
def test_resampling_there_and_back_shifts_nothing(mm):
    volume = smooth_volume((60, 50, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    labels = VolumeWindowInferer(ROI, spacing=(mm, mm, mm), amp=False)(volume, threshold)
    expected = volume > 0.5
    centres = [np.argwhere(np.asarray(mask[0, 0])).mean(0) for mask in (labels, expected)]
    assert np.abs(centres[0] - centres[1]).max() < 0.05
    assert float((labels.bool() ^ expected).sum() / expected.sum()) < 0.08


def test_every_volume_of_a_batch_has_its_own_mask():
    volumes, network = torch.randn(2, 1, 20, 30, 33), small_network()
    inferer = VolumeWindowInferer(ROI, amp=False)
    assert torch.equal(
        inferer(volumes, network), torch.cat([inferer(volume[None], network) for volume in volumes])
    )


def test_bfloat16_gives_the_same_mask_but_for_a_few_edge_voxels():
    volume, network = smooth_volume((40, 40, 30)), small_network()
    exact = VolumeWindowInferer(ROI, amp=False)(volume, network)
    assert (
        float((exact != VolumeWindowInferer(ROI, amp=True)(volume, network)).float().mean()) < 0.01
    )


def test_the_logits_in_memory_do_not_grow_with_the_depth(finished_planes):
    """The planes that are handed on and the buffers behind them are those of one window's depth."""
    sizes = []
    for depth in (40, 200):
        finished_planes.clear()
        VolumeWindowInferer(ROI, amp=False)(torch.zeros(1, 1, 16, 24, depth), small_network())
        sizes.append(max(planes.untyped_storage().nbytes() for planes in finished_planes))
    assert sizes[0] == sizes[1] <= 4 * 4 * np.prod(ROI)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match=r"\(1, 8, 8, 5\)"):
        VolumeWindowInferer(ROI)(torch.rand(1, 8, 8, 5), threshold)
    with pytest.raises(InputError, match="without affine"):
        VolumeWindowInferer(ROI, spacing=(1, 1, 1))(torch.rand(1, 1, 8, 8, 5), threshold)
    with pytest.raises(InputError, match="overlap is 1"):
        VolumeWindowInferer(ROI, overlap=1)
