"""The archive of a bundle: the same bytes everywhere, and all that is needed to train, evaluate and infer with it."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.networks import DeepLabV3Plus
from liverseg.workbench.zoo.build import build_archive
from liverseg.workbench.zoo.cli import app

ROOT = Path(__file__).resolve().parents[2]
NAME = "deeplabv3_liver"
BUNDLE = ROOT / "bundles" / NAME
VERSION = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]


@pytest.fixture
def bundle(tmp_path):
    """A copy of the bundle to change, without weights."""
    copy = tmp_path / "bundles" / NAME
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("models", "eval", "output"))
    (copy / "LICENSE").write_text("Apache-2.0")
    return copy


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- what is in the archive


def test_holds_the_bundle_and_the_part_of_liverseg_that_runs(bundle, tmp_path):
    models = [f"models/{folder}model.{ending}" for folder in ("", "liver/axial/") for ending in ("pt", "json")]
    others = ("models/checkpoint.pt", "models/model_2024-01-01.pt", "models/liver/axial/rounds/1/model.pt")
    for name in (*models, "docs/README.md"):
        (bundle / name).parent.mkdir(exist_ok=True, parents=True)
        (bundle / name).write_text(name)
    for name in (*others, "eval/metrics.json", "docs/.DS_Store"):
        (bundle / name).parent.mkdir(exist_ok=True, parents=True)
        (bundle / name).write_text("not for others")

    archive = build_archive(bundle, tmp_path / "dist")

    assert archive == tmp_path / "dist" / f"{NAME}_v{VERSION}.zip"
    expected = {f"{NAME}/LICENSE": bundle / "LICENSE"}
    for name in models:
        expected[f"{NAME}/{name}"] = bundle / name
    for file in (bundle / "configs").iterdir():
        expected[f"{NAME}/configs/{file.name}"] = file
    for file in (bundle / "docs").iterdir():
        if file.name != ".DS_Store":
            expected[f"{NAME}/docs/{file.name}"] = file
    for file in (ROOT / "liverseg").rglob("*.py"):
        if "workbench" not in file.parts:
            expected[f"{NAME}/{file.relative_to(ROOT)}"] = file
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert sorted(packed.namelist()) == sorted(expected)
        assert all(packed.read(name) == file.read_bytes() for name, file in expected.items())


def test_another_checkout_at_another_time_gives_the_same_bytes(bundle, tmp_path):
    first = build_archive(bundle, tmp_path / "first")
    other = tmp_path / "other"
    shutil.copytree(ROOT / "liverseg", other / "liverseg")
    shutil.copytree(bundle, other / "somewhere" / NAME)
    for file in other.rglob("*"):
        os.utime(file, (1_500_000_000, 1_500_000_000))
        file.chmod(0o700)
    build = f"from liverseg.workbench.zoo.build import build_archive; build_archive('somewhere/{NAME}', '../second')"
    environment = os.environ | {"PYTHONPATH": str(other), "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", build], cwd=other, env=environment, check=True)

    assert (tmp_path / "second" / first.name).read_bytes() == first.read_bytes()


def test_command_prints_path_size_and_checksum(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    main = typer.Typer()
    main.add_typer(app, name="zoo")
    result = CliRunner().invoke(main, ["zoo", "build", NAME, "--out", str(tmp_path)], catch_exceptions=False)
    archive = tmp_path / f"{NAME}_v{VERSION}.zip"
    assert result.exit_code == 0
    assert str(archive) in result.output.splitlines()
    assert f"{archive.stat().st_size / 1e6:.1f} MB" in result.output
    assert f"sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}" in result.output
    assert ("no weights" in result.output) == (not (BUNDLE / "models" / "model.pt").exists())


# --- bad input


def test_unknown_bundle_lists_the_known_ones(bundle, tmp_path):
    with pytest.raises(InputError, match=rf"unet_liver: no bundle there.*name one of {NAME}\."):
        build_archive(bundle.parent / "unet_liver", tmp_path)


def test_metadata_without_a_required_field(bundle, tmp_path):
    edit(bundle / "configs" / "metadata.json", lambda content: content.pop("numpy_version"))
    with pytest.raises(InputError, match=r"metadata\.json: found no numpy_version"):
        build_archive(bundle, tmp_path)


def test_version_that_is_no_version(bundle, tmp_path):
    edit(bundle / "configs" / "metadata.json", lambda content: content.update(version="../0.1"))
    with pytest.raises(InputError, match=r"metadata\.json: found version '\.\./0\.1'"):
        build_archive(bundle, tmp_path)


@pytest.mark.parametrize("name", ["liverseg.losses.NoSuchLoss", "liverseg.no_such_room.Loss"])
def test_target_that_liverseg_does_not_have(bundle, tmp_path, name):
    edit(bundle / "configs" / "train.json", lambda content: content["losses"]["dice"].update(_target_=name))
    with pytest.raises(InputError, match=rf"train\.json: found {name}, expected a name that liverseg"):
        build_archive(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_function_in_an_expression_that_liverseg_does_not_have(bundle, tmp_path):
    edit(bundle / "configs" / "evaluate.json", lambda content: content.update(x="$@liverseg.data.no_such(@datalist)"))
    with pytest.raises(InputError, match=r"evaluate\.json: found liverseg\.data\.no_such"):
        build_archive(bundle, tmp_path)


def test_target_in_the_workbench_which_the_archive_lacks(bundle, tmp_path):
    name = "liverseg.workbench.zoo.build.build_archive"
    edit(bundle / "configs" / "train.json", lambda content: content["losses"]["dice"].update(_target_=name))
    with pytest.raises(InputError, match=r"train\.json: found liverseg\.workbench"):
        build_archive(bundle, tmp_path)


def test_config_made_for_another_liverseg(bundle, tmp_path):
    path = bundle / "configs" / "inference.json"
    path.write_text(path.read_text().replace("require('0.1')", "require('0.7')"))
    with pytest.raises(InputError, match=r"inference\.json: made for liverseg 0\.7, found 0\.1\.0 in .*liverseg"):
        build_archive(bundle, tmp_path)


def test_out_that_is_a_file(bundle, tmp_path):
    (tmp_path / "dist").write_text("mine")
    with pytest.raises(InputError, match="dist: the folder cannot be written"):
        build_archive(bundle, tmp_path / "dist")
    assert (tmp_path / "dist").read_text() == "mine"


# --- in an environment that has only what metadata.json lists


def link_packages(names, site_packages):
    """Link the files of the distributions `names`, and of all they require, into `site_packages`."""
    todo, done, files = list(names), set(), {}
    while todo:
        name = canonicalize_name(todo.pop())
        if name in done:
            continue
        done.add(name)
        distribution = metadata.distribution(name)
        requirements = map(Requirement, distribution.requires or ())
        todo += [need.name for need in requirements if need.marker is None or need.marker.evaluate({"extra": ""})]
        files |= {site_packages / file: file.locate() for file in distribution.files if ".." not in file.parts}
    for link, file in files.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """Run Python with the packages of the bundle's metadata.json and no others; returns what it did."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    listed = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["required_packages_version"]
    site_packages = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    link_packages(["monai", "torch", "numpy", *listed], Path(site_packages))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "2"}

    def run(*arguments, cwd=folder, check=True):
        command = [str(folder / "bin" / "python"), *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def downloaded(clean_python, tmp_path_factory):
    """The bundle's folder as `python -m monai.bundle download` leaves it."""
    served, folder = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("downloaded")
    archive = build_archive(BUNDLE, served)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        arguments = ["--name", NAME, "--version", VERSION, "--url", url, "--source", "github", "--bundle_dir", folder]
        clean_python("-m", "monai.bundle", "download", *arguments)
        server.shutdown()
    shutil.rmtree(folder / NAME / "models", ignore_errors=True)
    return folder / NAME


def check_mask(mask, scan):
    mask, scan = nib.load(mask), nib.load(scan)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["liverseg", "typer", "pytest", "jsonschema"])
def test_clean_environment_is_clean(clean_python, module):
    done = clean_python("-c", f"import {module}", check=False)
    assert done.returncode != 0
    assert f"No module named '{module}'" in done.stderr


@pytest.mark.slow
def test_downloaded_archive_trains_evaluates_and_infers(clean_python, downloaded, dataset, tmp_path):
    def run(workflow, config_file, *arguments, cwd=downloaded):
        options = ["--config_file", config_file, "--dataset_dir", dataset, "--spacing", "[6.0,6.0,-1]", *arguments]
        return clean_python("-m", "monai.bundle", "run", workflow, *options, cwd=cwd)

    few = ["--max_epochs", 2, "--val_interval", 1, "--spatial_size", "[48,48]", "--slices_per_volume", 2]
    done = run("training", "configs/train.json", *few)
    metrics = json.loads((downloaded / "eval" / "metrics.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == metrics
    assert metrics["epochs"] == 2
    assert 0 <= metrics["best_val_mean_dice"] <= 1
    assert (downloaded / "models" / "model.pt").is_file()

    run("evaluating", "['configs/train.json','configs/evaluate.json']")
    assert json.loads((downloaded / "eval" / "summary.json").read_text())

    scan, mask = dataset / "volume-4.nii", "volume-4_liver.nii.gz"
    run("inference", "configs/inference.json")
    check_mask(downloaded / "output" / mask, scan)

    away = tmp_path / "away"
    away.mkdir()
    bundle_root = ["--bundle_root", os.path.relpath(downloaded, away), "--output_dir", "masks"]
    run("inference", downloaded / "configs" / "inference.json", *bundle_root, cwd=away)
    check_mask(away / "masks" / mask, scan)
    masks = [nib.load(folder / mask).get_fdata() for folder in (downloaded / "output", away / "masks")]
    assert np.array_equal(*masks)


LOAD = """
import sys
import torch
from monai.bundle import ConfigParser
for root in sys.argv[1:]:
    parser = ConfigParser()
    parser.read_config(root + "/configs/train.json")
    parser["bundle_root"] = root
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        print(tuple(network(torch.zeros(1, 1, 64, 64)).shape), sys.modules["liverseg"].__file__)
"""


@pytest.mark.slow
def test_two_archives_in_one_process(clean_python, downloaded, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for copy in (first, second):
        shutil.copytree(downloaded, copy)
    done = clean_python("-c", LOAD, first, second)
    assert done.stdout.splitlines() == [f"(1, 2, 64, 64) {first}/liverseg/__init__.py"] * 2


@pytest.mark.slow
def test_archive_of_another_version_in_one_process_stops(clean_python, downloaded, tmp_path):
    first, newer = tmp_path / "first", tmp_path / "newer"
    for copy in (first, newer):
        shutil.copytree(downloaded, copy)
    init = newer / "liverseg" / "__init__.py"
    init.write_text(init.read_text().replace('"0.1.0"', '"0.2.0"'))
    config = newer / "configs" / "train.json"
    config.write_text(config.read_text().replace("require('0.1')", "require('0.2')"))

    clean_python("-c", LOAD, newer)
    done = clean_python("-c", LOAD, first, newer, check=False)
    assert done.returncode != 0
    assert len(done.stdout.splitlines()) == 1
    sentence = (
        f"{first}/liverseg: found liverseg 0.1.0, expected 0.2 for this bundle: install liverseg 0.2, "
        "or run bundles of different versions in processes of their own."
    )
    assert f"InputError: {sentence}\n" in done.stderr

    # In one bundle's folder, with the config of the other.
    options = ["--config_file", config, "--bundle_root", newer]
    done = clean_python("-m", "monai.bundle", "run", "training", *options, cwd=first, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"error: {sentence}"
    assert "Traceback" not in done.stderr


LOAD_BY_NAME = """
import sys
from monai.bundle import load
network = load(sys.argv[1], bundle_dir=sys.argv[2], source="github")
print(type(network).__module__, sys.modules["liverseg"].__file__, float(network.classifier.bias.sum()))
"""


@pytest.mark.slow
def test_monai_loads_the_network_from_any_folder(clean_python, downloaded, tmp_path):
    folder = tmp_path / "bundles" / NAME
    shutil.copytree(downloaded, folder)
    state = DeepLabV3Plus().state_dict()
    state["classifier.bias"] = torch.tensor([1.5, 2.0])
    (folder / "models").mkdir(exist_ok=True)
    torch.save(state, folder / "models" / "model.pt")
    done = clean_python("-c", LOAD_BY_NAME, NAME, folder.parent, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"liverseg.networks.deeplabv3plus {folder}/liverseg/__init__.py 3.5"
