"""The cascade against the same rules in NumPy, with networks that threshold what they see."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, KeepLargestConnectedComponent, Orientationd, Spacingd
from scipy.ndimage import correlate
from scipy.special import expit
from torch import nn
from torch.profiler import ProfilerActivity, profile

from liverseg.errors import InputError
from liverseg.inferers import CascadeInferer, Localiser, VolumeSliceInferer
from liverseg.transforms import LoadVolumed

PLANES = ("axial", "coronal", "sagittal")
# The axes of (x, y, z) that are rows, columns and slices of a plane, and the orientation that
# training gives them.
AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
AXCODES = {"axial": "RAS", "coronal": "RSA", "sagittal": "ASR"}
LIVER, LESION = 0.5, 0.8  # the thresholds: brighter is liver, still brighter is lesion

# Oblique, 0.8 x 1 x 3 mm.
C, S = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[C, -S, 0, 31], [S, C, 0, -17], [0, 0, 1, 400], [0, 0, 0, 1]]) @ np.diag(
    [0.8, 1.0, 3.0, 1.0]
)


class Threshold(nn.Module):
    """Find where one channel, 0 the image and 1 the prior, is above a value; keep the inputs."""

    def __init__(self, value: float, channel: int = 0) -> None:
        super().__init__()
        self.value, self.channel = value, channel
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x.clone())
        return 100 * (x[:, self.channel : self.channel + 1] - self.value)

    def volume(self) -> torch.Tensor:
        """What it saw, (C, rows, columns, slices)."""
        return torch.cat(self.seen).permute(1, 2, 3, 0)


def networks(**changed: nn.Module) -> nn.ModuleDict:
    names = [(target, part) for target in ("liver", "lesion") for part in ("localise", *PLANES)]
    values = {"liver": LIVER, "lesion": LESION}
    return nn.ModuleDict(
        {f"{target}_{part}": Threshold(values[target]) for target, part in names} | changed
    )


def inferer(
    crop_margin_mm=1000.0, prior="none", box_margin_mm=5.0, spacing_z=-1.0, **options
) -> CascadeInferer:
    """Without resampling; the liver's crop is the whole volume unless a margin says otherwise."""

    def localise(margin):
        def of(network):
            inferer = VolumeSliceInferer(amp=False)
            options = {"prior": prior, "box_margin_mm": box_margin_mm, "crop_margin_mm": margin}
            return Localiser(network, inferer, **options)

        return of

    spacings = {plane: (-1.0, -1.0 if plane == "axial" else spacing_z) for plane in PLANES}
    return CascadeInferer(
        **{
            "localise": {"liver": localise(crop_margin_mm), "lesion": localise(None)},
            "slices": {plane: VolumeSliceInferer(spacings[plane], amp=False) for plane in PLANES},
            **options,
        }
    )


def make_scan(shape=(40, 32, 12), seed=0) -> np.ndarray:
    """A bright box with a brighter spot, in noise: (H, W, D)."""
    scan = np.random.default_rng(seed).uniform(0, 0.4, shape)
    scan[10:26, 6:20, 3:9] = 0.6
    scan[14:18, 10:14, 4:7] = 0.9
    return scan


def volume(*scans: np.ndarray, affine=None) -> MetaTensor:
    image = torch.tensor(np.stack(scans)[:, None], dtype=torch.float32)
    return MetaTensor(image, affine=torch.eye(4) if affine is None else torch.as_tensor(affine))


def smooth(shape, affine) -> MetaTensor:
    """A blob that is 0.5 on an ellipsoid, with a smaller, brighter one aside in it."""
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum((grid / 0.6) ** 2 for grid in grids))
    spot = np.sqrt(sum((grid - at) ** 2 for grid, at in zip(grids, (0.2, -0.1, 0.15), strict=True)))
    return volume(np.maximum(1.05 - 0.55 * radius, 1.2 - 2 * spot), affine=affine)


def test_the_mask_is_that_of_the_mean_probability_of_the_planes():
    torch.manual_seed(0)
    convolutions = {plane: nn.Conv2d(2, 1, 3, padding=1) for plane in PLANES}
    for convolution in convolutions.values():
        nn.init.normal_(convolution.weight, std=0.7)
        nn.init.zeros_(convolution.bias)
    scan = np.random.default_rng(0).normal(0, 1, (19, 23, 14)).astype(np.float32)
    network = networks(
        liver_localise=Threshold(-100),
        **{f"liver_{plane}": convolution for plane, convolution in convolutions.items()},
    )
    one = inferer(targets=["liver"])
    label, found = one.segment(volume(scan), network, probabilities=True)

    votes = []
    for plane, convolution in convolutions.items():
        kernels = convolution.weight[0].detach().double().numpy()
        view = scan.astype(np.float64).transpose(AXES[plane])
        # The prior is 1 everywhere: the padding of zeros shows at the border.
        logits = [
            correlate(view[..., k], kernels[0], mode="constant")
            + correlate(np.ones(view.shape[:2]), kernels[1], mode="constant")
            for k in range(view.shape[2])
        ]
        votes.append(expit(np.stack(logits, -1)).transpose(np.argsort(AXES[plane])))
    mean, majority = np.mean(votes, 0), (np.array(votes) > 0.5).sum(0) > 1
    assert (np.abs(mean - 0.5) > 1e-5).all()  # float32 decides none of them otherwise
    assert (majority != (mean > 0.5)).mean() > 0.05
    assert np.array_equal(label[0, 0], mean > 0.5)
    assert label.dtype == torch.uint8
    assert found.dtype == torch.uint8 and found.shape == (1, 2, *scan.shape)
    assert np.abs(found[0, 0] - 255 * mean).max() < 0.51
    assert not found[0, 1].any()

    for plane, vote in zip(PLANES, votes, strict=True):
        assert np.array_equal(
            inferer(targets=["liver"], planes=[plane])(volume(scan), network)[0, 0], vote > 0.5
        )


def test_keeps_the_probability_of_lesions_in_the_liver_and_of_the_liver_without_them():
    scans = make_scan(), np.zeros((40, 32, 12)), np.roll(make_scan(seed=1), 4, 1)
    one = inferer(crop_margin_mm=3.0, margin_mm=0)
    labels, found = one.segment(volume(*scans), networks(), probabilities=True)
    for scan, label, (liver, lesion) in zip(scans, labels[:, 0], found, strict=True):
        region = np.zeros(scan.shape, bool)
        if scan.any():
            rows, columns, slices = (
                np.flatnonzero((scan > LIVER).any(axes)) for axes in ((1, 2), (0, 2), (0, 1))
            )
            box = tuple(slice(max(i[0] - 3, 0), i[-1] + 4) for i in (rows, columns, slices))
            region[box] = True
        # The networks' logits are a hundred times what a voxel is above the threshold.
        whole = np.where(region, expit(100 * (scan - LIVER)), 0)
        part = whole * expit(100 * (scan - LESION))
        assert np.abs(lesion - 255 * part).max() < 1.1
        assert np.abs(liver - 255 * (whole - part)).max() < 1.6
        assert np.array_equal(np.asarray(label == 2), np.asarray(lesion) > 127)
    assert (found[0, 1] > 250).any()


@pytest.mark.parametrize("plane", PLANES)
def test_a_plane_gets_its_slices_as_orientation_gives_them_in_training(plane):
    scan, network = volume(make_scan(), affine=OBLIQUE), networks()
    inferer(targets=["liver"])(scan, network)
    oriented = Orientationd("image", axcodes=AXCODES[plane], labels=None)({"image": scan[0]})[
        "image"
    ]
    seen = network[f"liver_{plane}"].volume()
    assert torch.equal(seen[:1], oriented.as_tensor())
    assert (seen[1] == 1).all()


@pytest.mark.parametrize("plane", PLANES)
def test_a_plane_is_resampled_as_in_training(plane):
    scan, network = smooth((60, 48, 16), OBLIQUE), networks()
    label = inferer(spacing=(1.6, 2.0), spacing_z=1.5, targets=["liver"])(scan, network)
    seen = network[f"liver_{plane}"].volume()
    assert (
        seen.shape[1:]
        == {"axial": (30, 24, 16), "coronal": (30, 32, 24), "sagittal": (24, 32, 30)}[plane]
    )

    item = Spacingd("image", pixdim=(1.6, 2.0, -1))({"image": scan[0]})
    item = Orientationd("image", axcodes=AXCODES[plane], labels=None)(item)
    item = Spacingd("image", pixdim=(-1, -1 if plane == "axial" else 1.5, -1))(item)
    trained_on = item["image"].as_tensor()[0]
    # Spacing keeps the first voxel's centre, the inferer the extent: half a voxel apart, and one
    # more or less.
    size = tuple(
        slice(min(lengths)) for lengths in zip(trained_on.shape, seen.shape[1:], strict=True)
    )
    assert all(abs(a - b) <= 1 for a, b in zip(trained_on.shape, seen.shape[1:], strict=True))
    assert float((seen[0][size] - trained_on[size]).abs().mean()) < 0.03

    assert label.shape == scan.shape
    expected = np.asarray(scan[0, 0]) > LIVER
    centres = [np.argwhere(mask).mean(0) for mask in (np.asarray(label[0, 0]) > 0, expected)]
    assert np.abs(centres[0] - centres[1]).max() < 0.1
    assert ((np.asarray(label[0, 0]) > 0) ^ expected).sum() / expected.sum() < 0.06


def test_a_spacing_that_the_region_has_already_is_left_alone():
    slices = {
        "coronal": VolumeSliceInferer((1.6, 3.0), amp=False),
        "sagittal": VolumeSliceInferer((2.0, 3.0), amp=False),
    }
    network = networks()
    options = {"planes": list(slices), "slices": slices, "targets": ["liver"]}
    inferer(spacing=(1.6, 2.0), **options)(smooth((60, 48, 16), OBLIQUE), network)
    assert network["liver_coronal"].volume().shape == (2, 30, 16, 24)
    assert network["liver_sagittal"].volume().shape == (2, 24, 16, 30)


def test_liver_and_lesion_of_an_oblique_anisotropic_scan_are_where_they_were():
    scan = smooth((60, 48, 16), OBLIQUE)
    label = inferer(crop_margin_mm=8, spacing=(1.2, 1.2), spacing_z=1.2, margin_mm=5)(
        scan, networks()
    )
    expected = (scan > LIVER).numpy() * (1 + (scan > LESION).numpy())
    for value in (1, 2):
        found, wanted = np.asarray(label) == value, expected == value
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.93
    assert set(np.unique(label)) == {0, 1, 2}


def test_without_resampling_each_voxel_is_decided_by_its_own_intensity():
    scan = make_scan()
    expected = (scan > LIVER) * (1 + (scan > LESION))
    for margin in (0, 4, 1000):
        label = inferer(crop_margin_mm=margin)(volume(scan), networks())
        assert label.shape == (1, 1, *scan.shape)
        assert np.array_equal(label[0, 0], expected)


def test_the_prior_goes_with_the_image_into_every_plane():
    """A network that reads only the prior gives back the box, at 0.8 x 1 x 3 mm a voxel."""
    scan = volume(make_scan(), affine=OBLIQUE)
    network = networks(**{f"liver_{plane}": Threshold(0.5, channel=1) for plane in PLANES})
    label = inferer(crop_margin_mm=9, prior="box", box_margin_mm=3, targets=["liver"])(
        scan, network
    )
    expected = np.zeros(scan.shape[2:], np.uint8)
    expected[10 - 4 : 26 + 4, 6 - 3 : 20 + 3, 3 - 1 : 9 + 1] = 1
    assert np.array_equal(label[0, 0], expected)
    for plane in PLANES:
        oriented = torch.as_tensor(expected).permute(AXES[plane])
        seen = network[f"liver_{plane}"].volume()[1]
        assert seen.sum() == oriented.sum()


def test_the_tuning_networks_see_the_localised_region_alone():
    network = networks()
    inferer(crop_margin_mm=4, targets=["liver"])(volume(make_scan(), affine=OBLIQUE), network)
    size = (16 + 2 * 5, 14 + 2 * 4, 6 + 2 * 2)  # 4 mm are 5, 4 and 2 voxels
    for plane in PLANES:
        assert network[f"liver_{plane}"].volume().shape == (
            2,
            *(size[axis] for axis in AXES[plane]),
        )


def test_the_lesion_networks_see_the_box_of_the_tuned_liver():
    scan, network = make_scan(), networks()
    scan[11, 8, 10] = scan[30, 8, 4] = 0.7  # localised, but not of the largest part
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    cleaning = KeepLargestConnectedComponent(is_onehot=False)
    inferer(liver_postprocessing=cleaning, margin_mm=6)(volume(scan, affine=affine), network)
    box = scan[10 - 3 : 26 + 3, 6 - 2 : 20 + 2, 3:9].astype(np.float32)
    assert np.array_equal(network["lesion_localise"].volume()[0], box)
    for plane in PLANES:
        assert np.array_equal(network[f"lesion_{plane}"].volume()[0], box.transpose(AXES[plane]))


def test_lesions_are_only_where_the_cleaned_liver_is():
    scan = make_scan()
    scan[8, 9, 5], scan[12, 21, 4], scan[38, 30] = (
        0.9,
        0.9,
        0.9,
    )  # in the box around the liver, and far from it
    liver = np.zeros(scan.shape, bool)
    liver[10:26, 6:20, 3:9] = True
    label = inferer(liver_postprocessing=lambda mask: torch.as_tensor(liver[None]).to(mask))(
        volume(scan), networks()
    )
    expected = liver * (1 + (scan > LESION))
    assert (expected == 2).sum() == 48
    assert np.array_equal(label[0, 0], expected)


def test_a_localised_lesion_is_only_the_prior_of_the_tuned_one():
    """The localisation decides whether there is a lesion, the tuning networks where."""
    scan = make_scan()
    network = networks(
        lesion_localise=Threshold(0.85), **{f"lesion_{plane}": Threshold(0.55) for plane in PLANES}
    )
    assert np.array_equal(inferer()(volume(scan), network)[0, 0], 2 * (scan > LIVER))


def test_no_lesion_localised_is_no_lesion_without_a_warning(caplog):
    scan, network = make_scan(), networks(lesion_localise=Threshold(2))
    with caplog.at_level(logging.WARNING):
        label = inferer()(volume(scan), network)
    assert np.array_equal(label[0, 0], scan > LIVER)
    assert not any(network[f"lesion_{plane}"].seen for plane in PLANES)
    assert not caplog.records


def test_the_liver_alone():
    scan = make_scan()
    network = nn.ModuleDict(
        {name: part for name, part in networks().items() if name.startswith("liver")}
    )
    assert np.array_equal(inferer(targets=["liver"])(volume(scan), network)[0, 0], scan > LIVER)


def test_planes_that_do_not_vote_are_not_run():
    scan = make_scan()
    network = nn.ModuleDict(
        {name: part for name, part in networks().items() if not name.endswith("_axial")}
    )
    label = inferer(planes=["sagittal", "coronal"])(volume(scan), network)
    assert np.array_equal(label[0, 0], (scan > LIVER) * (1 + (scan > LESION)))


def test_each_scan_of_a_batch_has_its_own_liver_and_one_without_is_empty(caplog):
    scans = [make_scan(seed=1), np.zeros((40, 32, 12)), np.roll(make_scan(seed=2), 5, 0)]
    items = [
        MetaTensor(volume(scan)[0], meta={"filename_or_obj": f"{n}.nii"})
        for n, scan in enumerate(scans)
    ]
    with caplog.at_level(logging.WARNING, "liverseg.inferers"):
        labels = inferer(crop_margin_mm=4)(
            next(iter(DataLoader(Dataset(items), batch_size=3))), networks()
        )
    for index, scan in enumerate(scans):
        assert np.array_equal(labels[index, 0], (scan > LIVER) * (1 + (scan > LESION)))
    shown = [
        record.getMessage()
        for record in caplog.records
        if record.name == "liverseg.inferers.cascade"
    ]
    assert shown == ["1.nii: no liver found, so its mask is empty."]


def test_where_no_liver_is_localised_none_is_tuned(caplog):
    network = networks(liver_localise=Threshold(2))
    image = MetaTensor(volume(make_scan()), meta={"filename_or_obj": ["scan.nii.gz"]})
    with caplog.at_level(logging.WARNING):
        label = inferer()(image, network)
    assert label.shape == image.shape
    assert not label.any()
    assert "scan.nii.gz: no liver found, so its mask is empty." in caplog.messages
    assert not any(network[f"liver_{plane}"].seen for plane in PLANES)


@pytest.mark.parametrize("lost", ["tuning", "cleaning"])
def test_a_liver_that_tuning_or_cleaning_loses_is_an_empty_mask_with_a_warning(lost, caplog):
    changed = {f"liver_{plane}": Threshold(2) for plane in PLANES} if lost == "tuning" else {}
    cleaning = torch.zeros_like if lost == "cleaning" else None
    with caplog.at_level(logging.WARNING):
        label = inferer(liver_postprocessing=cleaning)(volume(make_scan()), networks(**changed))
    assert not label.any()
    assert [record.getMessage() for record in caplog.records] == [
        "scan 1 of the batch: no liver found, so its mask is empty."
    ]


SPACING = np.diag([1.5, 1.5, 5.0, 1.0])
GRIDS = {
    "oblique": (make_scan(), OBLIQUE),
    "left-posterior": (make_scan(), np.diag([-1.5, -1.5, 5.0, 1.0])),
    "sagittal": (make_scan().transpose(2, 0, 1), SPACING[:, [2, 0, 1, 3]]),
    "identity": (make_scan(), np.eye(4)),
    "one-slice": (make_scan()[..., 4:5], SPACING),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_mask_is_on_the_grid_of_the_file_and_knows_it(name, tmp_path):
    scan, affine = GRIDS[name]
    nib.save(nib.Nifti1Image(scan.astype(np.float32), affine), tmp_path / "scan.nii.gz")
    preprocessing = Compose(
        [LoadVolumed("image"), Orientationd("image", axcodes="RAS", labels=None)]
    )
    batch = next(
        iter(DataLoader(Dataset([{"image": str(tmp_path / "scan.nii.gz")}], preprocessing)))
    )
    batch["pred"] = inferer(crop_margin_mm=4, margin_mm=4)(batch["image"], networks())
    invert = Invertd(
        "pred", transform=preprocessing, orig_keys="image", nearest_interp=True, to_tensor=True
    )
    mask = invert(decollate_batch(batch)[0])["pred"]
    assert mask.meta["filename_or_obj"] == str(tmp_path / "scan.nii.gz")
    assert np.allclose(mask.affine, affine, atol=1e-5)
    assert np.array_equal(mask[0], (scan > LIVER) * (1 + (scan > LESION)))
    assert set(np.unique(mask)) == {0, 1, 2}


def peak_bytes(function) -> int:
    """The most memory of tensors that was held at a time while a function ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [
        event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return int(
        np.cumsum(
            [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        ).max()
    )


def test_three_planes_need_no_more_memory_than_one():
    class Quiet(nn.Module):
        def forward(self, x):
            return x[:, :1] - LIVER

    scan = volume(make_scan((96, 96, 96)))
    network = nn.ModuleDict({name: Quiet() for name in networks()})
    options = {
        "slices": {plane: VolumeSliceInferer(sw_batch_size=1, amp=False) for plane in PLANES}
    }
    peaks = [
        peak_bytes(
            lambda chosen=chosen: inferer(targets=["liver"], planes=chosen, **options)(
                scan, network
            )
        )
        for chosen in (PLANES[:1], PLANES)
    ]
    one_volume = scan.numel() * 4
    assert peaks[0] > 3 * one_volume
    assert peaks[1] < peaks[0] + 0.1 * one_volume
    assert peaks[1] < 7 * one_volume


@pytest.mark.parametrize(("planes", "found"), [(["axial", "oblique"], "oblique"), ([], "none")])
def test_another_plane_is_refused(planes, found):
    with pytest.raises(
        InputError, match=f"planes: found {found}, expected some of axial, coronal, sagittal"
    ):
        inferer(planes=planes)


def test_a_plane_without_slices_is_refused():
    with pytest.raises(InputError, match="planes: found coronal"):
        inferer(planes=["axial", "coronal"], slices={"axial": VolumeSliceInferer()})


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="without affine"):
        inferer()(torch.rand(1, 1, 8, 8, 5), networks())
