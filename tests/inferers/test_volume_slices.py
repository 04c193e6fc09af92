from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.transforms import Resize, Spacing

from liverseg.errors import InputError
from liverseg.inferers import AutocastInferer, VolumeSliceInferer


class Threshold(torch.nn.Module):
    """Class 1 where the middle channel is above 0.5; remembers the shapes it was given."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        middle = x[:, x.shape[1] // 2 : x.shape[1] // 2 + 1]
        return torch.cat([0.5 - middle, middle - 0.5], 1)


def small_network(in_channels=1, num_classes=3):
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(in_channels, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, num_classes, 1),
    ]
    return torch.nn.Sequential(*layers).eval()


def smooth_volume(shape, affine=None):
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    image = torch.tensor(1 - np.sqrt(sum(grid**2 for grid in grids)), dtype=torch.float32)[
        None, None
    ]
    return image if affine is None else MetaTensor(image, affine=torch.as_tensor(affine))


def test_equals_monais_slice_inferer_and_argmax():
    volume, network = torch.randn(2, 1, 19, 23, 7), small_network()
    with torch.no_grad():
        logits = SliceInferer(roi_size=(19, 23), spatial_dim=2)(volume, network)
    labels = VolumeSliceInferer(sw_batch_size=3, amp=False)(volume, network)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, logits.argmax(1, keepdim=True).to(torch.uint8))


@pytest.mark.parametrize("flips", [[], [[0], [1]]])
def test_keeps_the_probabilities_of_the_classes(flips):
    volume, network = torch.randn(2, 1, 19, 23, 7), small_network()
    inferer = VolumeSliceInferer(sw_batch_size=3, amp=False, flips=flips)
    labels, found = inferer.segment(volume, network, probabilities=True)
    slices = volume.permute(0, 4, 1, 2, 3)  # (B, D, 1, H, W)
    with torch.no_grad():
        passes = [
            torch.stack([network(item.flip(axes)).softmax(1).flip(axes) for item in slices])
            for axes in [[], *([2 + axis for axis in axes] for axes in flips)]
        ]
    expected = torch.stack(passes).mean(0).permute(0, 2, 3, 4, 1)  # (B, 3, H, W, D)
    assert found.dtype == torch.uint8 and found.shape == (2, 2, 19, 23, 7)
    assert (found - 255 * expected[:, 1:]).abs().max() < 0.51
    assert torch.equal(labels[:, 0], expected.argmax(1).to(torch.uint8))


def test_keeps_what_the_resampled_logits_say_on_the_grid_of_the_volume():
    network, affine = small_network(num_classes=2), np.diag([0.75, 3.0, 5.0, 1.0])
    inferer = VolumeSliceInferer(size=(16, 12), amp=False)
    volume = smooth_volume((30, 20, 6), affine)
    labels, found = inferer.segment(volume, network, probabilities=True)
    # Of two classes the one above a half.
    assert torch.equal(found[:, 0] > 127.5, labels.as_tensor()[:, 0] == 1)


@pytest.mark.parametrize("sw_batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(sw_batch_size):
    volume, network = torch.randn(1, 1, 16, 16, 5), small_network()
    expected = VolumeSliceInferer(sw_batch_size=5, amp=False)(volume, network)
    assert torch.equal(
        VolumeSliceInferer(sw_batch_size=sw_batch_size, amp=False)(volume, network), expected
    )


def test_the_network_sees_its_own_spacing_and_the_mask_has_the_grid_of_the_volume():
    network, affine = Threshold(), np.diag([0.75, 3.0, 5.0, 1.0])
    volume = smooth_volume((100, 30, 6), affine)
    labels = VolumeSliceInferer(spacing=(1.5, 1.5, -1), amp=False)(volume, network)
    assert network.shapes[0][2:] == (50, 60)
    assert labels.shape == volume.shape
    assert np.allclose(labels.affine, affine)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_resampling_there_and_back_shifts_nothing(factor):
    volume = smooth_volume((64, 64, 3), np.eye(4))
    labels = VolumeSliceInferer(spacing=(factor, factor), amp=False)(volume, Threshold())
    expected = volume > 0.5
    centres = [np.argwhere(np.asarray(mask[0, 0])).mean(0) for mask in (labels, expected)]
    assert np.abs(centres[0] - centres[1]).max() < 0.05
    assert float((labels.bool() ^ expected).sum() / expected.sum()) < 0.05


def test_training_and_inference_resample_alike():
    """The network must see at inference what `Spacingd` showed it in training."""
    volume = smooth_volume((60, 90, 4), np.diag([1.0, 0.8, 4.0, 1.0]))
    trained_on = Spacing(pixdim=(2.0, 1.6, -1))(volume[0])[0]
    seen = []

    def network(x):
        seen.append(x)
        return torch.cat([x, x], 1)

    VolumeSliceInferer(spacing=(2.0, 1.6), sw_batch_size=4, amp=False)(volume, network)
    here = seen[0][:, 0].permute(1, 2, 0)
    assert here.shape == (30, 45, 4)
    # Spacing keeps the first voxel's centre, the inferer the extent: half a voxel of the volume
    # apart.
    assert float((here - trained_on.as_tensor()[:30, :45]).abs().max()) < 0.03


def test_slices_are_resized_as_monai_resizes_them_in_training():
    volume, seen = torch.rand(1, 1, 60, 90, 4), []

    def network(x):
        seen.append(x)
        return torch.cat([x, x], 1)

    labels = VolumeSliceInferer(size=(24, 100), amp=False)(volume, network)
    trained_on = Resize(spatial_size=(24, 100, -1))(volume[0])[0]
    assert torch.allclose(seen[0][:, 0].permute(1, 2, 0), torch.as_tensor(trained_on), atol=1e-6)
    assert labels.shape == volume.shape


@pytest.mark.parametrize("size", [(32, 32), (96, 40)])
def test_resizing_there_and_back_shifts_nothing(size):
    volume = smooth_volume((64, 64, 3), np.diag([0.7, 1.9, 5.0, 1.0]))
    labels = VolumeSliceInferer(size=size, amp=False)(volume, Threshold())
    expected = volume > 0.5
    centres = [np.argwhere(np.asarray(mask[0, 0])).mean(0) for mask in (labels, expected)]
    assert np.abs(centres[0] - centres[1]).max() < 0.05
    assert float((labels.bool() ^ expected).sum() / expected.sum()) < 0.05


@pytest.mark.parametrize("flips", [[[0]], [[1]], [[0], [1], [0, 1]]])
def test_flips_average_the_probabilities_of_all_passes(flips):
    volume, network = torch.randn(1, 1, 17, 22, 5), small_network()
    labels = VolumeSliceInferer(flips=flips, sw_batch_size=2, amp=False)(volume, network)
    slices = volume[0].permute(3, 0, 1, 2)
    probabilities = np.zeros((5, 3, 17, 22))
    for axes in ([], *flips):
        flipped = np.flip(slices.numpy(), [2 + axis for axis in axes]).copy()
        with torch.no_grad():
            e = np.exp(network(torch.from_numpy(flipped)).double().numpy())
        probabilities += np.flip(e / e.sum(1, keepdims=True), [2 + axis for axis in axes])
    assert np.array_equal(labels[0, 0], probabilities.argmax(1).transpose(1, 2, 0))
    assert not torch.equal(labels, VolumeSliceInferer(amp=False)(volume, network))


def test_a_network_without_sense_of_direction_needs_no_flips():
    volume, network = smooth_volume((20, 24, 3), np.eye(4)), Threshold()
    plain = VolumeSliceInferer(size=(30, 30), amp=False)(volume, network)
    assert len(network.shapes) == 1
    assert torch.equal(
        VolumeSliceInferer(size=(30, 30), flips=[[0], [0, 1]], amp=False)(volume, network), plain
    )
    assert len(network.shapes) == 1 + 3


def test_neighbouring_slices_are_channels():
    network = Threshold()
    VolumeSliceInferer(num_slices=3, amp=False)(torch.rand(1, 1, 8, 8, 5), network)
    assert {shape[1] for shape in network.shapes} == {3}


def test_one_slice():
    labels = VolumeSliceInferer(amp=False)(torch.ones(1, 1, 8, 8, 1), Threshold())
    assert labels.shape == (1, 1, 8, 8, 1)
    assert labels.all()


def test_bfloat16_gives_the_same_mask_but_for_a_few_edge_voxels():
    volume, network = smooth_volume((64, 64, 8)), small_network()
    exact = VolumeSliceInferer(amp=False)(volume, network)
    assert float((exact != VolumeSliceInferer(amp=True)(volume, network)).float().mean()) < 0.01


def test_autocast_inferer_returns_float32_logits_close_to_the_network():
    network, x = small_network(), torch.randn(2, 1, 16, 16)
    logits = AutocastInferer(amp=True)(x, network)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, network(x), atol=0.05)
    assert torch.equal(AutocastInferer(amp=False)(x, network), network(x))


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match=r"\(1, 8, 8, 5\)"):
        VolumeSliceInferer()(torch.rand(1, 8, 8, 5), Threshold())
    with pytest.raises(InputError, match="without affine"):
        VolumeSliceInferer(spacing=(1, 1))(torch.rand(1, 1, 8, 8, 5), Threshold())
    with pytest.raises(InputError, match=r"spacing \[1.0, 1.0\] with size \[96, 96\]"):
        VolumeSliceInferer(spacing=(1, 1), size=(96, 96))
    with pytest.raises(InputError, match=r"flips is \[\[2\]\]"):
        VolumeSliceInferer(flips=[[2]])


@pytest.mark.parametrize("num_slices", [1, 3])
def test_volumes_on_one_grid_are_channels(num_slices):
    volume, seen = torch.rand(2, 3, 10, 12, 5), []
    network = small_network(3 * num_slices)

    def remember(x):
        seen.append(x)
        return network(x)

    labels = VolumeSliceInferer(num_slices=num_slices, sw_batch_size=5, amp=False)(volume, remember)
    assert labels.shape == (2, 1, 10, 12, 5)
    for index in range(2):
        neighbours = torch.arange(-(num_slices // 2), num_slices // 2 + 1)
        for k in range(5):
            # All slices of the first volume, then those of the next; beyond the ends the last slice
            # repeats.
            expected = (
                volume[index][..., (k + neighbours).clamp(0, 4)]
                .permute(0, 3, 1, 2)
                .reshape(-1, 10, 12)
            )
            assert torch.equal(seen[index][k], expected)
            with torch.no_grad():
                assert torch.equal(
                    labels[index, 0, ..., k].long(), network(expected[None]).argmax(1)[0]
                )


def test_the_logit_of_one_class_is_that_of_its_sigmoid():
    volume, network = torch.randn(1, 2, 16, 17, 5), small_network(2, 1)
    labels = VolumeSliceInferer(amp=False)(volume, network)
    with torch.no_grad():
        logits = network(volume[0].permute(3, 0, 1, 2))[:, 0].permute(1, 2, 0)
    assert 0.1 < float((logits > 0).float().mean()) < 0.9
    assert torch.equal(labels[0, 0].bool(), logits > 0)


@pytest.mark.parametrize("flips", [[], [[0]], [[1], [0, 1]]])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_probabilities_come_slab_by_slab_and_are_the_mean_of_the_passes(flips, num_classes):
    volume, network = torch.randn(1, 2, 17, 22, 5), small_network(2, num_classes)
    inferer = VolumeSliceInferer(flips=flips, sw_batch_size=2, amp=False)
    slabs = list(inferer.iterate_probabilities(volume, network))
    assert [positions.indices(5)[:2] for positions, _ in slabs] == [(0, 2), (2, 4), (4, 5)]
    found = torch.cat([probabilities for _, probabilities in slabs], -1)

    slices, expected = volume[0].permute(3, 0, 1, 2).numpy(), 0
    for axes in ([], *flips):
        flipped = np.flip(slices, [2 + axis for axis in axes])
        with torch.no_grad():
            logits = network(torch.from_numpy(flipped.copy())).double().numpy()
        if num_classes == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        e = np.exp(logits)
        expected = expected + np.flip(e / e.sum(1, keepdims=True), [2 + axis for axis in axes]) / (
            1 + len(flips)
        )
    assert found.shape == (max(2, num_classes), 17, 22, 5)
    np.testing.assert_allclose(found.numpy(), expected.transpose(1, 2, 3, 0), atol=1e-6)
    labels = inferer(volume, network)
    assert torch.equal(found.argmax(0), labels[0, 0].long())


def test_probabilities_are_on_the_grid_of_the_volume_and_gradients_are_as_they_were():
    volume, network = smooth_volume((40, 30, 4), np.diag([0.5, 1.0, 3.0, 1.0])), Threshold()
    inferer = VolumeSliceInferer(spacing=(1.0, 1.0), sw_batch_size=3, amp=False)
    for positions, probabilities in inferer.iterate_probabilities(volume, network):
        assert torch.is_grad_enabled()
        assert probabilities.shape == (2, 40, 30, len(range(*positions.indices(4))))
        torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))
    assert network.shapes[0][2:] == (20, 30)
