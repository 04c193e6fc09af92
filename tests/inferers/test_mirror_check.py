"""Scans that are mirrored from left to right, with networks whose answer is known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from liverseg.inferers import MirrorCheckInferer, VolumeInferer
from liverseg.transforms.clicks import CLICKS

LIVER_ONLY = {1: "liver"}
RIGHT = np.s_[24:36, 8:24, 20:45]  # 600 ml
LEFT = np.s_[8:20, 8:24, 20:45]
LARGE = np.s_[24:36, 4:28, 12:54]  # 1512 ml


class Looks(VolumeInferer):
    """Find what is above 0.2, but nothing in the left share of the volume; keep the inputs."""

    def __init__(self, blind: tuple[float, float] = (0, 0), value: int = 1) -> None:
        self.blind, self.value = blind, value
        self.seen: list[torch.Tensor] = []

    def segment(self, inputs, network, probabilities=False):
        assert network == "the network"
        self.seen.append(inputs.as_tensor().clone())
        found = (inputs > 0.2).to(torch.uint8) * self.value
        first, last = (int(share * inputs.shape[2]) for share in self.blind)
        found[:, :, first:last] = 0
        return found, found.as_tensor() * 255 if probabilities else None


def patient(liver=RIGHT, shape=(44, 32, 60)) -> MetaTensor:
    """Voxels of 5 mm; a body in the middle, and a liver in it, as a batch that was loaded."""
    x = torch.full(shape, -0.5)
    x[4:40, 4:28] = 0.0
    x[liver] = 0.4
    meta = {"filename_or_obj": ["scan.nii"], "flags": [""]}
    return MetaTensor(
        x[None, None], affine=torch.eye(4) * torch.tensor([5.0, 5.0, 5.0, 1.0]), meta=meta
    )


def turned(x: MetaTensor, axcodes: str) -> MetaTensor:
    image = nib.Nifti1Image(x[0, 0].numpy(), x.affine.numpy())
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
    )
    image = image.as_reoriented(turn)
    meta = {"filename_or_obj": ["scan.nii"], "flags": [""]}
    return MetaTensor(
        torch.tensor(image.get_fdata())[None, None], affine=torch.tensor(image.affine), meta=meta
    )


def look(x: MetaTensor, looks: Looks, names=LIVER_ONLY) -> tuple[torch.Tensor, dict[str, str], int]:
    """The labels, the flags and how often the inferer was asked."""
    found = MirrorCheckInferer(looks, names)(x, "the network").as_tensor()
    return (
        found,
        dict(line.split(": ", 1) for line in x.meta["flags"][0].splitlines()),
        len(looks.seen),
    )


def test_a_scan_in_whose_mirror_image_the_liver_is_has_a_flag():
    x = patient(LARGE)
    found, flags, asked = look(x, Looks(blind=(0, 0.5)))
    assert torch.equal(found, (x.as_tensor() > 0.2).to(torch.uint8)) and flags == {} and asked == 1
    mirrored, looks = patient(LEFT), Looks(blind=(0, 0.5))
    found, flags, asked = look(mirrored, looks)
    assert found.sum() == 0 and asked == 2
    assert torch.equal(looks.seen[1], mirrored.as_tensor().flip(2))
    assert list(flags) == ["mirrored"]
    assert "0 ml of liver are found in it and 600 ml in its mirror image" in flags["mirrored"]


@pytest.mark.parametrize("axcodes", ["LPS", "SAR", "PIL"])
@pytest.mark.parametrize(("liver", "expected"), [(RIGHT, []), (LEFT, ["mirrored"])])
def test_left_and_right_are_those_of_the_affine(axcodes, liver, expected):
    x = turned(patient(liver), axcodes)
    axis = next(axcodes.find(side) for side in "LR" if side in axcodes)

    class OnlyOnTheRight(VolumeInferer):
        def segment(self, inputs, network, probabilities=False):
            middle = inputs.shape[2 + axis] // 2
            start = middle if axcodes[axis] == "L" else 0
            left = torch.arange(start, start + middle)
            return (inputs > 0.2).to(torch.uint8).index_fill(2 + axis, left, 0), None

    MirrorCheckInferer(OnlyOnTheRight(), LIVER_ONLY)(x, "the network")
    assert [line.split(":")[0] for line in x.meta["flags"][0].splitlines()] == expected


def test_what_is_found_on_the_wrong_side_is_compared_with_the_mirror_image():
    """Of a liver of 600 ml, 200 ml or more are found on the left; mirrored, all on the right."""
    found, flags, asked = look(patient(LEFT), Looks(blind=(0.3, 0.5)))
    assert found.sum() / 8 > 200 and asked == 2 and list(flags) == ["mirrored"]


@pytest.mark.parametrize(
    ("liver", "asked"),
    [
        (LARGE, 1),
        (RIGHT, 2),
        (np.s_[28:36, 8:24, 20:30], 2),  # 160 ml on the right
        (np.s_[16:28, 8:24, 20:45], 2),  # in the middle
        (np.s_[8:16, 8:24, 20:36], 2),  # 256 ml on the left, in the mirror image on the right
    ],
)
def test_no_other_scan_has_that_flag(liver, asked):
    _, flags, count = look(patient(liver), Looks())
    assert flags == {} and count == asked


def test_what_is_not_looked_at_twice():
    """A slab without liver, an empty mask, a scan with clicks, and an array that is no scan."""
    clicked = patient(LEFT)
    clicked.meta[CLICKS] = torch.zeros(1, 1, 4)
    strange = patient(LEFT)
    strange.meta["flags"] = ["intensities: they are not those of a CT in HU"]
    blind = (0, 0.5)
    for x, looks, names in (
        (strange, Looks(blind), LIVER_ONLY),
        (patient(np.s_[:0], shape=(44, 32, 5)), Looks(), LIVER_ONLY),
        (patient(LEFT), Looks(blind), {1: "spleen"}),
        (clicked, Looks(blind), LIVER_ONLY),
    ):
        _, flags, asked = look(x, looks, names)
        assert "mirrored" not in flags and asked == 1


@pytest.mark.parametrize(("columns", "flagged"), [(7, False), (5, True)])
def test_of_slices_the_mirror_image_is_always_segmented_here_and_there(columns, flagged):
    """All that is found lies on the right; the liver is less than twice as large, or more."""
    x, looks = patient(np.s_[6:18, 8:24, 10:55]), Looks(blind=(0, 0.5))
    x[0, 0, 28 : 28 + columns, 8:24, 10:55] = 0.4
    found = MirrorCheckInferer(looks, LIVER_ONLY, slices_mm=20)(x, "the network").as_tensor()
    assert found.shape == x.shape and len(looks.seen) == 2
    assert torch.equal(looks.seen[1], x.as_tensor()[..., ::4].flip(2))
    assert x.meta["flags"][0].startswith("mirrored") == flagged


def test_pieces_apart_do_not_count():
    """The middle holds more than the mirror image's largest piece, less than all of them."""
    x = patient(np.s_[4:20, 4:28, 2:58:2])
    x[0, 0, 22:24, 8:24, 10:50] = 0.4
    _, flags, asked = look(x, Looks(blind=(0, 0.5)))
    assert flags == {} and asked == 2


def test_a_scan_without_clicks_is_looked_at_by_a_bundle_that_takes_some():
    """As `AddClicksd` writes none."""
    x = patient(LEFT)
    x.meta[CLICKS] = torch.zeros(1, 0, 4)
    _, flags, asked = look(x, Looks(blind=(0, 0.5)))
    assert list(flags) == ["mirrored"] and asked == 2


def test_another_inferer_may_look_at_the_mirror_image():
    x, first, second = patient(LEFT), Looks(blind=(0, 0.5)), Looks(blind=(0, 0.5))
    MirrorCheckInferer(first, LIVER_ONLY, mirror_inferer=second)(x, "the network")
    assert len(first.seen) == len(second.seen) == 1
    assert torch.equal(second.seen[0], x.as_tensor().flip(2)) and x.meta["flags"][0].startswith(
        "mirrored"
    )


def test_lesions_are_liver():
    _, flags, asked = look(patient(LARGE), Looks(value=2), {1: "liver", 2: "lesion"})
    assert flags == {} and asked == 1


def test_the_flag_is_that_of_one_scan_of_a_batch():
    x = torch.cat([patient(RIGHT).as_tensor(), patient(LEFT).as_tensor()])
    meta = {"filename_or_obj": ["a.nii", "b.nii"], "flags": ["", ""]}
    batch = MetaTensor(x, affine=patient().affine, meta=meta)
    MirrorCheckInferer(Looks(blind=(0, 0.5)), LIVER_ONLY)(batch, "the network")
    assert meta["flags"][0] == "" and batch.meta["flags"][1].startswith("mirrored")


def test_probabilities_are_those_of_the_scan_as_it_is():
    check = MirrorCheckInferer(Looks(blind=(0.3, 0.5)), LIVER_ONLY)
    labels, found = check.segment(patient(LEFT), "the network", probabilities=True)
    assert torch.equal(found, labels.as_tensor() * 255)
    assert check.segment(patient(LEFT), "the network")[1] is None
