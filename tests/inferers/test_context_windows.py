"""Tiles and the body's window, with networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from liverseg.inferers import BodyWindowInferer, ContextTileInferer
from liverseg.networks import PreactivationUNet3D


class Above(nn.Module):
    """Foreground is what is above 0.2, out of windows with a context of 6 voxels; keeps what it has seen."""

    context = (6, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def window(self, size):
        return tuple(length + 6 for length in size)

    def forward(self, x, padded=True):
        assert not padded
        self.seen.append(x)
        logits = (x[..., 3:-3, 3:-3, 3:-3] - 0.2) * 100
        return torch.cat([torch.zeros_like(logits), logits], 1)


def volume(shape, spacing_mm=1.0) -> MetaTensor:
    torch.manual_seed(0)
    return MetaTensor(torch.rand(1, 1, *shape) - 0.5, affine=torch.eye(4) * torch.tensor([*[spacing_mm] * 3, 1.0]))


@pytest.mark.parametrize("shape", [(20, 17, 9), (8, 8, 4), (3, 2, 1)])
@pytest.mark.parametrize("flips", [[], [[0], [1, 2]]])
def test_tiles_give_what_the_whole_would(shape, flips):
    x = volume(shape)
    found = ContextTileInferer((8, 8, 4), (1, 1, 1), flips=flips, amp=False)(x, Above())
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))


def test_tiles_see_their_context_and_0_beyond_the_volume():
    x, network = volume((16, 8, 4)), Above()
    ContextTileInferer((8, 8, 4), (1, 1, 1), amp=False)(x, network)
    expected = np.pad(x[0, 0].numpy(), 3)
    np.testing.assert_array_equal(network.seen[0][0, 0], expected[:14])
    np.testing.assert_array_equal(network.seen[1][0, 0], expected[8:22])


def test_a_lower_threshold_finds_more():
    x = volume((8, 8, 4))
    found = [
        ContextTileInferer((8, 8, 4), (1, 1, 1), threshold, amp=False)(x, Above()).sum() for threshold in (0.5, 0.01)
    ]
    assert found[0] < found[1]


def test_tiles_of_the_real_network_are_those_of_one_window():
    torch.manual_seed(1)
    network = PreactivationUNet3D(width=1, valid=True).eval()
    inferer = ContextTileInferer((12, 12, 8), (1, 1, 1), amp=False)
    inferer.keep_probabilities = True
    x = volume((12, 12, 8))
    inferer(x, network)
    with torch.no_grad():
        window = network.window((12, 12, 8))
        seen = torch.zeros(1, 1, *window)
        seen[..., 44:56, 44:56, 22:30] = x.as_tensor()
        expected = network(seen, padded=False).softmax(1)[0, 1, :12, :12, :8]
    np.testing.assert_allclose(inferer.kept[0, 0].numpy() / 255, expected.numpy(), atol=0.003)


def body(shape=(40, 30, 50)) -> MetaTensor:
    """Air, a body that is not in the middle, and a liver in its upper half."""
    x = torch.full(shape, -0.5)
    x[4:24, 6:26] = 0.0
    x[6:14, 8:20, 30:42] = 0.4
    return MetaTensor(x[None, None], affine=torch.eye(4) * torch.tensor([3.0, 3.0, 3.0, 1.0]))


def test_the_window_is_around_the_body_with_0_beyond_the_volume():
    x, network = body(), Above()
    found = BodyWindowInferer((30, 30, 60), least_mm=0, focus_mm=None, amp=False)(x, network)
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))
    (seen,) = network.seen
    assert seen.shape[2:] == (36, 36, 66)
    # 20 × 20 × 50 voxels of the body's box in the middle, and nothing of the air around it.
    expected = torch.zeros(36, 36, 66)
    expected[8:28, 8:28, 8:58] = x.as_tensor()[0, 0, 4:24, 6:26]
    assert torch.equal(seen[0, 0], expected)


def test_the_second_pass_looks_at_the_slices_around_the_liver():
    x, network = body(), Above()
    found = BodyWindowInferer((30, 30, 60), least_mm=0, focus_mm=60, amp=False)(x, network)
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))
    first, second = (int((seen[0, 0] != 0).any(0).any(0).sum()) for seen in network.seen)
    assert (first, second) == (12, 12)
    assert not torch.equal(network.seen[0], network.seen[1])


def test_few_slices_are_mirrored():
    x, network = body()[..., 30:36], Above()
    found = BodyWindowInferer((30, 30, 60), least_mm=48, focus_mm=None, amp=False)(x, network)
    assert found.shape == x.shape
    assert torch.equal(found.as_tensor(), (x.as_tensor() > 0.2).to(torch.uint8))
    assert int((network.seen[0][0, 0] != 0).any(0).any(0).sum()) == 16


def test_nothing_but_air_is_no_liver():
    x, network = MetaTensor(torch.full((1, 1, 8, 8, 8), -0.5), affine=torch.eye(4)), Above()
    assert BodyWindowInferer(amp=False)(x, network).sum() == 0
    assert not network.seen


class OnTheRight(Above):
    """Sees the liver only in the half of its window that is the right one of the body; elsewhere a share of it."""

    def __init__(self, elsewhere: float = 0.0) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    def forward(self, x, padded=True):
        logits = super().forward(x, padded)
        left = torch.arange(logits.shape[2]) < logits.shape[2] // 2
        unseen = left & (torch.arange(logits.shape[2]) >= self.elsewhere * logits.shape[2])
        logits[:, 1, unseen] = -100
        return logits


def patient(liver=np.s_[22:34, 8:24, 20:45], shape=(44, 32, 60)) -> MetaTensor:
    """Voxels of 5 mm; a body in the middle, and on its right a liver of 600 ml, as a batch that was loaded."""
    x = torch.full(shape, -0.5)
    x[4:40, 4:28] = 0.0
    x[liver] = 0.4
    meta = {"filename_or_obj": ["scan.nii"], "flags": [""]}
    return MetaTensor(x[None, None], affine=torch.eye(4) * torch.tensor([5.0, 5.0, 5.0, 1.0]), meta=meta)


def look(x: MetaTensor, network: Above, find_mirrored: bool = True) -> tuple[torch.Tensor, dict[str, str], int]:
    """The labels, the flags and how often the network was asked."""
    inferer = BodyWindowInferer(
        (40, 30, 60), (5, 5, 5), least_mm=0, focus_mm=None, amp=False, find_mirrored=find_mirrored
    )
    found = inferer(x, network).as_tensor()
    return found, dict(line.split(": ", 1) for line in x.meta["flags"][0].splitlines()), len(network.seen)


def test_a_scan_in_whose_mirror_image_the_liver_is_has_a_flag():
    x = patient(np.s_[24:36, 8:24, 20:45])
    volume_ml = float((x.as_tensor() > 0.2).sum()) / 8
    found, flags, asked = look(x, OnTheRight())
    assert torch.equal(found, (x.as_tensor() > 0.2).to(torch.uint8)) and flags == {} and asked == 1
    mirrored = patient(np.s_[8:20, 8:24, 20:45])
    found, flags, asked = look(mirrored, OnTheRight())
    assert found.sum() == 0 and asked == 2
    assert list(flags) == ["mirrored"]
    assert f"0 ml of liver are found in it and {volume_ml:.0f} ml in its mirror image" in flags["mirrored"]
    _, flags, asked = look(patient(np.s_[8:20, 8:24, 20:45]), OnTheRight(), find_mirrored=False)
    assert flags == {} and asked == 1


def test_what_is_found_on_the_wrong_side_is_compared_with_the_mirror_image():
    """Of a liver of 600 ml, 200 and more are found on the left; in the mirror image all of it, on the right."""
    x = patient(np.s_[8:20, 8:24, 20:45])
    found, flags, asked = look(x, OnTheRight(elsewhere=0.3))
    assert found.sum() / 8 > 200 and asked == 2 and list(flags) == ["mirrored"]


@pytest.mark.parametrize(
    ("liver", "asked"),
    [
        (np.s_[28:36, 8:24, 20:36], 1),  # 256 ml: a part of a liver
        (np.s_[28:36, 8:24, 20:30], 2),  # 160 ml on the right
        (np.s_[16:28, 8:24, 20:45], 2),  # in the middle
        (np.s_[8:16, 8:24, 20:36], 2),  # 256 ml on the left, in the mirror image on the right
    ],
)
def test_no_other_scan_has_that_flag(liver, asked):
    _, flags, count = look(patient(liver), Above())
    assert flags == {} and count == asked


def test_a_slab_that_holds_no_liver_is_not_looked_at_twice():
    _, flags, asked = look(patient(shape=(44, 32, 5), liver=np.s_[:0]), Above())
    assert flags == {} and asked == 1
