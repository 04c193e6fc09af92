"""What OHIF asks of the DICOM server, as that sees it."""

from __future__ import annotations

import asyncio
import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from urllib.parse import urlparse

import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from fastapi import HTTPException, Response
from monailabel.config import settings
from starlette.datastructures import Headers

from lib.patches.dicomweb_proxy import pass_on

PACKED = gzip.compress(b"pixels")


@pytest.fixture
def dicom(monkeypatch):
    """A server that keeps what it is asked; `ask` asks it through the proxy."""
    seen = []

    class Dicom(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(
                SimpleNamespace(line=f"{self.command} {self.path}", headers=self.headers, body=body)
            )
            self.send_response(200)
            sent = {
                "Content-Type": "multipart/related",
                "Content-Encoding": "gzip",
                "Set-Cookie": "a=b",
            }
            for name, value in {**sent, "Access-Control-Allow-Origin": "*"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(PACKED)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    def ask(method: str, op: str, path: str, body: bytes = b"", **headers: str) -> Response:
        async def read() -> bytes:
            return body

        seen.clear()
        request = SimpleNamespace(
            method=method, headers=Headers(headers), body=read, url=urlparse(f"/proxy/dicom/{path}")
        )
        return asyncio.run(pass_on(request, op, path.partition("?")[0]))

    with HTTPServer(("127.0.0.1", 0), Dicom) as host:
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(
            settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{host.server_port}/dicom-web"
        )
        yield SimpleNamespace(ask=ask, seen=seen)
        host.shutdown()


@pytest.mark.parametrize(
    ("method", "op", "path"),
    [
        ("GET", "qido", "studies"),
        (
            "GET",
            "qido",
            "studies?PatientName=Roe*&fuzzymatching=true&limit=101&ModalitiesInStudy=CT%5CMR",
        ),
        ("GET", "wado", "studies/1.2/series/1.3/metadata"),
        ("GET", "wado", "studies/1.2/series/1.3/instances/1.4/frames/1,2"),
        ("POST", "stow", "studies"),
        ("POST", "stow", "studies/1.2"),
    ],
)
def test_dicomweb_is_passed_on_with_its_query(dicom, method, op, path):
    dicom.ask(method, op, path)
    assert [one.line for one in dicom.seen] == [f"{method} /dicom-web/{path}"]


def test_metadata_are_wados_whatever_they_are_asked_as(dicom, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_QIDO_PREFIX", "qido-rs")
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "wado-rs")
    for path, prefix in (("studies", "qido-rs"), ("studies/1.2/series/1.3/metadata", "wado-rs")):
        dicom.ask("GET", "qido", path)
        assert dicom.seen[0].line == f"GET /dicom-web/{prefix}/{path}"


def test_the_form_that_ohif_asks_for_arrives_and_nothing_of_the_user(dicom):
    accept = 'multipart/related; type="image/jp2"; transfer-syntax=*'
    private = {
        "authorization": "Bearer secret",
        "cookie": "a=b",
        "host": "127.0.0.1:8000",
        "x-more": "1",
    }
    answer = dicom.ask(
        "GET", "wado", "studies/1.2/series/1.3/instances/1.4/frames/1", accept=accept, **private
    )
    (asked,) = dicom.seen
    assert asked.headers["Accept"] == accept
    assert not {"Authorization", "Cookie", "X-More"} & set(asked.headers)
    assert (
        asked.headers["Host"].startswith("127.0.0.1:") and asked.headers["Host"] != private["host"]
    )
    # As it was packed, so that the browser unpacks it; and no page of others is let in, nor a
    # cookie set.
    assert (answer.body, answer.headers["content-encoding"]) == (PACKED, "gzip")
    assert not {"access-control-allow-origin", "set-cookie"} & set(answer.headers)

    dicom.ask(
        "POST",
        "stow",
        "studies",
        b"--x--",
        **{"content-type": "multipart/related; boundary=x"},
        **private,
    )
    (asked,) = dicom.seen
    assert (asked.body, asked.headers["Content-Type"]) == (
        b"--x--",
        "multipart/related; boundary=x",
    )
    assert not {"Authorization", "Cookie", "X-More"} & set(asked.headers)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "../patients", 404),
        ("GET", "studies/../../patients", 404),
        ("GET", "studies/%2e%2e/%2e%2e/patients", 404),
        ("GET", "studies/..;/..;/patients", 404),
        ("GET", "tools/execute-script", 404),
        ("POST", "../tools/execute-script", 404),
        ("POST", "studies/1.2/reject", 405),
    ],
)
def test_nothing_else_is_passed_on(dicom, method, path, status):
    with pytest.raises(HTTPException) as refusal:
        dicom.ask(method, "", path)
    assert refusal.value.status_code == status
    assert dicom.seen == []


def test_a_dicom_server_that_is_down_is_reported(dicom, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9/dicom-web")
    with pytest.raises(HTTPException) as refusal:
        dicom.ask("GET", "qido", "studies")
    assert refusal.value.status_code == 502
    assert "no answer of the DICOM server" in refusal.value.detail
    assert "127.0.0.1" not in refusal.value.detail


def test_the_server_is_asked_with_the_password_of_the_app(dicom, monkeypatch):
    for user, password, expected in (("ohif", "secret", "Basic b2hpZjpzZWNyZXQ="), ("", "", None)):
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", user)
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", password)
        dicom.ask("GET", "qido", "studies", authorization="Bearer of-the-user")
        assert dicom.seen[0].headers.get("Authorization") == expected
