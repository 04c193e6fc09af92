from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd

from liverseg.errors import InputError
from liverseg.transforms import CropToLabeld, foreground_box

AFFINE = torch.diag(torch.tensor([0.8, 2.0, 5.0, 1.0], dtype=torch.float64))


def make_item():
    torch.manual_seed(0)
    label = torch.zeros(1, 60, 40, 12, dtype=torch.uint8)
    label[:, 20:31, 10:16, 3:9] = 1
    label[:, 24:26, 12:14, 5] = 2
    affine = AFFINE.clone()
    affine[:3, 3] = torch.tensor([10.0, -20.0, 30.0])
    image = MetaTensor(torch.randn(1, 60, 40, 12), affine=affine)
    return {
        "image": image,
        "label": MetaTensor(label, affine=affine, meta={"filename_or_obj": "seg.nii"}),
        "id": 7,
    }


@pytest.mark.parametrize(
    ("margin_mm", "box"),
    [
        (0, (slice(20, 31), slice(10, 16), slice(3, 9))),
        (4, (slice(15, 36), slice(8, 18), slice(3, 9))),  # 5 voxels of 0.8 mm and 2 of 2 mm
        (4.1, (slice(14, 37), slice(7, 19), slice(3, 9))),
        (1000, (slice(0, 60), slice(0, 40), slice(3, 9))),
        (None, (slice(0, 60), slice(0, 40), slice(0, 12))),
    ],
)
def test_the_margin_is_in_mm_and_in_the_plane(margin_mm, box):
    item = make_item()
    found = foreground_box(item["label"].as_tensor()[0], AFFINE, margin_mm)
    sizes = item["label"].shape[1:]
    assert [s.indices(n)[:2] for s, n in zip(found, sizes, strict=True)] == [
        (s.start, s.stop) for s in box
    ]
    cropped = CropToLabeld(["image", "label"], "label", margin_mm)(item)
    assert torch.equal(cropped["image"].as_tensor(), item["image"].as_tensor()[:, *box])
    assert torch.equal(cropped["label"].as_tensor(), item["label"].as_tensor()[:, *box])
    assert cropped["id"] == 7


def test_without_a_margin_an_empty_label_has_no_box():
    assert foreground_box(torch.zeros(6, 4, 2), AFFINE, None) is None


def test_the_margin_follows_the_grid_and_not_the_patient():
    """A rotated affine has the same spacing along its axes."""
    c, s = np.cos(0.4), np.sin(0.4)
    rotation = torch.eye(4, dtype=torch.float64)
    rotation[:2, :2] = torch.tensor([[c, -s], [s, c]])
    label = make_item()["label"].as_tensor()[0]
    assert foreground_box(label, rotation @ AFFINE, 4) == foreground_box(label, AFFINE, 4)


def test_equals_monais_with_the_margin_in_voxels_and_keeps_the_place_in_space():
    item = make_item()
    expected = CropForegroundd(["image", "label"], "label", margin=[5, 2, 0], allow_smaller=True)(
        item
    )
    cropped = CropToLabeld(["image", "label"], "label", margin_mm=4)(item)
    for key in ("image", "label"):
        assert torch.equal(cropped[key].as_tensor(), expected[key].as_tensor())
        assert torch.allclose(cropped[key].affine, expected[key].affine)


def test_outside_the_foreground_there_is_nothing_to_see():
    """Labels, of whole numbers, stay as they are."""
    item = make_item()
    item["lesion"] = item["label"].clone()
    before = item["image"].clone()
    cropped = CropToLabeld(["image", "label", "lesion"], "label", 4, outside_value=-0.5)(item)
    plain = CropToLabeld(["image", "label"], "label", 4)(item)
    expected = np.where(plain["label"].numpy() > 0, plain["image"].numpy(), -0.5)
    assert (expected == -0.5).any()
    assert torch.equal(cropped["lesion"].as_tensor(), plain["label"].as_tensor())
    assert np.array_equal(cropped["image"].numpy(), expected)
    assert torch.equal(cropped["label"].as_tensor(), plain["label"].as_tensor())
    assert torch.equal(item["image"].as_tensor(), before.as_tensor())


def test_the_crop_does_not_keep_the_volume_in_memory():
    cropped = CropToLabeld(["image", "label"], "label")(make_item())
    for key in ("image", "label"):
        assert cropped[key].untyped_storage().nbytes() == cropped[key].nbytes


def test_a_label_without_foreground_is_named():
    item = make_item()
    item["label"].zero_()
    with pytest.raises(InputError, match=r"seg.nii: found no foreground"):
        CropToLabeld(["image", "label"], "label")(item)
