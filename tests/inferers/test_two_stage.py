"""The two stages against the same rules in NumPy, with networks that threshold."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, Orientationd, Resized
from scipy.special import expit

from liverseg.errors import InputError
from liverseg.inferers import TwoStageInferer, VolumeSliceInferer
from liverseg.networks import LiverLesionNetworks
from liverseg.transforms import CropToLabeld, ErodeKeepLargestDilate, LoadVolumed

LIVER, LESION = 0.5, 0.8  # the thresholds: brighter is liver, still brighter is lesion


class Threshold(torch.nn.Module):
    """Class 1 where the image is above a value; remembers what it was given."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        if not torch.jit.is_scripting():
            self.seen.append(x.clone())
        return torch.cat([self.value - x, x - self.value], 1)


def networks() -> LiverLesionNetworks:
    return LiverLesionNetworks(Threshold(LIVER), Threshold(LESION))


def inferer(**options) -> TwoStageInferer:
    stages = {
        name: VolumeSliceInferer(amp=False, **options.pop(name, {})) for name in ("liver", "lesion")
    }
    return TwoStageInferer(**stages, **options)


def make_scan(shape=(50, 40, 9), seed=0) -> np.ndarray:
    """Draw a bright box with spots, a spot outside it and a smaller box, in noise: (H, W, D)."""
    generator = np.random.default_rng(seed)
    scan = generator.uniform(0, 0.4, shape)
    scan[10:30, 8:20, shape[2] // 4 : -(shape[2] // 4) or None] = 0.6
    scan[14:18, 10:13] = 0.9
    scan[40:44, 30:36] = 0.7
    return scan


def volume(*scans: np.ndarray, affine=None) -> MetaTensor:
    image = torch.tensor(np.stack(scans)[:, None], dtype=torch.float32)
    return MetaTensor(image, affine=torch.eye(4) if affine is None else torch.as_tensor(affine))


def test_without_cleaning_each_voxel_is_decided_by_its_own_intensity():
    scan = make_scan()
    labels = inferer()(volume(scan), networks())
    assert labels.dtype == torch.uint8
    assert labels.shape == (1, 1, *scan.shape)
    assert np.array_equal(labels[0, 0], (scan > LIVER) * (1 + (scan > LESION)))


def test_keeps_the_probability_of_lesions_in_the_liver_and_of_the_liver_without_them():
    scan = make_scan()
    scan[45, 35] = 0.9  # outside the box
    in_box = np.zeros(scan.shape, bool)
    in_box[10:30, 8:20, 2:-2] = True

    def cleaning(mask):
        return torch.as_tensor(in_box[None]).to(mask)

    one = inferer(liver_postprocessing=cleaning, margin_mm=0)
    _, found = one.segment(volume(scan, make_scan(seed=3)), networks(), probabilities=True)
    # The logits of two classes are a value and its negative.
    liver = expit(2 * (scan - LIVER))
    lesion = np.where(in_box, liver * expit(2 * (scan - LESION)), 0)
    assert found.shape == (2, 2, *scan.shape) and found.dtype == torch.uint8
    assert np.abs(found[0, 1] - 255 * lesion).max() < 1.1
    assert np.abs(found[0, 0] - 255 * (liver - lesion)).max() < 1.6
    assert (lesion[14:18, 10:13, 3] > 0.3).all()


def test_lesions_are_only_where_the_cleaned_liver_is():
    scan = make_scan()
    scan[7, 9], scan[45, 35] = 0.9, 0.9  # near the liver, in the box around it, and far from it
    expected = np.zeros(scan.shape, np.uint8)
    liver = np.zeros_like(scan, bool)
    liver[10:30, 8:20, 2:-2] = True
    labels = inferer(liver_postprocessing=lambda mask: torch.as_tensor(liver[None]).to(mask))(
        volume(scan), networks()
    )
    expected[liver] = 1
    expected[liver & (scan > LESION)] = 2
    assert (expected == 2).any()
    assert np.array_equal(labels[0, 0], expected)


def test_the_cleaning_gets_the_spacing_of_the_scan():
    scan = make_scan(shape=(60, 60, 30))
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    cleaning = ErodeKeepLargestDilate(radius_mm=3)
    mask = MetaTensor(
        torch.as_tensor(scan > LIVER)[None].to(torch.uint8), affine=torch.as_tensor(affine)
    )
    liver = np.asarray(cleaning(mask))[0]
    labels = inferer(liver_postprocessing=cleaning)(volume(scan, affine=affine), networks())
    assert 0 < liver.sum() < int(mask.sum())
    assert np.array_equal(labels[0, 0], liver * (1 + (scan > LESION)))


def test_the_lesion_network_sees_the_box_and_nothing_outside_the_liver():
    scan = make_scan()
    scan[scan == 0.7] = 0.3
    network = networks()
    inferer(margin_mm=6, outside_value=-1.0)(
        volume(scan, affine=np.diag([2.0, 3.0, 5.0, 1.0])), network
    )
    scan_box = scan[7:33, 6:22]  # 3 voxels of 2 mm, 2 of 3 mm
    expected = np.where(scan_box > LIVER, scan_box, -1)
    seen = torch.cat(network.lesion.seen)[:, 0].permute(1, 2, 0)
    assert np.allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize("outside_value", [None, 0.0])
def test_training_shows_the_lesion_network_what_it_sees_here(outside_value):
    scan, affine = make_scan(), np.diag([2.0, 3.0, 5.0, 1.0])
    image = volume(scan, affine=affine)
    network = networks()
    stages = {"lesion": {"size": (16, 12)}}
    inferer(margin_mm=6, outside_value=outside_value, **stages)(image, network)
    label = MetaTensor((image[0] > LIVER).to(torch.uint8).as_tensor(), affine=image.affine)
    in_training = Compose(
        [
            CropToLabeld(["image", "label"], "label", margin_mm=6, outside_value=outside_value),
            Resized(["image", "label"], spatial_size=[16, 12, -1], mode=["area", "nearest-exact"]),
        ]
    )({"image": image[0], "label": label})
    assert in_training["image"].shape == (1, 16, 12, scan.shape[2])
    seen = torch.cat(network.lesion.seen)[:, 0].permute(1, 2, 0)
    assert torch.allclose(seen, in_training["image"].as_tensor()[0], atol=1e-6)


def test_each_scan_of_a_batch_has_its_own_liver_and_one_without_is_empty(caplog):
    scans = [make_scan(seed=1), np.roll(make_scan(seed=2), 5, 0), np.zeros((50, 40, 9))]
    items = [
        MetaTensor(volume(scan)[0], meta={"filename_or_obj": f"{n}.nii"})
        for n, scan in enumerate(scans)
    ]
    with caplog.at_level(logging.WARNING):
        labels = inferer()(next(iter(DataLoader(Dataset(items), batch_size=3))), networks())
    for index, scan in enumerate(scans):
        assert np.array_equal(labels[index, 0], (scan > LIVER) * (1 + (scan > LESION)))
    assert [record.getMessage() for record in caplog.records] == [
        "2.nii: no liver found, so its mask is empty."
    ]


def test_scripted_networks_give_the_same_mask():
    image, network = volume(make_scan()), networks()
    assert torch.equal(inferer()(image, torch.jit.script(networks())), inferer()(image, network))


def test_what_the_merged_network_says_slice_by_slice_is_what_two_stages_say():
    image, network = volume(make_scan()), networks()
    merged = VolumeSliceInferer(amp=False)(image, network)
    assert torch.equal(inferer()(image, network), merged)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match=r"\(1, 8, 8, 5\)"):
        inferer()(MetaTensor(torch.rand(1, 8, 8, 5)), networks())
    with pytest.raises(InputError, match="without affine"):
        inferer()(torch.rand(1, 1, 8, 8, 5), networks())


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, 31], [s, c, 0, -17], [0, 0, 1, 400], [0, 0, 0, 1]])


SPACING = np.diag([1.5, 1.5, 5.0, 1.0])
GRIDS = {
    "oblique": (make_scan(), rotation(20) @ SPACING),
    "anisotropic": (make_scan()[:, ::2], np.diag([1.5, 3.0, 8.0, 1.0])),
    "left-posterior": (make_scan(), np.diag([-1.5, -1.5, 5.0, 1.0])),
    "sagittal": (make_scan().transpose(2, 0, 1), SPACING[:, [2, 0, 1, 3]]),
    "identity": (make_scan(), np.eye(4)),
    "one-slice": (make_scan()[..., 4:5], SPACING),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_mask_is_on_the_grid_of_the_file(name, tmp_path):
    scan, affine = GRIDS[name]
    nib.save(nib.Nifti1Image(scan.astype(np.float32), affine), tmp_path / "scan.nii.gz")
    preprocessing = Compose(
        [LoadVolumed("image"), Orientationd("image", axcodes="RAS", labels=None)]
    )
    batch = next(
        iter(DataLoader(Dataset([{"image": str(tmp_path / "scan.nii.gz")}], preprocessing)))
    )
    batch["pred"] = inferer(margin_mm=4, outside_value=0.0)(batch["image"], networks())
    invert = Invertd(
        "pred", transform=preprocessing, orig_keys="image", nearest_interp=True, to_tensor=True
    )
    mask = invert(decollate_batch(batch)[0])["pred"]
    assert np.allclose(mask.affine, affine, atol=1e-5)
    assert np.array_equal(mask[0], (scan > LIVER) * (1 + (scan > LESION)))
    assert set(np.unique(mask)) == {0, 1, 2}
