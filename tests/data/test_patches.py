"""Self-labelled patches against tiles cut by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from liverseg.data import cut_patches, find_patches
from liverseg.errors import InputError
from liverseg.inferers import predict_volumes
from liverseg.transforms import RandPatchesd

SIZE = (16, 24)


class Bright(nn.Module):
    """Target where image + prior is above a value of its own, which its weights hold."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return 100 * (x[:, :1] + x[:, 1:] - self.value)


def case(shape=SIZE, depth=3, seed=0) -> dict[str, MetaTensor]:
    """Noise whose label, half a volume, has nothing to do with what the network finds bright."""
    generator = np.random.default_rng(seed)
    label = np.zeros((*shape, depth), np.uint8)
    label[: shape[0] // 2, 2:] = 1
    arrays = {
        "image": generator.normal(0, 1, (*shape, depth)).astype(np.float32),
        "prior": generator.uniform(0, 1, (*shape, depth)).astype(np.float32),
        "label": label,
    }
    return {key: MetaTensor(array[None]) for key, array in arrays.items()}


@pytest.fixture
def label_in(tmp_path):
    """Label patches of volumes in a folder; returns the content of its files by name."""
    torch.save(Bright(0.8).state_dict(), tmp_path / "model.pt")

    def run(volumes, folder="patches", levels=(2, 4, 8), **options):
        predicted = predict_volumes(volumes, Bright(), tmp_path / "model.pt", amp=False)
        cut_patches(predicted, tmp_path / folder, SIZE, levels=levels, **options)
        return {path.stem: dict(np.load(path)) for path in (tmp_path / folder).glob("*.npz")}

    return run


def tiles(array, level):
    """Tiles of SIZE / level, slice by slice and row by row, after zeros below and on the right."""
    height, width = SIZE[0] // level, SIZE[1] // level
    array = np.pad(array, [(0, -array.shape[0] % height), (0, -array.shape[1] % width), (0, 0)])
    rows, columns, depth = array.shape[0] // height, array.shape[1] // width, array.shape[2]
    return (
        array.reshape(rows, height, columns, width, depth)
        .transpose(4, 0, 2, 1, 3)
        .reshape(-1, height, width)
    )


@pytest.mark.parametrize("shape", [(16, 24), (48, 48), (37, 25), (5, 7)])
def test_patches_are_the_tiles_with_enough_annotation_and_the_networks_labels(shape, label_in):
    volume = case(shape)
    found = label_in([volume], per_volume=10**6)["0"]
    image, prior, label = (volume[key].numpy()[0] for key in ("image", "prior", "label"))
    predicted = image + prior > 0.8
    assert (predicted != label).mean() > 0.3
    for level in (2, 4, 8):
        kept = tiles(label, level).mean((1, 2)) >= 0.3
        assert kept.any() or (level, shape) == (2, (5, 7))  # a slice smaller than the tile
        for key, array in (("image", image), ("prior", prior)):
            assert found[f"{key}_{level}"].dtype == np.float16
            assert np.array_equal(
                found[f"{key}_{level}"], tiles(array, level)[kept].astype(np.float16)
            )
        assert found[f"label_{level}"].dtype == np.uint8
        assert np.array_equal(found[f"label_{level}"], tiles(predicted, level)[kept])
    assert len(found) == 9


def test_the_record_counts_the_patches_of_all_volumes(label_in, tmp_path):
    found = label_in([case(), case((32, 24), seed=1)], min_area=0.4)
    record = json.loads((tmp_path / "patches" / "patches.json").read_text())
    assert record["min_area"] == 0.4
    counts = {
        level: sum(len(content[f"image_{level}"]) for content in found.values()) for level in "248"
    }
    assert record["patches"] == counts
    assert min(counts.values()) > 0


def test_an_area_of_exactly_the_threshold_counts(label_in):
    """Of 8 x 12 = 96 pixels, the three tiles have 48, 47 and 49 annotated."""
    volume = case()
    volume["label"].zero_()
    volume["label"][0, :8, :6, 0] = 1
    volume["label"][0, :8, 12:18, 1] = 1
    volume["label"][0, 0, 12, 1] = 0
    volume["label"][0, 8:, :6, 2] = 1
    volume["label"][0, 8, 8, 2] = 1
    expected = tiles(volume["image"].numpy()[0], 2)[[0, 10]]  # four tiles a slice
    found = label_in([volume], levels=[2], min_area=0.5)["0"]["image_2"]
    assert np.array_equal(found, expected.astype(np.float16))


def test_thirty_percent_in_float32_counts_as_thirty_percent(tmp_path):
    volume = case((20, 20), depth=1)
    volume["label"].zero_()
    volume["label"][0, :3, :10] = 1  # 30 of 10 x 10 pixels
    torch.save(Bright().state_dict(), tmp_path / "model.pt")
    predicted = list(predict_volumes([volume], Bright(), tmp_path / "model.pt"))
    with pytest.raises(InputError, match="found no patch"):
        cut_patches(predicted, tmp_path / "none", (20, 20), [2], min_area=0.301)
    cut_patches(predicted, tmp_path / "one", (20, 20), [2], min_area=0.3)
    assert len(np.load(tmp_path / "one" / "0.npz")["image_2"]) == 1


def test_nothing_annotated_is_no_patch_even_for_a_threshold_of_zero(label_in):
    volume = case()
    volume["label"].zero_()
    volume["label"][0, 3, 5, 1] = 1
    found = label_in([volume], min_area=0)["0"]
    assert [len(found[f"image_{level}"]) for level in (2, 4, 8)] == [1, 1, 1]


def test_the_limit_is_for_each_level_and_volume_and_the_seed_draws(label_in):
    volumes = [case(), case(seed=1)]
    every = label_in(volumes, "every", per_volume=1000)
    first, again, other = (
        label_in(volumes, f"{n}", per_volume=5, seed=seed) for n, seed in enumerate((0, 0, 1))
    )
    for number in ("0", "1"):
        kept = every[number]["image_4"]
        assert len(kept) > 5
        for level in (4, 8):
            chosen = [first[number][f"image_{level}"], other[number][f"image_{level}"]]
            assert [len(patches) for patches in chosen] == [5, 5]
            assert not np.array_equal(*chosen)
            assert np.array_equal(chosen[0], again[number][f"image_{level}"])
        # Patches stay in order, without repetition, and with their own label.
        places = [
            int(np.flatnonzero((kept == patch).all((1, 2)))[0])
            for patch in first[number]["image_4"]
        ]
        assert places == sorted(set(places))
        assert np.array_equal(first[number]["label_4"], every[number]["label_4"][places])


def test_a_volume_without_patches_has_no_file(label_in, tmp_path):
    empty = case()
    empty["label"].zero_()
    assert set(label_in([case(), empty, case(seed=2)])) == {"0", "2"}


def test_patches_that_are_there_stay(label_in, tmp_path):
    label_in([case()])
    before = {path.name: path.read_bytes() for path in (tmp_path / "patches").iterdir()}
    (tmp_path / "model.pt").unlink()
    label_in([case(seed=5), case(seed=6)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "patches").iterdir()} == before


def test_what_a_killed_run_left_is_made_again(label_in, tmp_path):
    found = label_in([case(), case(seed=1)])
    (tmp_path / "patches" / "patches.json").unlink()
    (tmp_path / "patches" / "1.npz").unlink()
    again = label_in([case(), case(seed=1)])
    assert all(
        np.array_equal(again[number][key], found[number][key])
        for number in found
        for key in found[number]
    )


def test_no_patch_at_all_and_sizes_that_do_not_fit_are_refused(label_in, tmp_path):
    half = case()
    half["label"][:, :, ::2] = 0
    with pytest.raises(
        InputError,
        match=r"patches: found no patch with 0\.99 of it annotated: lower min_patch_area",
    ):
        label_in([half], min_area=0.99, levels=[2])
    assert not (tmp_path / "patches" / "patches.json").exists()
    with pytest.raises(
        InputError, match=r"spatial_size is \[16, 24\], expected multiples of \[2, 3\]"
    ):
        label_in([case()], levels=[2, 3])


def test_files_are_found_in_the_order_of_the_volumes(tmp_path):
    for number in (10, 2, 0, 1):
        (tmp_path / f"{number}.npz").touch()
    (tmp_path / "patches.json").touch()
    assert find_patches(tmp_path) == [
        {"patches": str(tmp_path / f"{number}.npz")} for number in (0, 1, 2, 10)
    ]


def test_a_folder_without_patches_is_refused(tmp_path):
    with pytest.raises(
        InputError,
        match="gone: found no patches, expected those of a round: start rounds with the id",
    ):
        find_patches(tmp_path / "gone")


def drawn(
    label_in, tmp_path, num_samples, levels=(2, 4, 8), keys=("image", "prior", "label"), seed=0
):
    content = label_in([case()], levels=levels)["0"]
    transform = RandPatchesd(keys, num_samples, SIZE).set_random_state(seed)
    return content, transform({"patches": str(tmp_path / "patches" / "0.npz")})


def test_a_drawn_patch_lies_in_the_middle_of_an_empty_slice(label_in, tmp_path):
    content, samples = drawn(label_in, tmp_path, 60)
    assert len(samples) == 60
    seen = {level: set() for level in (2, 4, 8)}
    for sample in samples:
        assert {key: value.dtype for key, value in sample.items()} == {
            **{"image": torch.float32, "prior": torch.float32},
            "label": torch.uint8,
        }
        matches = []
        for level in (2, 4, 8):
            height, width = SIZE[0] // level, SIZE[1] // level
            rows = slice((SIZE[0] - height) // 2, (SIZE[0] + height) // 2)
            columns = slice((SIZE[1] - width) // 2, (SIZE[1] - width) // 2 + width)
            for number in range(len(content[f"image_{level}"])):
                expected = {}
                for key in sample:
                    expected[key] = np.zeros((1, *SIZE), np.float32)
                    expected[key][0, rows, columns] = content[f"{key}_{level}"][number]
                if all(np.array_equal(sample[key].numpy(), expected[key]) for key in sample):
                    matches.append((level, number))
        assert len(matches) == 1
        seen[matches[0][0]].add(matches[0][1])
    # Levels at equal odds, though the smallest patches are many times as many; with replacement
    # within them.
    assert all(len(numbers) > 3 for numbers in seen.values())


def test_levels_have_equal_odds_and_those_without_patches_none(label_in, tmp_path):
    _, samples = drawn(label_in, tmp_path, 300)
    # A patch of level 2 has noise in all its 96 pixels, of level 4 in 24, of level 8 in 6.
    sizes = [int((sample["image"] != 0).sum()) for sample in samples]
    assert all(70 < sizes.count(size) < 130 for size in (96, 24, 6))

    np.savez(tmp_path / "one.npz", image_2=np.zeros((0, 8, 12)), image_8=np.ones((1, 2, 3)))
    samples = RandPatchesd(["image"], 20, SIZE)({"patches": str(tmp_path / "one.npz")})
    assert {float(sample["image"].sum()) for sample in samples} == {6}


def test_draws_follow_the_random_state(label_in, tmp_path):
    one, same, other = (drawn(label_in, tmp_path, 20, seed=seed)[1] for seed in (0, 0, 1))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))
