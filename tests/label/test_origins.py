"""Web pages of others and the server: requests with the headers that browsers send for them."""

from __future__ import annotations

import logging
import socket
import sys
from urllib.parse import urlparse

import pytest
import requests

from liverseg.errors import InputError

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from starlette.testclient import TestClient

from lib.patches.any_web_page import OwnPages, listens_on, log_who_is_answered, own_hosts

EVIL = "http://evil.example"
# Of a page elsewhere, as Chromium 156 and Firefox 140 send them; {port} is the server's.
PAGES = {
    "fetch": {
        "Origin": EVIL,
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
        "Referer": f"{EVIL}/",
    },
    "over plain http": {"Origin": EVIL},
    "sandbox": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "another port": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "the same port elsewhere": {"Origin": "http://192.0.2.1:{port}"},
    "localhost for 127.0.0.1": {
        "Origin": "http://localhost:{port}",
        "Sec-Fetch-Site": "cross-site",
    },
    "a longer name": {"Origin": "http://127.0.0.1:{port}.evil.example"},
    "a form of an old browser": {"Referer": f"{EVIL}/form.html"},
    "a picture": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "a picture on another port": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    "rebinding": {
        "Host": "evil.example:{port}",
        "Origin": "http://evil.example:{port}",
        "Sec-Fetch-Site": "same-origin",
    },
    "rebinding over plain http": {"Host": "evil.example:{port}"},
    "rebinding with a dot": {"Host": "127.0.0.1.:{port}.evil.example"},
    "no host": {"Host": ""},
}
CHANGES = {
    "DELETE datastore/image?id=plain": {},
    "DELETE datastore/label?id=plain&tag=original": {},
    "DELETE model/two_d": {},
    "DELETE train/": {},
    "PUT datastore/image?image=evil": {"files": {"file": ("a.nii.gz", b"evil")}},
    "PUT session/": {"files": {"files": ("a.nii.gz", b"evil")}},
    "PUT datastore/image/info?image=plain": {"data": {"info": '{"evil": 1}'}},
    # A page may send these without asking first.
    "POST infer/two_d?image=plain&output=image": {
        "data": {"params": '{"save_label": true, "label_tag": "evil"}'}
    },
    "POST activelearning/first": {
        "data": '{"client_id": "evil"}',
        "headers": {"Content-Type": "text/plain"},
    },
    "POST proxy/dicom/stow/studies": {"data": b"evil", "headers": {"Content-Type": "text/plain"}},
    "POST batch/infer/two_d": {},
}
READS = (
    "datastore/?output=all",
    "logs/",
    "datastore/image?image=plain",
    "info/",
    "proxy/dicom/qido/studies",
)


@pytest.fixture
def ask(server):
    def ask(
        request: str, page: dict[str, str], headers: dict[str, str] | None = None, **sent
    ) -> requests.Response:
        method, address = request.split(" ")
        port = str(urlparse(server.url).port)
        headers = {
            key: value.replace("{port}", port) for key, value in {**(headers or {}), **page}.items()
        }
        return requests.request(
            method, f"{server.url}/{address}", headers=headers, timeout=60, **sent
        )

    return ask


@pytest.mark.parametrize("page", PAGES)
def test_no_other_page_reads_or_changes_anything(ask, page):
    there = ask("GET datastore/?output=all", {}).json()
    for request, sent in {**CHANGES, **{f"GET {address}": {} for address in READS}}.items():
        answer = ask(request, PAGES[page], **sent)
        assert answer.status_code == 403, request
        assert answer.json()["detail"].startswith(("Host: found", "Origin: found the page"))
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert ask("GET datastore/?output=all", {}).json() == there


def test_no_other_page_is_allowed(ask):
    asks = {
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = ask("OPTIONS datastore/image", {**PAGES["fetch"], **asks})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


PROGRAMS = {
    "3D Slicer": {},
    "by name": {"Host": "localhost:{port}"},
    "by another address": {"Host": "[::1]:{port}"},
    "by the machine's name": {"Host": f"{socket.gethostname().upper()}:{{port}}"},
    "by a name of --conf hosts": {"Host": "label.EXAMPLE"},
    "by hand": {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    "OHIF": {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
    "OHIF by name": {
        "Host": "localhost:{port}",
        "Origin": "http://localhost:{port}",
        "Sec-Fetch-Site": "same-origin",
    },
    "OHIF behind a proxy": {"Host": "label.example", "Origin": "https://label.example"},
    "OHIF reads": {
        "Referer": "http://127.0.0.1:{port}/ohif/viewer",
        "Sec-Fetch-Site": "same-origin",
    },
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_and_the_servers_own_pages_are_answered(ask, program):
    headers = PROGRAMS[program]
    assert ask("GET info/", headers).status_code == 200
    assert (
        ask(
            "PUT datastore/image/info?image=plain", headers, data={"info": '{"note": 1}'}
        ).status_code
        == 200
    )
    # Nobody else draws it into a page of theirs.
    answer = ask("GET datastore/", headers)
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_request_has_one_host():
    async def app(*_):
        raise AssertionError("was answered")

    browser = TestClient(OwnPages(app, ["localhost"], []))
    for hosts in (["localhost", "evil.example"], ["evil.example", "localhost"]):
        answer = browser.get("/info/", headers=[("Host", host) for host in hosts])
        assert (answer.status_code, answer.json()["detail"][:11]) == (403, "Host: found")


def test_other_pages_may_link_to_the_servers_pages(ask):
    for address in ("", "docs", "ohif/", "ohif/viewer?StudyInstanceUIDs=1.2.3"):
        answer = ask(f"GET {address}", {"Sec-Fetch-Site": "cross-site", "Referer": f"{EVIL}/"})
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert ask("POST ohif/", PAGES["fetch"]).status_code == 403


def test_a_name_is_no_address():
    assert own_hosts(" Label.example, other ", "0.0.0.0") == sorted(
        {"0.0.0.0", "label.example", "localhost", "other", socket.gethostname().lower()}
    )
    with pytest.raises(InputError, match=r"hosts: found 'http://label.example', expected names"):
        own_hosts("http://label.example", "127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["--host", "127.0.0.1"], False),
        (["-i", "::1", "--port", "8000"], False),
        (["--host=localhost"], False),
        (["--host", "0.0.0.0"], True),
        (["--host", "192.0.2.1"], True),
        ([], True),
    ],
)
def test_whoever_lets_others_in_is_warned(monkeypatch, caplog, arguments, warned):
    given = ["--app", "a", "--conf", "models", "x", "--studies", "s"]
    monkeypatch.setattr(sys, "argv", ["monailabel", "start_server", *given, *arguments])
    with caplog.at_level(logging.WARNING):
        log_who_is_answered(listens_on(), [], [])
    assert ("nobody is asked for a password" in caplog.text) == warned
