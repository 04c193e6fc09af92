"""Each flag on a body with a drawn liver, stored in many ways, against NumPy and SciPy."""

from __future__ import annotations

import logging
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import dataset_trees as trees
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd, Orientationd
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.transforms import CheckPlausibilityd, FlagMaskd, LoadVolumed, SampleVoxelsd
from liverseg.transforms.load import flags_of
from liverseg.transforms.quality import check_hu, check_volume

# Voxels of 0.125 ml; from left to right, back to front, the feet to the head.
SHAPE, AFFINE = (
    (72, 56, 60),
    np.array([[5.0, 0, 0, -180], [0, 5, 0, -140], [0, 0, 5, 30], [0, 0, 0, 1]]),
)
LIVER = np.s_[44:64, 16:40, 20:45]  # 1500 ml
LIVER_ONLY = {1: "liver"}
ORIENTATIONS = ["RAS", "LPS", "LAS", "ASR", "PIL", "SRP"]
AIR, FAT, SOFT, LIVER_HU = -1000, -100, 40, 100


def body(side: int = 0) -> np.ndarray:
    """An ellipse of tissue in fat in air, HU."""
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot((x - SHAPE[0] / 2 + 0.5 + side) / 32, (y - SHAPE[1] / 2 + 0.5) / 25)
    plane = np.where(distance < 0.85, SOFT, np.where(distance < 1, FAT, AIR))
    return np.repeat(plane[..., None], SHAPE[2], 2).astype(np.int16)


def drawn(*boxes, value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        mask[box] = value
    return mask


def with_voxels(count: int) -> np.ndarray:
    """A mask of this many voxels around the liver's place, in one piece, not on the end slices."""
    order = np.zeros(SHAPE, bool)
    order[32:70, 2:54, 5:55] = True
    mask = np.zeros(SHAPE, np.uint8)
    mask.reshape(-1)[np.flatnonzero(order)[::-1][:count]] = 1
    return mask


def flags(
    path: str, image: np.ndarray, mask: np.ndarray, affine=AFFINE, modality="ct", names=LIVER_ONLY
):
    """Run a bundle's `inference.json` without the network, from the file to the final mask."""
    nib.save(nib.Nifti1Image(image, affine), path)
    load = Compose(
        [
            LoadVolumed("image"),
            CheckPlausibilityd("image", modality),
            SampleVoxelsd("image"),
            Orientationd("image", "RAS", labels=None),
        ]
    )
    batch = list_data_collate([load({"image": path})])
    # The network's answer is in the order that it sees.
    ornt = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt("RAS")
    )
    seen = nib.orientations.apply_orientation(mask, ornt)
    batch["pred"] = MetaTensor(torch.from_numpy(seen.copy())[None, None])
    (item,) = decollate_batch(batch)
    item = Invertd("pred", load, "image", nearest_interp=True)(item)
    found = FlagMaskd("pred", names, modality)(item)["pred"]
    assert np.array_equal(found.numpy()[0], mask)
    return flags_of(found)


@pytest.fixture
def evaluate(tmp_path):
    def evaluate(mask, image=None, **kwargs):
        image = np.where(mask > 0, LIVER_HU, body()).astype(np.int16) if image is None else image
        return flags(str(tmp_path / "scan.nii"), image, mask, **kwargs)

    return evaluate


@pytest.fixture
def judge_turned(tmp_path):
    """Stored along other axes, and taken obliquely."""

    def evaluate(mask, axcodes, degrees=0.0):
        image, affine = trees.turned(
            np.where(mask > 0, LIVER_HU, body()).astype(np.int16),
            trees.rotated(AFFINE, degrees),
            axcodes,
        )
        return flags(
            str(tmp_path / "scan.nii"), image, trees.turned(mask, AFFINE, axcodes)[0], affine
        )

    return evaluate


@pytest.mark.parametrize("degrees", [0, 30])
@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_plausible_liver_has_no_flag(judge_turned, axcodes, degrees):
    assert judge_turned(drawn(LIVER), axcodes, degrees) == {}


@pytest.mark.parametrize(
    ("voxels", "flagged"), [(0, True), (4799, True), (4800, False), (32000, False), (32001, True)]
)
def test_the_volume_is_exact_at_its_bounds(evaluate, voxels, flagged):
    mask = with_voxels(voxels)
    assert mask.sum() == voxels and not mask[..., [0, -1]].any()
    found = evaluate(mask)
    assert list(found) == (["volume"] if flagged else [])
    if flagged:
        shown = f"the liver has {voxels / 8:.0f} ml" if voxels else "no liver was found"
        assert found["volume"].startswith(f"{shown}, expected 600 to 4000 ml: check ")


def test_a_large_volume_is_flagged_where_the_liver_is_cut_off_a_small_one_is_not():
    assert check_volume(300, cut_off=True) is None and check_volume(300, cut_off=False) is not None
    assert check_volume(4001, cut_off=True) is not None


@pytest.mark.parametrize("degrees", [0, 30])
@pytest.mark.parametrize("axcodes", ORIENTATIONS)
@pytest.mark.parametrize(
    ("place", "ends"),
    [
        (np.s_[:8], "lowest"),
        (np.s_[-8:], "uppermost"),
        (np.s_[:], "lowest|uppermost"),
        (np.s_[1:-1], ""),
    ],
)
def test_a_liver_that_is_cut_off(judge_turned, axcodes, degrees, place, ends):
    found = judge_turned(drawn((*LIVER[:2], place)), axcodes, degrees)
    # Eight slices have 480 ml.
    assert list(found) == (["cut_off"] if ends else [])
    shown = re.findall("lowest|uppermost", found.get("cut_off", ""))
    assert sorted(shown) == sorted(filter(None, ends.split("|")))


@pytest.mark.parametrize("slice_mm", [1.25, 5])
@pytest.mark.parametrize("slices", [1, 4, 11])
@pytest.mark.parametrize(
    ("place", "end"), [(np.s_[:8], "lowest"), (np.s_[-8:], "uppermost"), (np.s_[6:-6], None)]
)
def test_slices_without_anything_that_were_added_are_no_slices_of_the_scan(
    evaluate, slice_mm, slices, place, end
):
    """As programs fill up what they turn or bring onto another scan's grid."""
    mask = drawn((*LIVER[:2], place))
    image = np.where(mask > 0, LIVER_HU, body())
    added = [(0, 0), (0, 0), (slices, slices)]
    image = np.pad(image, added, constant_values=-1024).astype(np.int16)
    found = evaluate(np.pad(mask, added), image, affine=AFFINE @ np.diag([1, 1, slice_mm / 5, 1]))
    if end is None:
        assert "cut_off" not in found
    elif slice_mm == 5 or slices > 1:  # Fewer than the slices of a sample may be overlooked.
        assert end in found["cut_off"]


def test_other_sides_of_the_scan_are_no_ends(evaluate):
    assert evaluate(drawn(np.s_[50:, :, 20:30])) == {}


@pytest.mark.parametrize(
    ("boxes", "flagged"),
    [
        ([LIVER, np.s_[10:20, 20:30, 30:34]], True),  # 50 ml
        ([LIVER, np.s_[10:20, 20:30, 30:33]], False),  # 37.5 ml
        ([LIVER, np.s_[34:44, 6:16, 10:20]], False),  # by a corner
        ([LIVER, np.s_[64:68, 16:40, 20:25]], False),
        ([np.s_[46:64, 16:40, 30:45], np.s_[46:64, 16:40, 20:29]], True),
    ],
)
def test_pieces_are_those_of_scipy(evaluate, boxes, flagged):
    mask = drawn(*boxes)
    pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes_ml = np.sort(np.bincount(pieces.ravel())[1:] / 8)[::-1]
    large = sizes_ml[sizes_ml >= 50]
    assert (len(large) > 1) == flagged
    found = evaluate(mask)
    assert list(found) == (["components"] if flagged else [])
    if flagged:
        sizes = ", ".join(f"{ml:.0f}" for ml in large)
        assert f"in {len(large)} pieces of at least 50 ml ({sizes} ml)" in found["components"]


@pytest.mark.parametrize(
    ("places", "pieces"),
    [(["low", "low"], 1), (["high", "high"], 1), (["low", "high"], 2), (["low", "inside"], 2)],
)
def test_lobes_that_the_scan_cuts_apart_are_one(evaluate, places, pieces):
    heights = {"low": np.s_[:20], "high": np.s_[-20:], "inside": np.s_[1:20]}
    columns = [np.s_[48:66, 16:40], np.s_[38:46, 16:40]]
    found = evaluate(
        drawn(*((*column, heights[place]) for column, place in zip(columns, places, strict=True)))
    )
    assert list(found) == (["components", "cut_off"] if pieces > 1 else ["cut_off"])


def test_fine_voxels_are_looked_at_in_blocks(tmp_path):
    """A gap of less than a block joins the parts on both sides; no volume is lost."""
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    mask = np.zeros((151, 133, 70), np.uint8)
    mask[80:140, 30:110, 10:65] = 1  # 396 ml
    mask[101] = 0
    image = np.where(mask, LIVER_HU, SOFT).astype(np.int16)
    image[:5], image[5:10] = AIR, FAT
    found = flags(str(tmp_path / "scan.nii"), image, mask, affine)
    assert list(found) == ["volume"]
    assert f"the liver has {mask.sum() * 1.5 / 1000:.0f} ml" in found["volume"]
    mask[98:106] = 0
    assert "components" in flags(str(tmp_path / "scan.nii"), image, mask, affine)


@pytest.mark.parametrize(
    ("hu", "flagged"), [(20, False), (19, True), (180, False), (181, True), (-40, True)]
)
def test_the_mean_hu_of_the_liver(evaluate, hu, flagged):
    mask = drawn(LIVER)
    found = evaluate(mask, np.where(mask > 0, hu, body()).astype(np.int16))
    assert list(found) == (["hu"] if flagged else [])
    if flagged:
        assert f"the mean in the liver is {hu} HU, expected 20 to 180 HU" in found["hu"]


def test_the_mean_hu_is_that_of_all_voxels(tmp_path):
    """Of a scan with fine voxels, of which one of many is looked at."""
    affine = np.diag([0.8, -0.8, 1.25, 1.0])
    generator = np.random.default_rng(0)
    image = np.full((150, 140, 90), AIR, np.int16)
    image[5:-5, 5:-5] = FAT
    image[10:-10, 10:-10] = SOFT
    mask = np.zeros(image.shape, np.uint8)
    mask[60:120, 30:120, 10:80] = 1
    x, y, z = np.indices(image.shape)
    noisy = -60 + 0.5 * x + 0.3 * y - 0.6 * z + generator.normal(0, 30, image.shape)
    image = np.where(mask, noisy, image).astype(np.int16)
    mean = image[mask > 0].mean()
    shown = flags(str(tmp_path / "scan.nii"), image, mask, affine)["hu"]
    assert abs(int(re.search(r"is (-?\d+) HU", shown)[1]) - mean) < 2 and mean < 19


def test_hu_are_of_ct():
    assert check_hu(20.0) is check_hu(180.0) is None
    assert check_hu(19.9) is not None and check_hu(180.1) is not None


@pytest.mark.parametrize("degrees", [0, 30])
@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_liver_on_the_left_is_that_of_a_mirrored_scan(judge_turned, axcodes, degrees):
    mask = drawn(LIVER)[::-1]
    found = judge_turned(mask, axcodes, degrees)
    assert list(found) == ["mirrored"]
    # The box of the liver lies symmetrically about a place 18 voxels beside the middle.
    middle = abs(np.argwhere(mask)[:, 0].mean() - (SHAPE[0] - 1) / 2) * 5
    assert f"lies {middle:.0f} mm to the left" in found["mirrored"]


def test_the_middle_of_the_body_is_no_wrong_side(evaluate, tmp_path):
    assert evaluate(drawn(np.s_[24:44, 16:40, 20:45])) == {}  # 7.5 mm to the left
    # The middle of the body, not of the picture: here it lies 50 mm to the left of that.
    mask = drawn(np.s_[28:48, 16:40, 20:45])
    image = np.where(mask, LIVER_HU, body(side=10)).astype(np.int16)
    assert evaluate(mask, image) == {}
    assert list(flags(str(tmp_path / "b.nii"), image[::-1], mask[::-1])) == ["mirrored"]


def test_lesions_are_liver_and_other_organs_are_none(evaluate):
    mask = drawn(np.s_[44:64, 16:36, 20:30])  # 500 ml
    assert list(evaluate(mask)) == ["volume"]
    mask[44:64, 16:36, 30:35] = 2  # 250 ml
    assert evaluate(mask, names={1: "liver", 2: "lesion"}) == {}
    assert list(evaluate(mask, names={1: "liver", 2: "spleen"})) == ["volume"]
    organs = np.where(mask > 0, 3, drawn(np.s_[5:15, 10:40, 20:40]))
    assert evaluate(organs.astype(np.uint8), names={1: "spleen", 3: "liver", 4: "stomach"}) == {}
    assert evaluate(mask, names={1: "spleen", 2: "pancreas"}) == {}


def mr(mask: np.ndarray, side: int = 0) -> np.ndarray:
    """Dark air, bright fat, and tissues that differ more than in CT."""
    image = np.select([mask > 0, body(side) == AIR, body(side) == FAT], [600, 4, 1500], 300).astype(
        np.int16
    )
    image[30:36, 8:14] = 900
    return image


def test_mr_has_flags_but_that_of_hu(evaluate):
    mask = drawn(LIVER)
    assert evaluate(mask, mr(mask), modality="mr") == {}
    left = np.ascontiguousarray(mask[::-1])
    assert list(evaluate(left, mr(left), modality="mr")) == ["mirrored"]
    beside = drawn(np.s_[20:40, 16:40, 20:45])
    assert evaluate(beside, mr(beside, side=14), modality="mr") == {}
    assert list(evaluate(drawn(np.s_[44:64, 16:40, :5]), mr(mask), modality="mr")) == ["cut_off"]


def test_what_is_found_in_the_scan_itself_is_a_flag_of_its_mask(evaluate):
    mask = drawn(LIVER)
    phantom = trees.phantom(0, "mr").image
    box = tuple(slice(0, n) for n in phantom.shape)
    image = np.full(SHAPE, phantom.min(), np.int16)
    image[box] = phantom
    assert "seem to be those of MR" in evaluate(mask, image)["modality"]
    assert "take a model for CT" in evaluate(mask, modality="mr")["modality"]
    assert "1024 too high" in evaluate(mask, body() + 1024)["intensities"]
    # A place in it says nothing of the side of a liver.
    assert "mirrored" in evaluate(mask[::-1]) and "mirrored" not in evaluate(
        mask[::-1], body()[::-1] + 1024
    )


def test_flags_are_logged(evaluate, caplog):
    evaluate(drawn(np.s_[44:64, 16:40, :5]))
    (logged,) = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert "scan.nii: the liver reaches the scan's lowest slice" in logged


def test_another_modality_is_refused():
    with pytest.raises(InputError, match="modality: found 'pet', expected one of ct, mr"):
        FlagMaskd("pred", LIVER_ONLY, "pet")


def test_an_odd_spacing_or_a_scan_of_one_slice_ends_nothing(tmp_path):
    mask = np.ones((6, 5, 1), np.uint8)
    image = np.where(mask, LIVER_HU, 0).astype(np.int16)
    found = flags(str(tmp_path / "metres.nii"), image, mask, np.diag([1e-3, 1e-3, 5e-3, 1]))
    assert found["volume"].startswith("the liver has 1.5e-10 ml")
    assert "cut_off" in flags(str(tmp_path / "scan.nii"), image, mask, np.diag([90.0, 90, 90, 1]))


def test_a_stray_voxel_at_the_end_is_no_liver_that_is_cut_off(evaluate):
    mask = np.zeros(SHAPE, np.uint8)
    mask[40, 30, 0] = 1
    found = evaluate(mask)
    assert "volume" in found and "cut_off" not in found


def test_a_negated_ct_is_not_flagged_as_1024_too_high(evaluate):
    image = body()
    image[30:34, 30:34] = 700  # bone
    assert "1024" not in evaluate(drawn(LIVER), -image)["intensities"]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("scan", "organs", "modality", "ends"),
    [
        ("ts_ct.nii.gz", "ts_ct_organs.nii.gz", "ct", "uppermost slice"),
        ("ts_ct_dicom", "ts_ct_dicom_organs.nii.gz", "ct", "lowest and uppermost slice"),
        ("ts_mr.nii.gz", "ts_mr_organs.nii.gz", "mr", "lowest and uppermost slice"),
    ],
)
def test_real_livers_are_flagged_where_the_scan_cuts_them_off(
    samples, scan, organs, modality, ends
):
    """By another program's masks."""
    keys = ["image", "label"]
    loaded = LoadVolumed(keys)({"image": str(samples / scan), "label": str(samples / organs)})
    loaded = Orientationd(keys, "RAS", labels=None)(CheckPlausibilityd("image", modality)(loaded))
    image = SampleVoxelsd("image")(loaded)["image"]
    for turn, expected in ((False, ["cut_off"]), (True, ["cut_off", "mirrored"])):
        label = loaded["label"].as_tensor().flip(1) if turn else loaded["label"].as_tensor()
        meta = {
            **image.meta,
            "sample": image.meta["sample"][::-1].copy() if turn else image.meta["sample"],
        }
        found = flags_of(
            FlagMaskd("pred", {5: "liver"}, modality)({"pred": MetaTensor(label, meta=meta)})[
                "pred"
            ]
        )
        assert sorted(found) == expected and ends in found["cut_off"]
