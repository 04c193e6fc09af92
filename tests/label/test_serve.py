"""What `liverseg serve` says before there is a server."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
from bundle_runs import ROOT, make_scan, save
from rich.console import Console
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.serve import _prepare_phantoms

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')


def test_help_has_examples():
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "120"}).output
    assert "liverseg serve --studies data/scans" in shown
    assert "127.0.0.1" in shown


def test_a_taken_port_a_missing_app_and_missing_studies_are_said(tmp_path):
    here = ["serve", "--studies", str(tmp_path), "--app"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error = CliRunner().invoke(app, [*here, str(ROOT / "monailabel_app"), "--port", port]).exception
    assert isinstance(error, InputError)
    assert "--port" in str(error)
    error = CliRunner().invoke(app, [*here, str(tmp_path)]).exception
    assert isinstance(error, InputError)
    assert "main.py" in str(error)
    nowhere = tmp_path / "typo"
    error = (
        CliRunner().invoke(app, ["serve", "--studies", str(nowhere), "--app", str(ROOT / "monailabel_app")]).exception
    )
    assert isinstance(error, InputError)
    assert "--studies" in str(error)
    assert not nowhere.exists()
    error = CliRunner().invoke(app, ["serve", "--studies", "", "--app", str(ROOT / "monailabel_app")]).exception
    assert isinstance(error, InputError)
    assert "--studies: found ''" in str(error)


@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_is_none_is_said(port):
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


def serve_at(folder, host, port):
    (folder / "main.py").touch()
    here = ["serve", "--app", str(folder), "--out", str(folder / "out"), "--port", str(port), "--host", host]
    error = CliRunner().invoke(app, here).exception
    assert isinstance(error, InputError)
    return str(error)


def test_the_phantoms_bundle_gets_its_weights_where_a_folder_for_them_is_there(tmp_path):
    shutil.copytree(ROOT / "bundles" / "deeplabv3_liver" / "configs", tmp_path / "bundles/deeplabv3_liver/configs")
    own = "out/deeplabv3_liver"
    for folder in (f"{own}/models", f"{own}/training", "out/phantoms", "app/model/deeplabv3_liver_phantoms/models"):
        (tmp_path / folder).mkdir(parents=True)
    # All that comes before is done.
    image, label = make_scan(0)
    save(tmp_path / "out/phantoms/image.nii.gz", image)
    save(tmp_path / "out/phantoms/label.nii.gz", label)
    test = [{"image": "image.nii.gz", "label": "label.nii.gz"}]
    (tmp_path / "out/phantoms/dataset.json").write_text(json.dumps({"training": [], "test": test}))
    (tmp_path / own / "training/metrics.json").touch()
    (tmp_path / own / "models/model.pt").write_bytes(b"weights")
    studies = _prepare_phantoms(Console(quiet=True), tmp_path / "out", tmp_path / "app")
    assert [file.name for file in studies.iterdir()] == ["image.nii.gz"]
    assert (tmp_path / "app/model/deeplabv3_liver_phantoms/models/model.pt").read_bytes() == b"weights"


def test_a_misspelt_name_of_conf_is_said(monkeypatch):
    # The app sets it for good.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    from main import LiverSegApp

    with pytest.raises(InputError, match=r"found max_upload_md, expected .* max_upload_mb"):
        LiverSegApp("", "", {"max_upload_md": "5", "models": "unet_liver"})


def test_another_version_of_monai_label_is_refused(monkeypatch):
    from lib import patches

    patches.check_version()
    monkeypatch.setattr(patches, "VERSION", "0.9.1")
    with pytest.raises(InputError, match=r"found monailabel 0\.8\.5, expected 0\.9\.1"):
        patches.check_version()
