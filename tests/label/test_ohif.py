"""OHIF's own files as the server gives them to browsers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import ohif
from starlette.testclient import TestClient

from lib.patches.ohif import CONFIG, PANEL, fix

FOLDER = Path(ohif.__file__).parent / "static" / "ohif"


def open_browser() -> TestClient:
    """A server with MONAI Label's addresses of OHIF, and ours before them."""
    server = FastAPI()
    server.include_router(ohif.router)
    fix(server)
    return TestClient(server)


def test_the_panel_is_for_the_server_that_it_comes_from():
    browser = open_browser()
    there, given = (FOLDER / PANEL).read_text(), browser.get(f"/ohif/{PANEL}").text
    assert there.count(":8000") == 2 and ":8000" not in given
    assert given.count("window.location.origin") == there.count("window.location.origin") + 2
    # The rest is as it was, so that it still is a program.
    assert [line for line in given.splitlines() if line not in there.splitlines()] == [
        *(
            "    const _url = window.location.origin + '/';",
            "    this.serverURI = window.location.origin;",
        ),
        "      Object.assign(axios_default().defaults.headers.common, "
        "props.servicesManager.services.userAuthenticationService.getAuthorizationHeader()); "
        "return new MonaiLabelClient(settings ? settings.url : this.serverURI);",
    ]


def test_files_in_folders_are_found_and_nothing_outside():
    browser = open_browser()
    name = "assets/favicon-16x16.png"
    answer = browser.get(f"/ohif/{name}")
    assert (answer.content, answer.headers["content-type"]) == (
        (FOLDER / name).read_bytes(),
        "image/png",
    )
    page = (FOLDER / "index.html").read_text()
    for address in ("", "viewer/any", "assets", "..%2F..%2Fproxy.py", "%2Fetc%2Fpasswd", "a%00b"):
        assert browser.get(f"/ohif/{address}").text == page


def test_ohif_needs_no_token_and_says_where_to_log_in(monkeypatch):
    assert open_browser().get(f"/ohif/{CONFIG}").text == (FOLDER / CONFIG).read_text()
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(
        settings, "MONAI_LABEL_AUTH_REALM_URI", "https://login.example/realms/liver"
    )
    browser = open_browser()
    for path in ("", "app.bundle.css", PANEL):
        assert browser.get(f"/ohif/{path}").status_code == 200
    config = browser.get(f"/ohif/{CONFIG}").text
    (line,) = (line for line in config.splitlines() if line.startswith("window.config.oidc = "))
    (realm,) = json.loads(line.removeprefix("window.config.oidc = ").rstrip(";"))
    assert realm["authority"] == "https://login.example/realms/liver"
    assert realm["client_id"] == "monailabel-app"
