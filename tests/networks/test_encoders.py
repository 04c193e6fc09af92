from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet18
from torch import nn

from liverseg.errors import InputError
from liverseg.networks.encoders import ResNet18Encoder, VGGEncoder, load_imagenet_weights


@pytest.fixture(scope="module")
def reference(randomise_batch_norms) -> nn.Module:
    """MONAI's ResNet-18 with torchvision's parameter names and strides, and random statistics."""
    torch.manual_seed(0)
    network = resnet18(
        spatial_dims=2,
        n_input_channels=3,
        num_classes=1000,
        conv1_t_stride=2,
        bias_downsample=False,
    ).eval()
    randomise_batch_norms(network)
    return network


@pytest.fixture(scope="module")
def weights(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the reference's state dict as torchvision does: without the counters of batch norm."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    state = reference.state_dict()
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    torch.save(state, path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def loaded(weights: Path, in_channels: int = 3, output_stride: int = 16) -> ResNet18Encoder:
    encoder = ResNet18Encoder(in_channels, output_stride).eval()
    load_imagenet_weights(encoder, weights, digest(weights))
    return encoder


def test_keys_and_shapes_are_torchvisions() -> None:
    def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        vectors = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{v}": (channels,) for v in vectors} | {f"{name}.num_batches_tracked": ()}

    expected: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    before = 64
    for layer, channels in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            expected[f"{name}.conv1.weight"] = (channels, before, 3, 3)
            expected[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            expected |= batch_norm(f"{name}.bn1", channels) | batch_norm(f"{name}.bn2", channels)
            if channels != before:
                expected[f"{name}.downsample.0.weight"] = (channels, before, 1, 1)
                expected |= batch_norm(f"{name}.downsample.1", channels)
            before = channels
    assert {
        key: tuple(value.shape) for key, value in ResNet18Encoder(3).state_dict().items()
    } == expected


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(96, 160), (75, 101)])
def test_dilation_gives_the_plain_resnet_at_every_second_or_fourth_position(
    reference: nn.Module, weights: Path, output_stride: int, size: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        low, high = loaded(weights, output_stride=output_stride)(x)
        expected_low = reference.layer1(
            reference.maxpool(reference.act(reference.bn1(reference.conv1(x))))
        )
        expected_high = reference.layer4(reference.layer3(reference.layer2(expected_low)))
    step = 32 // output_stride
    assert high.shape[2:] == tuple(-(-n // output_stride) for n in size)
    torch.testing.assert_close(low, expected_low)
    torch.testing.assert_close(high[:, :, ::step, ::step], expected_high, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilation_gives_the_plain_resnet_of_the_shifted_image_in_between(
    reference: nn.Module, weights: Path, output_stride: int
) -> None:
    x = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    step = 32 // output_stride
    with torch.no_grad():
        high = loaded(weights, output_stride=output_stride)(x)[1]
        for phase in range(1, step):
            shifted = x.roll((-phase * output_stride, -phase * output_stride), dims=(2, 3))
            stem = reference.maxpool(reference.act(reference.bn1(reference.conv1(shifted))))
            plain = reference.layer4(reference.layer3(reference.layer2(reference.layer1(stem))))
            # Only the middle: a feature sees 217 pixels to each side, and must see neither the
            # border nor the wrap.
            middle = high[
                :, :, 7 * step + phase : 9 * step : step, 7 * step + phase : 9 * step : step
            ]
            torch.testing.assert_close(middle, plain[:, :, 7:9, 7:9], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_channels", [1, 2, 5])
def test_grey_image_gives_the_same_activations_with_any_number_of_channels(
    reference: nn.Module, weights: Path, in_channels: int
) -> None:
    adapted = loaded(weights, in_channels).conv1.weight
    rgb = reference.conv1.weight
    assert adapted.shape == (64, in_channels, 7, 7)
    torch.testing.assert_close(adapted.double().sum(1), rgb.double().sum(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        adapted[:, 0].double(), rgb.double().mean(1) * 3 / in_channels, rtol=0, atol=1e-6
    )
    assert torch.equal(adapted, adapted[:, :1].expand_as(adapted))


def test_three_channels_keep_the_file_as_it_is(reference: nn.Module, weights: Path) -> None:
    state = loaded(weights).state_dict()
    expected = reference.state_dict()
    assert all(
        torch.equal(value, expected[key])
        for key, value in state.items()
        if "num_batches" not in key
    )


def test_file_with_counters_loads_too(reference: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(reference.state_dict(), path)
    assert torch.equal(loaded(path).bn1.running_var, reference.bn1.running_var)


def test_url_is_downloaded_once_to_the_hub_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    served = tmp_path / "served.pth"
    served.write_bytes(weights.read_bytes())
    encoder = ResNet18Encoder(3)
    load_imagenet_weights(encoder, served.as_uri(), digest(weights))
    assert digest(tmp_path / "home/hub/checkpoints/served.pth") == digest(weights)
    served.unlink()
    load_imagenet_weights(encoder, served.as_uri(), digest(weights).upper())


def test_url_with_another_digest_leaves_no_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"{'0' * 64}.*{digest(weights)}"):
        load_imagenet_weights(ResNet18Encoder(3), weights.as_uri(), "0" * 64)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_url_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"absent.pth cannot be downloaded .*give its path as encoder_weights"
    ):
        load_imagenet_weights(ResNet18Encoder(3), (tmp_path / "absent.pth").as_uri(), "0" * 64)


def test_wrong_digest_names_both_and_changes_nothing(weights: Path) -> None:
    encoder = ResNet18Encoder(3)
    before = encoder.conv1.weight.clone()
    with pytest.raises(InputError, match=f"has SHA-256 {digest(weights)}; expected {'a' * 64}"):
        load_imagenet_weights(encoder, weights, "a" * 64)
    assert torch.equal(encoder.conv1.weight, before)


def test_bytes_are_not_unpickled_before_the_digest_is_right(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    path.write_bytes(b"not a weights file")
    with pytest.raises(InputError, match="has SHA-256"):
        load_imagenet_weights(ResNet18Encoder(3), path, "a" * 64)
    with pytest.raises(InputError, match="no weights file"):
        load_imagenet_weights(ResNet18Encoder(3), path, digest(path))


def test_digest_is_required(weights: Path) -> None:
    with pytest.raises(InputError, match=r"encoder_weights_sha256 is not set for .*resnet18.pth"):
        load_imagenet_weights(ResNet18Encoder(3), weights, None)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.pth cannot be read \(No such file"):
        load_imagenet_weights(ResNet18Encoder(3), tmp_path / "absent.pth", "a" * 64)


def test_weights_of_another_network_name_the_keys(reference: nn.Module, tmp_path: Path) -> None:
    state = reference.state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["layer2.0.bn1.bias"] = torch.zeros(3)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        load_imagenet_weights(ResNet18Encoder(1), path, digest(path))
    message = str(caught.value)
    assert "1 missing (first: layer1.0.conv1.weight)" in message
    assert "1 unexpected (first: layer9.weight)" in message
    assert "1 of another shape (first: layer2.0.bn1.bias is (3,) instead of (128,))" in message
    assert "torchvision's resnet18 file" in message


@pytest.mark.parametrize("output_stride", [32, 4, "16"])
def test_other_output_strides_are_refused(output_stride: int) -> None:
    with pytest.raises(InputError, match=r"output_stride is .*; expected 16 or 8"):
        ResNet18Encoder(1, output_stride)


@pytest.fixture(scope="module")
def vgg16() -> nn.ModuleDict:
    """VGG-16 as torchvision's, with 64 channels for its 4096 and 10 classes for its 1000."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += (
            [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2, 2)]
        )
        before = width or before
    classifier = [
        nn.Linear(512 * 7 * 7, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(),
    ]
    classifier.append(nn.Linear(64, 10))
    network = nn.ModuleDict(
        {"features": nn.Sequential(*layers), "classifier": nn.Sequential(*classifier)}
    ).eval()
    for parameter in network.parameters():
        nn.init.normal_(
            parameter, std=0.05 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5
        )
    return network


@pytest.fixture(scope="module")
def vgg16_weights(vgg16: nn.ModuleDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(vgg16.state_dict(), path)
    return path


def test_vgg16_with_weights_gives_the_maps_of_the_original(
    vgg16: nn.ModuleDict, vgg16_weights: Path
) -> None:
    encoder = VGGEncoder(3, fc_channels=64).eval()
    load_imagenet_weights(encoder, vgg16_weights, digest(vgg16_weights))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends, pooled = encoder(x)
        pools = [4, 9, 16, 23, 30]
        y = x
        for i, layer in enumerate(vgg16["features"]):
            if i in pools:
                torch.testing.assert_close(ends[pools.index(i)], y)
            y = layer(y)
            if i in pools[:-1]:
                torch.testing.assert_close(pooled[pools.index(i)], y)
        fc7 = vgg16["classifier"][:6](y.flatten(1))
    assert [len(ends), len(pooled)] == [6, 4]
    assert fc7.std() > 0.1
    torch.testing.assert_close(ends[5][:, :, 3, 3], fc7, rtol=1e-4, atol=1e-4)


def test_vgg16_without_fully_connected_layers_takes_the_convolutions(
    vgg16, vgg16_weights: Path
) -> None:
    encoder = VGGEncoder(3, dropout=0.5)
    load_imagenet_weights(encoder, vgg16_weights, digest(vgg16_weights))
    expected = {f"features.{key}": value for key, value in vgg16["features"].state_dict().items()}
    assert encoder.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in encoder.state_dict().items())


def test_fully_connected_layers_of_another_width_are_left_out(vgg16, vgg16_weights: Path) -> None:
    encoder = VGGEncoder(3, fc_channels=32)
    before = {key: value.clone() for key, value in encoder.classifier.state_dict().items()}
    load_imagenet_weights(encoder, vgg16_weights, digest(vgg16_weights))
    assert torch.equal(encoder.features[28].weight, vgg16["features"][28].weight)
    assert all(
        torch.equal(value, before[key]) for key, value in encoder.classifier.state_dict().items()
    )


@pytest.mark.parametrize("in_channels", [1, 5])
def test_first_convolution_of_vgg16_sees_a_grey_image_as_the_original(
    vgg16, vgg16_weights, in_channels
) -> None:
    encoder = VGGEncoder(in_channels)
    load_imagenet_weights(encoder, vgg16_weights, digest(vgg16_weights))
    grey = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = encoder.features[0](grey.expand(-1, in_channels, -1, -1))
        torch.testing.assert_close(
            y, vgg16["features"][0](grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
        )


def without_fully_connected(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("classifier.")}


def with_another_last_map(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"classifier.0.weight": torch.zeros(64, 512 * 6 * 6)}


def of_vgg13(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key: value
        for key, value in state.items()
        if not key.startswith(("features.26.", "features.28."))
    }


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_fully_connected, "of its 30 keys 4 missing (first: classifier.0.weight)"),
        (with_another_last_map, "classifier.0.weight is (64, 18432) instead of (64, 512, 7, 7)"),
        (of_vgg13, "of its 30 keys 4 missing (first: features.26.weight)"),
    ],
)
def test_weights_that_are_no_vgg16_change_nothing(
    vgg16, tmp_path: Path, change, found: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(change(vgg16.state_dict()), path)
    encoder = VGGEncoder(1, fc_channels=64)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(
        InputError, match="give torchvision's vgg16 file as encoder_weights"
    ) as caught:
        load_imagenet_weights(encoder, path, digest(path))
    assert found in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_resnet18_is_no_vgg16(weights: Path) -> None:
    with pytest.raises(
        InputError, match=r"26 missing \(first: features.0.weight\).*torchvision's vgg16 file"
    ):
        load_imagenet_weights(VGGEncoder(1), weights, digest(weights))
