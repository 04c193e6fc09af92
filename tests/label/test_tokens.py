"""Tokens of users, as a realm signs them."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from monailabel.config import settings
from monailabel.endpoints.user import auth

from lib.server import check_tokens

KEY, OTHER = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def realm(monkeypatch):
    """A server that tells its public key as Keycloak does."""
    text = "".join(PUBLIC.decode().splitlines()[1:-1])

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"public_key": text}).encode())

    with HTTPServer(("127.0.0.1", 0), Realm) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(auth, "jwt", auth.jwt)
        check_tokens()
        yield
        server.shutdown()


def claims(seconds=60):
    return {"preferred_username": "ann", "realm_access": {"roles": ["monailabel-user"]}, "exp": time.time() + seconds}


def test_a_token_of_the_realm_is_its_user(realm):
    user = auth.from_token(jwt.encode(claims(), KEY, "RS256"))
    assert (user.username, user.roles) == ("ann", ["monailabel-user"])


def test_any_other_token_is_refused(realm):
    header, body, _ = jwt.encode(claims(), KEY, "RS256").split(".")
    tokens = [
        jwt.encode(claims(), OTHER, "RS256"),
        jwt.encode(claims(-60), KEY, "RS256"),
        jwt.encode(claims(), "", "none"),
        jwt.encode(claims(), KEY, "RS512"),
        f"{header}.{body}.",
    ]
    for token in tokens:
        with pytest.raises(jwt.InvalidTokenError):
            auth.from_token(token)
