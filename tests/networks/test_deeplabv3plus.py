from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet18
from scipy.ndimage import correlate
from torch import nn

from liverseg.errors import InputError
from liverseg.networks import DeepLabV3Plus
from liverseg.networks.deeplabv3plus import ASPP
from liverseg.networks.encoders import ResNet18Encoder, adapt_first_convolution


def torchvision_resnet18():
    """MONAI's ResNet-18 with the layers and keys of torchvision's, and random weights and statistics."""
    torch.manual_seed(1)
    network = resnet18(
        spatial_dims=2, n_input_channels=3, num_classes=1000, conv1_t_stride=2, bias_downsample=False
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def features(network, x):
    """Low-level and last features of MONAI's ResNet-18, at strides 4 and 32."""
    low = network.layer1(network.maxpool(network.act(network.bn1(network.conv1(x)))))
    return low, network.layer4(network.layer3(network.layer2(low)))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18-test.pth"
    torch.save(torchvision_resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_stride": 8},
        {"image_pooling": True, "dropout": 0.1},
        {"aspp_rates": (1, 2, 4)},
    ],
)
@pytest.mark.parametrize("in_channels", [1, 3, 5])
def test_segmentation_network(check_segmentation_network, options, in_channels):
    check_segmentation_network(partial(DeepLabV3Plus, **options), in_channels, num_classes=3)


def test_parameter_count():
    """By hand: ResNet-18 without fc and with one input channel instead of three, ASPP, decoder, classifier."""
    encoder = 11_176_512 - 2 * 64 * 49
    aspp = 512 * 256 + 3 * 9 * 512 * 256 + 4 * 512 + 1024 * 256 + 512
    decoder = 64 * 48 + 96 + 9 * 304 * 256 + 512 + 9 * 256 * 256 + 512 + 2 * 256 + 2
    assert sum(p.numel() for p in DeepLabV3Plus().parameters()) == encoder + aspp + decoder


@pytest.mark.parametrize("output_stride", [8, 16])
def test_feature_sizes(output_stride):
    low, high = ResNet18Encoder(1, output_stride)(torch.zeros(1, 1, 64, 96))
    assert low.shape == (1, 64, 16, 24)
    assert high.shape == (1, 512, 64 // output_stride, 96 // output_stride)


def test_another_output_stride_is_refused():
    with pytest.raises(InputError, match="output_stride is 32"):
        DeepLabV3Plus(output_stride=32)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_the_meaning_of_the_weights(weights_file, output_stride):
    """Every 32/output_stride-th value of the dilated encoder is what the strided network computes there."""
    torch.manual_seed(2)
    x = torch.randn(1, 3, 512, 512)
    encoder = ResNet18Encoder(3, output_stride).eval()
    state = torch.load(weights_file, weights_only=True)
    encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    with torch.no_grad():
        expected_low, expected_high = features(torchvision_resnet18(), x)
        low, high = encoder(x)
    assert torch.allclose(low, expected_low, atol=1e-4)
    step = 32 // output_stride
    # Near the frame the two pad differently.
    inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    assert torch.allclose(high[:, :, ::step, ::step][inner], expected_high[inner], atol=1e-3)


def test_keys_are_torchvisions(weights_file):
    keys = {key for key in torch.load(weights_file, weights_only=True) if not key.startswith("fc.")}
    assert keys == set(ResNet18Encoder(3).state_dict())


@pytest.mark.parametrize("in_channels", [1, 3, 5])
def test_grey_images_give_what_they_gave_as_rgb(weights_file, in_channels):
    x = torch.randn(1, 1, 64, 64)
    expected, _ = features(torchvision_resnet18(), x.expand(-1, 3, -1, -1))
    low, _ = ResNet18Encoder(in_channels, 16, str(weights_file)).eval()(x.expand(-1, in_channels, -1, -1))
    assert torch.allclose(low, expected, atol=1e-4)
    weight = torch.load(weights_file, weights_only=True)["conv1.weight"].double()
    assert torch.allclose(adapt_first_convolution(weight, in_channels).sum(1), weight.sum(1))


def test_aspp_equals_its_definition_in_float64():
    torch.manual_seed(3)
    aspp = ASPP(4, rates=(1, 2, 3), image_pooling=True, channels=3).double().eval()
    x = torch.randn(1, 4, 11, 9, dtype=torch.float64)
    with torch.no_grad():
        found = aspp(x)[0].numpy()

    def conv_bn_relu(inputs, module, rate=1):
        weight, norm = module[0].weight.detach().numpy(), module[1]
        size = 1 + (weight.shape[-1] - 1) * rate
        dilated = np.zeros((*weight.shape[:2], size, size))
        dilated[:, :, ::rate, ::rate] = weight
        maps = np.stack(
            [sum(correlate(i, k, mode="constant") for i, k in zip(inputs, ks, strict=True)) for ks in dilated]
        )
        return np.maximum(maps / np.sqrt(1 + norm.eps), 0)

    inputs = x[0].numpy()
    branches = [conv_bn_relu(inputs, branch, rate) for branch, rate in zip(aspp.branches, (1, 2, 3), strict=True)]
    pooled = aspp.pooling[1].weight.detach().numpy()[:, :, 0, 0] @ inputs.mean((1, 2))
    pooled = np.maximum(pooled + aspp.pooling[1].bias.detach().numpy(), 0)
    branches.append(np.broadcast_to(pooled[:, None, None], (3, 11, 9)))
    assert np.allclose(found, conv_bn_relu(np.concatenate(branches), aspp.project), atol=1e-12)


def test_rates_double_at_stride_8():
    dilations = [branch[0].dilation[0] for branch in DeepLabV3Plus(output_stride=8).aspp.branches]
    assert dilations == [1, 12, 24, 36]


def test_encoder_weights_need_the_right_sha256(weights_file):
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    network = DeepLabV3Plus(encoder_weights=str(weights_file), encoder_weights_sha256=digest)
    state = torch.load(weights_file, weights_only=True)
    assert torch.equal(network.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    with pytest.raises(InputError, match=f"sha256 is {digest}, expected {'0' * 64}"):
        DeepLabV3Plus(encoder_weights=str(weights_file), encoder_weights_sha256="0" * 64)


def test_encoder_weights_from_a_url(weights_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    for _ in range(2):
        network = DeepLabV3Plus(encoder_weights=weights_file.as_uri(), encoder_weights_sha256=digest)
    state = torch.load(weights_file, weights_only=True)
    assert torch.equal(network.encoder.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    with pytest.raises(InputError, match="encoder_weights_sha256"):
        DeepLabV3Plus(encoder_weights=weights_file.as_uri())
    with pytest.raises(InputError, match="the download failed"):
        DeepLabV3Plus(encoder_weights=(tmp_path / "gone.pth").as_uri(), encoder_weights_sha256="1" * 64)


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer9.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: .* missing \(first: bn1\.weight\).* unexpected"):
        DeepLabV3Plus(encoder_weights=str(tmp_path / "other.pth"))
