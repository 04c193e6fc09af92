"""How requests reach the endpoints: slow ones, and what is left of refused ones."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
import requests

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from fastapi import FastAPI, Request
from helpers.waiting import wait_until

from lib.patches import blocking_endpoints

# --- slow clients


def test_slow_clients_hold_up_nobody(server):
    address = urlparse(server.url)

    def begin(path: str) -> socket.socket:
        one = socket.create_connection((address.hostname, address.port))
        one.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n[".encode()
        )
        return one

    slow = [begin("/infer/two_d?image=plain") for _ in range(3)] + [
        begin("/train/two_d") for _ in range(41)
    ]
    try:
        time.sleep(0.3)
        assert requests.post(f"{server.url}/infer/two_d?image=plain", timeout=60).status_code == 200
        assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
    finally:
        for one in slow:
            one.close()


def ask(app, path: str, messages: list[dict]) -> list[dict]:
    """What an ASGI app answers to a request; after its messages, nothing comes any more."""

    async def run() -> list[dict]:
        left, answered = list(messages), []

        async def receive() -> dict:
            return left.pop(0) if left else await asyncio.Future()

        async def send(message: dict) -> None:
            answered.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
        await asyncio.wait_for(app(scope, receive, send), 20)
        return answered

    return asyncio.run(run())


@pytest.mark.parametrize(
    "size", [0, 1000, blocking_endpoints.CHUNK_BYTES, 3 * blocking_endpoints.CHUNK_BYTES + 1]
)
def test_a_body_arrives_whole_and_what_comes_after_it(size):
    body = bytes(range(251)) * (size // 251 + 1)
    found = []

    async def app(scope, receive, send):
        request = Request(scope, receive)
        found.append(await request.body())
        found.append(await receive())

    parts = [body[start : min(start + 60000, size)] for start in range(0, size + 1, 60000)]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages += [{"type": "http.request"}, {"type": "http.disconnect"}]
    ask(blocking_endpoints.Threads(app, 1), "/", messages)
    assert found == [body[:size], {"type": "http.disconnect"}]


@pytest.mark.parametrize("path", ["/infer/two_d", "/train"])
def test_a_client_that_stops_is_refused_and_one_that_leaves_is_forgotten(monkeypatch, path):
    monkeypatch.setattr(blocking_endpoints, "IDLE_SECONDS", 0.05)
    app, bodies = FastAPI(), []

    @app.post(path)
    async def endpoint(request: Request) -> None:
        bodies.append(await request.body())

    part = {"type": "http.request", "body": b"[", "more_body": True}
    start, answer = ask(blocking_endpoints.Threads(app, 1), path, [part])
    assert start["status"] == 408
    assert b"found nothing for 0.05 s" in answer["body"]
    assert ask(blocking_endpoints.Threads(app, 1), path, [part, {"type": "http.disconnect"}]) == []
    assert bodies == []


def test_inferences_that_wait_hold_up_nothing_else():
    finish = threading.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/infer/two_d":
            finish.wait(20)
        else:
            finish.set()

    async def run() -> None:
        async def receive() -> dict:
            return {"type": "http.request"}

        threads = blocking_endpoints.Threads(app, 2)
        scopes = [{"type": "http", "path": "/infer/two_d"}] * 60 + [
            {"type": "http", "path": "/ohif/index.html"}
        ]
        await asyncio.wait_for(
            asyncio.gather(*(threads(scope, receive, None) for scope in scopes)), 10
        )

    asyncio.run(run())
    assert finish.is_set()


@pytest.mark.parametrize(("method", "path"), [("GET", "proxy/dicom/studies"), ("POST", "reload")])
def test_addresses_that_are_not_there(server, method, path):
    assert requests.request(method, f"{server.url}/{path}", timeout=60).status_code == 404


# --- what is left


@pytest.mark.parametrize(
    ("address", "field", "params", "status"),
    [
        ("infer/two_d", "file", '{"postprocessing": "polish"}', 400),
        ("infer/two_d", "file", "{}", 200),
        ("infer/scribbles?image=plain", "label", "{}", 400),
    ],
)
def test_nothing_is_left_of_an_upload(server, root, address, field, params, status):
    content = (root / "studies" / "plain.nii.gz").read_bytes()
    before = server.log.stat().st_size
    answer = requests.post(
        f"{server.url}/{address}",
        files={field: ("a.nii.gz", content)},
        data={"params": params},
        timeout=60,
    )
    assert answer.status_code == status, answer.text
    (request,) = re.findall("Infer Request: {.*}", server.log.read_text()[before:])
    key = "image" if field == "file" else "label"
    written = Path(re.search(f"'{key}': '(.+?)'", request)[1])
    assert written.name.startswith("tmp")
    # It is removed after the answer.
    wait_until(lambda: not written.exists())
