"""Tokens of users, as a realm signs them."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs

import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import login
from starlette.testclient import TestClient

from lib.patches.tokens import fix

KEY, OTHER = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.fixture
def realm(monkeypatch):
    """A server that tells its public key, and who knows the password, as Keycloak does."""
    text = "".join(PUBLIC.decode().splitlines()[1:-1])
    told = SimpleNamespace(starting=False)

    class Realm(BaseHTTPRequestHandler):
        def answer(self, status: int, content: dict) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def do_GET(self):
            token = {} if told.starting else {"token_endpoint": f"{told.uri}/token"}
            self.answer(
                200, token if self.path.startswith("/.well-known") else {"public_key": text}
            )

        def do_POST(self):
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            if body["client_id"] != ["monailabel-app"]:
                self.answer(401, {"error": "invalid_client"})
            elif body["password"] == ["right"]:
                self.answer(200, {"access_token": "t", "token_type": "Bearer", "more": 1})
            else:
                self.answer(
                    401, {"error": "invalid_grant", "error_description": "Invalid user credentials"}
                )

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Realm) as host:
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
        told.uri = f"http://127.0.0.1:{host.server_port}"
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", told.uri)
        server = FastAPI()
        server.include_router(login.router)
        fix(server)
        told.browser = TestClient(server)
        yield told
        host.shutdown()


def claims(seconds=60):
    return {
        "preferred_username": "ann",
        "realm_access": {"roles": ["monailabel-user"]},
        "exp": time.time() + seconds,
    }


def show(realm, token: str):
    return realm.browser.get("/auth/token/valid", headers={"Authorization": f"Bearer {token}"})


def log_in(realm, password: str):
    return realm.browser.post("/auth/token", data={"username": "ann", "password": password})


def test_a_token_of_the_realm_is_its_user(realm):
    user = show(realm, jwt.encode(claims(), KEY, "RS256")).json()
    assert (user["username"], user["roles"]) == ("ann", ["monailabel-user"])


def test_any_other_token_is_refused(realm):
    header, body, _ = jwt.encode(claims(), KEY, "RS256").split(".")
    tokens = [
        jwt.encode(claims(), OTHER, "RS256"),
        jwt.encode(claims(-60), KEY, "RS256"),
        jwt.encode(claims(), "", "none"),
        jwt.encode(claims(), KEY, "RS512"),
        jwt.encode({key: value for key, value in claims().items() if key != "exp"}, KEY, "RS256"),
        jwt.encode(
            {key: value for key, value in claims().items() if key != "preferred_username"},
            KEY,
            "RS256",
        ),
        jwt.encode({**claims(), "realm_access": 3}, KEY, "RS256"),
        jwt.encode({**claims(), "realm_access": {"roles": [3]}}, KEY, "RS256"),
        jwt.encode(
            {key: value for key, value in claims().items() if key != "realm_access"}, KEY, "RS256"
        ),
        f"{header}.{body}.",
    ]
    for token in tokens:
        assert show(realm, token).status_code == 401


def test_a_wrong_password_is_reported(realm):
    assert log_in(realm, "right").json() == {"access_token": "t", "token_type": "Bearer"}
    refusal = log_in(realm, "wrong")
    assert refusal.status_code == 401
    assert refusal.json()["detail"].startswith("password: found another")


def test_a_missing_realm_is_an_error_until_it_answers(realm, monkeypatch):
    def refused(answer) -> str:
        assert answer.status_code == 502
        assert "127.0.0.1" not in answer.json()["detail"]
        return answer.json()["detail"]

    realm.starting = True
    assert "no token_endpoint" in refused(log_in(realm, "right"))
    realm.starting = False
    assert log_in(realm, "right").json()["access_token"] == "t"
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_CLIENT_ID", "another")
    assert "401 invalid_client" in refused(log_in(realm, "right"))
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", "http://127.0.0.1:9")
    assert "MONAI_LABEL_AUTH_REALM_URI" in refused(log_in(realm, "right"))
    assert "ConnectionError" in refused(show(realm, jwt.encode(claims(), KEY, "RS256")))
