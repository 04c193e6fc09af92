"""What `liverseg serve` says before there is a server."""

from __future__ import annotations

import socket

import pytest
from bundle_runs import ROOT
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.cli import app

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


def test_a_misspelt_name_of_conf_is_said(monkeypatch):
    # The app sets it for good.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    from main import LiverSegApp

    with pytest.raises(InputError, match=r"found max_upload_md, expected .* max_upload_mb"):
        LiverSegApp("", "", {"max_upload_md": "5", "models": "unet_liver"})
