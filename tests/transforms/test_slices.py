from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset

from liverseg.errors import InputError
from liverseg.transforms import RandSlicesd, stack_slices


def make_volume(depth=12, foreground=(4, 5, 6)):
    image = torch.arange(depth).float()[None, None, None].expand(1, 3, 5, depth).clone()
    label = torch.zeros(1, 3, 5, depth, dtype=torch.uint8)
    label[:, 1, 2, list(foreground)] = 1
    return {"image": image, "label": label, "name": "case"}


def draw(seed=0, **options):
    transform = RandSlicesd(keys=["image", "label"], label_key="label", **options)
    transform.set_random_state(seed)
    return transform


def test_image_and_label_come_from_the_same_slice():
    data = make_volume()
    for item in draw(num_samples=12)(data):
        position = int(item["image"][0, 0, 0])
        assert item["image"].shape == item["label"].shape == (1, 3, 5)
        assert torch.equal(item["label"], data["label"][..., position])
        assert item["name"] == "case"


@pytest.mark.parametrize(("ratio", "at_least"), [(0.5, 3), (1.0, 6)])
def test_the_share_with_foreground(ratio, at_least):
    for seed in range(20):
        items = draw(seed, num_samples=6, foreground_ratio=ratio)(
            make_volume(foreground=(2, 3, 4, 5, 6, 7))
        )
        assert sum(bool(item["label"].any()) for item in items) >= at_least


def test_uniform_draws_take_every_slice_once():
    items = draw(num_samples=12, foreground_ratio=0.0)(make_volume())
    assert sorted(int(item["image"][0, 0, 0]) for item in items) == list(range(12))


def test_no_slice_is_drawn_twice_while_others_are_left():
    for seed in range(20):
        # By two independent draws, 60 % of these would hold a slice twice: 1 - C(4, 2) / C(6, 2).
        items = draw(seed, num_samples=4)(make_volume(depth=6, foreground=(1, 2, 3)))
        assert len({int(item["image"][0, 0, 0]) for item in items}) == 4
    items = draw(num_samples=3, foreground_ratio=1.0)(make_volume(depth=3, foreground=(0, 1, 2)))
    assert sorted(int(item["image"][0, 0, 0]) for item in items) == [0, 1, 2]


def test_more_samples_than_slices_and_no_foreground():
    assert len(draw(num_samples=9)(make_volume(depth=2, foreground=()))) == 9


@pytest.mark.parametrize("num_slices", [1, 3, 5])
def test_neighbours_are_channels_and_repeat_at_the_ends(num_slices):
    volume = torch.arange(6).float().expand(2, 4, 6)
    stacked = stack_slices(volume, torch.arange(6), num_slices)
    assert stacked.shape == (6, num_slices, 2, 4)
    half = num_slices // 2
    for position in range(6):
        expected = [min(max(position + offset, 0), 5) for offset in range(-half, half + 1)]
        assert stacked[position, :, 0, 0].tolist() == expected
    item = draw(num_samples=1, num_slices=num_slices)(make_volume())[0]
    assert (item["image"].shape[0], item["label"].shape[0]) == (num_slices, 1)


def test_the_seed_decides_and_epochs_differ():
    positions = [
        [[int(item["image"][0, 0, 0]) for item in transform(make_volume())] for _ in range(3)]
        for transform in (draw(seed=1, num_samples=4), draw(seed=1, num_samples=4))
    ]
    assert positions[0] == positions[1]
    assert len({tuple(epoch) for epoch in positions[0]}) > 1


def test_a_loader_joins_the_slices_of_several_volumes():
    loader = DataLoader(Dataset([make_volume(), make_volume()], draw(num_samples=3)), batch_size=2)
    assert next(iter(loader))["image"].shape == (6, 1, 3, 5)


@pytest.mark.parametrize("options", [{"num_slices": 2}, {"foreground_ratio": 1.5}])
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError):
        draw(num_samples=1, **options)
