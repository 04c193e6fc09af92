from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd
from monai.visualize import GradCAM
from torch import nn

from liverseg.errors import InputError
from liverseg.inferers import Localiser, VolumeSliceInferer
from liverseg.networks import UNet
from liverseg.transforms import DenseCRFd, ErodeKeepLargestDilated, LocalisePriord

# Oblique, 0.8 x 0.9 x 3 mm, with the first axis to the left.
ROTATION = np.array([[-0.96, 0.0, 0.28], [0.0, 1.0, 0.0], [-0.28, 0.0, -0.96]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = ROTATION @ np.diag([0.8, 0.9, 3.0])
AFFINE[:3, 3] = [11, -7, 30]
SHAPE = (48, 64, 20)
TARGET = (slice(14, 25), slice(30, 41), slice(6, 10))


class Tiny(nn.Module):
    """Finds what is brighter than 0.5; its features have a fourth of the resolution."""

    def __init__(self, seed: int = 0, linear: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(4),
            nn.Conv2d(3, 5, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        bend = nn.Identity if linear else nn.ELU
        self.decoder = nn.Sequential(bend(), nn.Conv2d(5, 5, 1), bend())
        self.up = nn.ConvTranspose2d(5, 2, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - x, x - 0.5], 1) * 100 + self.up(self.decoder(self.features(x)))


def volume(shape=SHAPE, target=TARGET, affine=AFFINE):
    generator = torch.Generator().manual_seed(0)
    image = 0.4 * torch.rand(1, *shape, generator=generator)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    if target is not None:
        image[(0, *target)] += 0.6
        label[(0, *target)] = 1
    return {
        "image": MetaTensor(
            image, affine=torch.tensor(affine), meta={"filename_or_obj": "scan.nii.gz"}
        ),
        "label": MetaTensor(label, affine=torch.tensor(affine)),
        "name": "case",
    }


def localiser(network=None, **options):
    options = {
        "network": network or Tiny(),
        "inferer": VolumeSliceInferer(sw_batch_size=3, amp=False),
        "target_layer": "features.4",
        "crop_margin_mm": 6.0,
    } | options
    return Localiser(**options)


def localise(network=None, allow_missing_keys=False, **options):
    return LocalisePriord(["image", "label"], localiser(network, **options), allow_missing_keys)


def widened(margin_mm, spacing=(0.8, 0.9, 3.0), shape=SHAPE):
    """The target's box in voxels, by hand."""
    steps = [int(np.ceil(margin_mm / mm)) for mm in spacing]
    pairs = zip(TARGET, steps, shape, strict=True)
    return tuple(slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in pairs)


@pytest.mark.parametrize("prior", ["box", "gradcam", "none"])
@pytest.mark.parametrize("margin", [0.0, 6.0, 26.0])  # the last reaches beyond the volume
def test_everything_is_cropped_to_the_target_with_its_margin(prior, margin):
    data, region = volume(), widened(margin)
    d = localise(prior=prior, crop_margin_mm=margin)(data)
    for key, expected in (
        ("image", data["image"]),
        ("label", data["label"]),
        ("localised", data["label"]),
    ):
        assert torch.equal(d[key].as_tensor(), expected.as_tensor()[(slice(None), *region)])
        assert d[key].dtype == expected.dtype
    assert d["prior"].shape == d["image"].shape
    assert d["prior"].dtype == torch.float32
    assert 0 <= float(d["prior"].min()) <= float(d["prior"].max()) <= 1
    corner = AFFINE @ [*(s.start for s in region), 1]
    for key in ("image", "label", "localised", "prior"):
        np.testing.assert_allclose(np.asarray(d[key].affine)[:, 3], corner, atol=1e-9)
        np.testing.assert_allclose(np.asarray(d[key].affine)[:3, :3], AFFINE[:3, :3])
        assert (
            d[key].as_tensor().untyped_storage().nbytes() == d[key].numel() * d[key].element_size()
        )
    assert localiser(prior=prior, crop_margin_mm=margin)(data["image"]).found
    assert d["name"] == "case"
    assert data["image"].shape == (1, *SHAPE)  # the input is left alone


def test_the_box_prior_is_the_widened_box_of_the_mask():
    d = localise(prior="box", box_margin_mm=2.0, crop_margin_mm=9.0)(volume())
    expected = np.zeros(SHAPE, np.float32)
    expected[widened(2.0)] = 1
    assert np.array_equal(np.asarray(d["prior"][0]), expected[widened(9.0)])
    assert 0 < float(d["prior"].mean()) < 1
    assert localise(prior="box", box_margin_mm=9.0, crop_margin_mm=2.0)(volume())["prior"].all()
    assert localise(prior="none")(volume())["prior"].all()


@pytest.mark.parametrize("prior", ["box", "gradcam", "none"])
def test_without_a_crop_margin_the_whole_volume_is_kept(prior):
    data, inferer = volume(), VolumeSliceInferer(amp=False)
    keeps, crops = (
        localise(prior=prior, crop_margin_mm=margin, inferer=inferer) for margin in (None, 6.0)
    )
    whole, cropped = keeps(data), crops(data)
    for key, expected in (
        ("image", data["image"]),
        ("label", data["label"]),
        ("localised", data["label"]),
    ):
        assert torch.equal(whole[key].as_tensor(), expected.as_tensor())
    assert torch.equal(
        whole["prior"].as_tensor()[(slice(None), *widened(6.0))], cropped["prior"].as_tensor()
    )
    assert keeps.localiser(data["image"]).found
    assert torch.equal(keeps.inverse(whole)["label"].as_tensor(), data["label"].as_tensor())


@pytest.mark.parametrize("prior", ["box", "gradcam"])
def test_without_a_crop_margin_nothing_found_is_a_finding(prior, caplog):
    with caplog.at_level(logging.WARNING):
        found = localiser(prior=prior, crop_margin_mm=None)(volume(target=None)["image"])
    assert not found.found
    assert found.prior.shape == (1, *SHAPE)
    assert not caplog.records


class OneLogit(Tiny):
    """The same network with the logit of the target alone."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.up.weight[:, 0] = 0
            self.up.bias[0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, 1:]


class TwoLogits(OneLogit):
    """And with a background of logit 0 beside it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = super().forward(x)
        return torch.cat([torch.zeros_like(logit), logit], 1)


@pytest.mark.parametrize("prior", ["box", "gradcam"])
def test_one_logit_localises_like_two(prior):
    one, two = (localise(network, prior=prior)(volume()) for network in (OneLogit(), TwoLogits()))
    assert one["localised"].any()
    for key in ("image", "label", "localised", "prior"):
        assert torch.equal(one[key].as_tensor(), two[key].as_tensor())
    assert one["prior"].std() > 0.01


@pytest.mark.parametrize("prior", ["box", "gradcam"])
def test_invertd_puts_a_prediction_back_where_it_was(prior):
    keys = ["image", "label"]
    chain = Compose(
        [
            Orientationd(keys=keys, axcodes="RAS", labels=None),
            localise(prior=prior, crop_margin_mm=3.0),
            Spacingd(
                keys=[*keys, "prior"],
                pixdim=(0.8, 0.9, 3.0),
                mode=["bilinear", "nearest", "bilinear"],
            ),
        ]
    )
    data = volume()
    d = chain(data)
    assert d["image"].shape == d["label"].shape == d["prior"].shape
    assert d["image"].shape != data["image"].shape
    d["pred"] = d["label"].clone()
    back = Invertd(keys="pred", transform=chain, orig_keys="image", nearest_interp=True)(d)["pred"]
    assert torch.equal(back.as_tensor().to(torch.uint8), data["label"].as_tensor())
    np.testing.assert_allclose(np.asarray(back.affine), AFFINE, atol=1e-6)


def test_the_inverse_takes_all_that_was_cropped():
    transform = localise(prior="box", box_margin_mm=0.0)
    data = volume()
    back = transform.inverse(transform(data))
    for key in ("label", "localised", "prior"):
        assert torch.equal(back[key].as_tensor().to(torch.uint8), data["label"].as_tensor())
        np.testing.assert_allclose(np.asarray(back[key].affine), AFFINE, atol=1e-9)


def grad_cam_by_formula(network, slices):
    """Where maps lead to logits linearly, a map's gradient is the sum of its weights."""
    with torch.no_grad():
        maps = network.features(slices)
        weights = network.up.weight[:, 1].sum((1, 2)) @ network.decoder[1].weight[:, :, 0, 0]
        return torch.einsum("k,nkhw->nhw", weights, maps).clamp(min=0)[:, None]


def test_grad_cam_equals_the_formula():
    data, network = volume(), Tiny()
    cam = grad_cam_by_formula(network, data["image"].as_tensor().permute(3, 0, 1, 2))
    assert cam.max() > 0
    cam = F.interpolate(cam / cam.max(), size=SHAPE[:2], mode="bilinear", align_corners=False)
    found = localise(network, prior="gradcam")(data)["prior"]
    expected = cam.permute(1, 2, 3, 0)[(slice(None), *widened(6.0))]
    torch.testing.assert_close(found.as_tensor(), expected)
    assert found.std() > 0.01


@pytest.mark.parametrize("layer", ["features.3", "features.4", "decoder.1"])
def test_grad_cam_of_a_network_that_is_not_linear_equals_autograd_and_monai(layer):
    data, network = volume(), Tiny(1, linear=False)
    slices = data["image"].as_tensor().permute(3, 0, 1, 2)
    found = localise(network, prior="gradcam", target_layer=layer, crop_margin_mm=1000)(data)[
        "prior"
    ]

    step = slices
    for module in [*network.features, *network.decoder]:
        step = module(step.clone())
        if module is network.get_submodule(layer):
            step = maps = step.requires_grad_()
    gradient = torch.autograd.grad(network.up(step)[:, 1].sum(), maps)[0]
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp(min=0).detach()
    assert cam.max() > 0
    up = F.interpolate(cam / cam.max(), size=SHAPE[:2], mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.as_tensor(), up.permute(1, 2, 3, 0), rtol=1e-4, atol=1e-5)

    if layer != "features.3":  # MONAI's fails where a ReLU works in place on the layer's output
        network.requires_grad_(True)
        torch.testing.assert_close(
            GradCAM(network, layer).compute_map(slices, class_idx=1).detach(), cam
        )


def test_grad_cam_of_unet_on_an_odd_size_changes_no_mask_and_ends_where_the_slice_does():
    torch.manual_seed(0)
    network = UNet(dropout=0.2)
    data = volume((37, 45, 4), None)
    with torch.no_grad():
        logits = network.eval()(data["image"].as_tensor().permute(3, 0, 1, 2))
        network.classifier.bias[1] -= (
            logits[:, 1] - logits[:, 0]
        ).median()  # half of the voxels are foreground
    options = {"target_layer": "encoder.features.23", "crop_margin_mm": 1000}
    with_cam = localise(network, prior="gradcam", **options)(data)
    without = localise(network, prior="none", **options)(data)
    assert 0.4 < float(without["localised"].float().mean()) < 0.6
    assert torch.equal(with_cam["localised"], without["localised"])

    padded = F.pad(data["image"].as_tensor().permute(3, 0, 1, 2), (0, 3, 0, 11), mode="replicate")
    network.requires_grad_(True)
    maps = GradCAM(network, "encoder.features.23").compute_map(padded, class_idx=1).detach()
    assert maps.shape == (4, 1, 3, 3)
    up = F.interpolate(maps / maps.max(), size=(48, 48), mode="bilinear", align_corners=False)[
        :, :, :37, :45
    ]
    difference = (with_cam["prior"].as_tensor() - up.permute(1, 2, 3, 0)).abs().max()
    assert (
        difference < 0.02
    )  # the inferer's memory format rounds otherwise, and a ReLU near 0 may close or open
    stretched = F.interpolate(
        maps / maps.max(), size=(37, 45), mode="bilinear", align_corners=False
    )
    assert (stretched - up).abs().max() > 0.1


def test_grad_cam_lies_where_the_network_saw_it_at_its_own_spacing():
    network = Tiny()
    with torch.no_grad():
        for layer in (network.features[0], network.features[3], network.decoder[1], network.up):
            layer.weight.zero_()
            layer.bias.zero_()
        network.features[0].weight[0, 0, 1, 1] = network.features[3].weight[0, 0, 1, 1] = 1
        network.features[0].bias[0] = -0.5
        network.decoder[1].weight[0, 0] = network.up.weight[0, 1] = 1e-3
    inferer = VolumeSliceInferer(spacing=(1.6, 1.6), sw_batch_size=8, amp=False)
    target = (
        slice(16, 32),
        slice(29, 43),
        slice(6, 10),
    )  # two of the features' pixels, 8 x 7.1 pixels each
    d = localise(network, inferer=inferer, prior="gradcam", crop_margin_mm=1000)(
        volume((96, 100, 20), target)
    )
    prior, label = np.asarray(d["prior"][0]), np.asarray(d["label"][0])
    centres = [
        np.average(np.indices(prior.shape).reshape(3, -1), axis=1, weights=w.ravel())
        for w in (prior, label)
    ]
    assert np.abs(centres[0] - centres[1]).max() < 0.5
    assert prior.max() > 0.5
    assert (prior.max((0, 1)) > 0).tolist() == (label.max((0, 1)) > 0).tolist()


@pytest.mark.parametrize("prior", ["box", "gradcam", "none"])
def test_an_empty_localisation_keeps_the_volume_and_says_so(prior, caplog):
    data, transform = volume(target=None), localise(prior=prior)
    with caplog.at_level(logging.WARNING):
        d = transform(data)
    assert "scan.nii.gz" in caplog.text
    assert "found nothing" in caplog.text
    assert not transform.localiser(data["image"]).found
    assert not d["localised"].any()
    assert torch.equal(d["image"].as_tensor(), data["image"].as_tensor())
    assert d["prior"].shape == data["image"].shape
    assert prior == "gradcam" or d["prior"].all()
    assert d["prior"].isfinite().all()
    back = Invertd(keys="prior", transform=Compose([transform]), orig_keys="image")(d)["prior"]
    assert back.shape == data["image"].shape


def test_a_grad_cam_of_zeros_stays_zero():
    network = Tiny()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    prior = localise(network, prior="gradcam")(volume())["prior"]
    assert not prior.any()


def test_post_processing_decides_the_box():
    data = volume()
    data["image"][0, 2, 2, 17] = 1.0
    assert localise(prior="none")(data)["image"].shape[3] > 12
    for postprocessing in (
        ErodeKeepLargestDilated(keys="localised", radius=1),
        DenseCRFd(keys="localised", image_key="image", spatial_dims=3, smoothness_mm=3.0),
    ):
        d = localise(prior="none", postprocessing=postprocessing, crop_margin_mm=6.0)(data)
        assert (
            d["image"].shape
            == d["localised"].shape
            == (1, *(s.stop - s.start for s in widened(6.0)))
        )


def test_weights_are_read_at_the_first_call_and_then_frozen(tmp_path):
    path = tmp_path / "model.pt"
    data, source, network = volume(), Tiny(seed=3), Tiny(seed=4).train()
    transform = localise(network, weights=path, prior="gradcam")
    with pytest.raises(InputError, match=r"model\.pt cannot be read"):
        transform(data)
    torch.save(source.state_dict(), path)
    found = transform(data)["prior"]
    path.unlink()
    assert torch.equal(found, transform(data)["prior"])
    assert torch.equal(found, localise(source, prior="gradcam")(data)["prior"])
    assert not network.training
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    # A hook that is left on it would make its maps ask for gradients.
    assert not network(torch.rand(1, 1, 16, 16)).requires_grad


def test_a_label_may_be_missing():
    data = volume()
    del data["label"]
    with pytest.raises(KeyError):
        localise()(data)
    assert "label" not in localise(allow_missing_keys=True)(data)


def test_threads_that_cache_a_data_set_do_not_disturb_each_other():
    items = [volume(target=(TARGET[0], TARGET[1], slice(k, k + 3))) for k in range(6)]
    expected = [localise()(item) for item in items]
    cached = CacheDataset(items, localise(), num_workers=4, progress=False, copy_cache=False)
    for found, wanted in zip(cached, expected, strict=True):
        assert torch.equal(found["image"].as_tensor(), wanted["image"].as_tensor())
        assert torch.equal(found["prior"].as_tensor(), wanted["prior"].as_tensor())


def test_wrong_settings_and_inputs_are_refused():
    with pytest.raises(
        InputError, match="prior: found 'heatmap', expected one of box, gradcam, none"
    ):
        localise(prior="heatmap")
    with pytest.raises(InputError, match=r"target_layer: found 'bridge'.*features\.4"):
        localise(prior="gradcam", target_layer="bridge")
    with pytest.raises(InputError, match="image: found a Tensor"):
        localise()(volume() | {"image": torch.rand(1, 8, 8, 8)})
    with pytest.raises(InputError, match="label: found shape"):
        localise()(volume() | {"label": torch.zeros(1, 8, 8, 8)})

    def every_second(image, network):
        return torch.stack(
            [network(image[..., k])[:, 1:] > 0 for k in range(0, 20, 2)], -1
        ).repeat_interleave(2, -1)

    with pytest.raises(InputError, match="10 slices of 20"):
        localise(prior="gradcam", inferer=every_second)(volume())
