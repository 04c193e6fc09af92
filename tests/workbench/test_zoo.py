"""The archive of a bundle: the same bytes everywhere, and all that its commands need."""

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
from helpers.waiting import SECONDS
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


def write_models(bundle, *folders, **values):
    """Write different weights into these folders of `models/`; return their names in the bundle."""
    names = [Path("models", folder, "model.pt").as_posix() for folder in folders]
    for number, name in enumerate(names):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": torch.full((2,), float(number)), **values}, bundle / name)
    return names


def in_archive(archive):
    """The content of each file by its name below the bundle's folder."""
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert {name.partition("/")[0] for name in packed.namelist()} == {NAME}
        return {name.partition("/")[2]: packed.read(name) for name in packed.namelist()}


NOT_PACKED = (
    "models/checkpoint.pt",
    "models/model_2024-01-01.pt",
    "models/liver/axial/rounds/1/model.pt",
    "models/versions/2026-01-01T00-00-00/model.pt",
    "models/.ipynb_checkpoints/model.pt",
    "eval/metrics.json",
    "configs/._train.json",
    "configs/.ipynb_checkpoints/train.json",
    "configs/__pycache__/a.pyc",
    "docs/.DS_Store",
    "docs/.git/config",
)


def test_holds_the_bundle_and_the_part_of_liverseg_that_runs(bundle, tmp_path):
    # One network; one for each organ, as a README trains them; and those of a cascade.
    models = write_models(bundle, "", "right_kidney", "liver/axial")
    for name in (
        *(name.replace(".pt", ".json") for name in models),
        "docs/README.md",
        "docs/pictures/a.png",
    ):
        (bundle / name).parent.mkdir(exist_ok=True, parents=True)
        (bundle / name).write_text(name)
    for name in NOT_PACKED:
        (bundle / name).parent.mkdir(exist_ok=True, parents=True)
        (bundle / name).write_bytes(b"\x00 not for others")

    archive = build_archive(bundle, tmp_path / "dist")

    assert archive == tmp_path / "dist" / f"{NAME}_v{VERSION}.zip"
    expected = {
        file.relative_to(bundle).as_posix(): file for file in bundle.rglob("*") if file.is_file()
    }
    # Sources of configs and documents are for who has the repository.
    not_packed = {*NOT_PACKED, "bundle.json", "README.md.j2", "data_license.txt.j2"}
    expected = {name: file for name, file in expected.items() if name not in not_packed}
    for file in (ROOT / "liverseg").rglob("*.py"):
        if "workbench" not in file.parts:
            expected[file.relative_to(ROOT).as_posix()] = file
    found = in_archive(archive)
    assert sorted(found) == sorted(expected)
    assert {
        *models,
        "models/right_kidney/model.json",
        "docs/pictures/a.png",
        "configs/logging.conf",
    } <= set(found)
    for name, file in expected.items():
        if name.startswith("configs/") and name.endswith(".json"):
            packed, config = json.loads(found[name]), json.loads(file.read_text())
            # These find the liverseg that is in the archive, and take no other patch of it.
            assert {key for key in config if packed[key] != config[key]} <= {"imports", "liverseg"}
        else:
            assert found[name] == file.read_bytes(), name
    assert (
        b"require('0.1.0')" in found["configs/train.json"]
        and b"require('0.1.0')" in found["configs/inference.json"]
    )
    # It can be packed again.
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    again = build_archive(tmp_path / "unpacked" / NAME, tmp_path / "again")
    assert again.read_bytes() == archive.read_bytes()


def test_another_checkout_at_another_time_gives_the_same_bytes(bundle, tmp_path):
    write_models(bundle, "", "spleen")
    first = build_archive(bundle, tmp_path / "first")
    other = tmp_path / "other"
    shutil.copytree(ROOT / "liverseg", other / "liverseg")
    shutil.copytree(bundle, other / "somewhere" / NAME)
    for file in other.rglob("*"):
        os.utime(file, (1_500_000_000, 1_500_000_000))
        file.chmod(0o700)
    build = "from liverseg.workbench.zoo.build import build_archive; "
    build += f"build_archive('somewhere/{NAME}', '../second')"
    environment = os.environ | {"PYTHONPATH": str(other), "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", build]
    subprocess.run(command, cwd=other, env=environment, check=True, timeout=SECONDS)

    assert (tmp_path / "second" / first.name).read_bytes() == first.read_bytes()


def test_a_linked_bundle_is_called_as_the_link_is(bundle, tmp_path):
    write_models(bundle, "")
    archive = build_archive(bundle, tmp_path / "dist")
    bundle.rename(tmp_path / "3f2a")
    bundle.symlink_to(tmp_path / "3f2a")
    linked = build_archive(bundle, tmp_path / "linked")
    assert (linked.name, linked.read_bytes()) == (archive.name, archive.read_bytes())


NOT_MERGED = "no models/model.pt, which MONAI's model zoo and ckpt_export ask for"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ([], ["no weights: there are none in bundles/deeplabv3_liver/models"]),
        ([""], ["with the weights models/model.pt"]),
        (
            ["", "lesion/axial", "liver/localise"],
            [
                "with the weights models/lesion/axial/model.pt, models/liver/localise/model.pt, "
                "models/model.pt"
            ],
        ),
        (
            ["liver", "spleen"],
            ["with the weights models/liver/model.pt, models/spleen/model.pt", NOT_MERGED],
        ),
    ],
)
def test_command_prints_path_size_weights_and_checksum(
    bundle, tmp_path, monkeypatch, folders, words
):
    write_models(bundle, *folders)
    monkeypatch.chdir(tmp_path)
    main = typer.Typer()
    main.add_typer(app, name="zoo")
    result = CliRunner().invoke(main, ["zoo", "build", NAME], catch_exceptions=False)
    archive = Path("dist") / f"{NAME}_v{VERSION}.zip"
    assert result.exit_code == 0
    path, size, *weights, checksum = result.output.splitlines()
    assert path == str(archive)
    assert size.startswith(f"{archive.stat().st_size / 1e6:.1f} MB")
    assert weights == words
    assert checksum == f"sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}"


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
    edit(
        bundle / "configs" / "train.json",
        lambda content: content["losses"]["dice"].update(_target_=name),
    )
    with pytest.raises(
        InputError, match=rf"train\.json: found {name}, expected a name that liverseg"
    ):
        build_archive(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_function_in_an_expression_that_liverseg_does_not_have(bundle, tmp_path):
    edit(
        bundle / "configs" / "evaluate.json",
        lambda content: content.update(x="$@liverseg.data.no_such(@datalist)"),
    )
    with pytest.raises(InputError, match=r"evaluate\.json: found liverseg\.data\.no_such"):
        build_archive(bundle, tmp_path)


def test_target_in_the_workbench_which_the_archive_lacks(bundle, tmp_path):
    name = "liverseg.workbench.zoo.build.build_archive"
    edit(
        bundle / "configs" / "train.json",
        lambda content: content["losses"]["dice"].update(_target_=name),
    )
    with pytest.raises(InputError, match=r"train\.json: found liverseg\.workbench"):
        build_archive(bundle, tmp_path)


def test_config_made_for_another_liverseg(bundle, tmp_path):
    path = bundle / "configs" / "inference.json"
    path.write_text(path.read_text().replace("require('0.1')", "require('0.7')"))
    with pytest.raises(
        InputError, match=r"inference\.json: made for liverseg 0\.7, found 0\.1\.0 in .*liverseg"
    ):
        build_archive(bundle, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(bundle, tmp_path, value):
    write_models(bundle, "", "spleen", bias=torch.tensor([1.0, value]))
    with pytest.raises(InputError, match=r"models/model\.pt: found NaN or infinity .*bias"):
        build_archive(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_weights_that_are_damaged(bundle, tmp_path):
    (name,) = write_models(bundle, "spleen")
    (bundle / name).write_bytes((bundle / name).read_bytes()[:100])
    with pytest.raises(
        InputError, match=r"spleen/model\.pt is truncated, damaged or no weights file"
    ):
        build_archive(bundle, tmp_path / "dist")


def test_out_that_is_a_file(bundle, tmp_path):
    (tmp_path / "dist").write_text("mine")
    with pytest.raises(InputError, match="dist: the folder cannot be written"):
        build_archive(bundle, tmp_path / "dist")
    assert (tmp_path / "dist").read_text() == "mine"


# --- in an environment that has only what metadata.json lists


def link_packages(names, site_packages):
    """Link the files of these distributions, and of all that they require, into `site_packages`."""
    todo, done, files = list(names), set(), {}
    while todo:
        name = canonicalize_name(todo.pop())
        if name in done:
            continue
        done.add(name)
        distribution = metadata.distribution(name)
        requirements = map(Requirement, distribution.requires or ())
        todo += [
            need.name
            for need in requirements
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
        files |= {
            site_packages / file: file.locate()
            for file in distribution.files
            if ".." not in file.parts
        }
    for link, file in files.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """Run Python with the packages of the bundle's metadata.json alone; return the result."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    listed = json.loads((BUNDLE / "configs" / "metadata.json").read_text())[
        "required_packages_version"
    ]
    site_packages = sysconfig.get_path(
        "purelib", "venv", {"base": str(folder), "platbase": str(folder)}
    )
    link_packages(["monai", "torch", "numpy", *listed], Path(site_packages))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "2"}

    def run(*arguments, cwd=folder, check=True):
        command = [str(folder / "bin" / "python"), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
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
        arguments = [
            "--name",
            NAME,
            "--version",
            VERSION,
            "--url",
            url,
            "--source",
            "github",
            "--bundle_dir",
            folder,
        ]
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
def test_downloaded_archive_trains_in_its_folder_and_infers_from_another(
    clean_python, downloaded, dataset, tmp_path
):
    """All that its README says is run in `tests/bundles/test_archives.py`."""

    def run(workflow, config_file, *arguments, cwd=downloaded):
        options = [
            "--config_file",
            config_file,
            "--dataset_dir",
            dataset,
            "--spacing",
            "[6.0,6.0,-1]",
            *arguments,
        ]
        return clean_python("-m", "monai.bundle", "run", workflow, *options, cwd=cwd)

    few = [
        "--max_epochs",
        1,
        "--val_interval",
        1,
        "--spatial_size",
        "[48,48]",
        "--slices_per_volume",
        2,
    ]
    done = run("training", "configs/train.json", *few)
    metrics = json.loads((downloaded / "eval" / "metrics.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == metrics
    assert metrics["epochs"] == 1
    assert 0 <= metrics["best_val_mean_dice"] <= 1

    away, scan, mask = tmp_path / "away", dataset / "volume-4.nii", "volume-4_liver.nii.gz"
    away.mkdir()
    bundle_root = ["--bundle_root", os.path.relpath(downloaded, away), "--output_dir", "masks"]
    run("inference", downloaded / "configs" / "inference.json", *bundle_root, cwd=away)
    check_mask(away / "masks" / mask, scan)


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
def test_archive_of_another_patch_in_one_process_stops(clean_python, downloaded, tmp_path):
    first, newer = tmp_path / "first", tmp_path / "newer"
    for copy in (first, newer):
        shutil.copytree(downloaded, copy)
    init = newer / "liverseg" / "__init__.py"
    init.write_text(init.read_text().replace('"0.1.0"', '"0.1.1"'))
    config = newer / "configs" / "train.json"
    config.write_text(config.read_text().replace("require('0.1.0')", "require('0.1.1')"))

    clean_python("-c", LOAD, ".", cwd=newer)
    done = clean_python("-c", LOAD, first, newer, check=False)
    assert done.returncode != 0
    assert len(done.stdout.splitlines()) == 1
    message = (
        f"{first}/liverseg: found liverseg 0.1.0, expected 0.1.1 for this bundle: run it in its "
        "own process, started in its folder if there is a liverseg in it, and else with liverseg "
        "0.1.1 installed."
    )
    assert f"InputError: {message}\n" in done.stderr

    # In one bundle's folder, with the config of the other.
    options = ["--config_file", config, "--bundle_root", newer]
    done = clean_python("-m", "monai.bundle", "run", "training", *options, cwd=first, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in done.stderr


LOAD_BY_NAME = """
import sys
from monai.bundle import load
network = load(sys.argv[1], bundle_dir=sys.argv[2], source="github")
bias = float(network.classifier.bias.sum())
print(type(network).__module__, sys.modules["liverseg"].__file__, bias)
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
    assert (
        done.stdout.splitlines()[-1]
        == f"liverseg.networks.deeplabv3plus {folder}/liverseg/__init__.py 3.5"
    )
