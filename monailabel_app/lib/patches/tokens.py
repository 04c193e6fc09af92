"""Users and their tokens, where `MONAI_LABEL_AUTH_ENABLE` asks for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jwt
import requests
from fastapi import HTTPException
from monailabel.endpoints import login
from monailabel.endpoints.user import auth


def check_tokens() -> None:
    """Accept the tokens that the realm's key has signed, until they expire; answer all others with 401.

    MONAI Label does not say how they are signed, and PyJWT refuses all since its version 2: without that, whoever knows
    the public key could sign tokens with it as a password. RS256 is what Keycloak signs with. It also takes a token for
    valid for ever that does not say until when, and fails at one that lacks a user, at a wrong password, and at a realm
    that does not answer.
    """
    auth.jwt = SimpleNamespace(decode=_decode)
    auth.from_token = _with_roles(auth.from_token)
    auth.get_public_key = _from_realm(auth.get_public_key)
    login.token_uri = _from_realm(login.token_uri)
    login.requests = SimpleNamespace(post=_post)  # type: ignore[assignment]


def _decode(token: str, key: str, options: Any) -> dict[str, Any]:
    return jwt.decode(token, key, algorithms=["RS256"], options={**options, "require": ["exp"]})


def _with_roles(from_token: Callable[[str], auth.User]) -> Callable[[str], auth.User]:
    @functools.wraps(from_token)
    def checked(token: str) -> auth.User:
        try:
            return from_token(token)
        # Claims that are missing, or of another form.
        except (AttributeError, TypeError, ValueError) as error:
            raise jwt.InvalidTokenError(
                f"no user and roles in it ({error})".splitlines()[0]
            ) from error

    return checked


def _from_realm(ask: Callable) -> Callable:
    @functools.wraps(ask)
    def asked(*args: Any) -> Any:
        try:
            found = ask(*args)
        except (requests.RequestException, KeyError, ValueError) as error:
            raise _no_realm(type(error).__name__) from error
        if not found:
            # MONAI Label would keep what a realm answers that only starts.
            auth.open_id_configuration.cache.clear()
            raise _no_realm("no address for tokens")
        return found

    return asked


def _post(url: str, **sent: Any) -> requests.Response:
    try:
        response = requests.post(url, **sent)
        error = response.json().get("error")
    except (AttributeError, requests.RequestException, ValueError) as failure:
        raise _no_realm(type(failure).__name__) from failure
    if error == "invalid_grant":
        raise HTTPException(
            401, "password: found another than the user's, expected that one: log in again."
        )
    if error or not response.ok:
        raise _no_realm(f"{response.status_code} {error or ''}".strip())
    return response


def _no_realm(found: str) -> HTTPException:
    return HTTPException(
        502,
        f"realm: found no answer as Keycloak gives it ({found}), expected one: see whether it runs, and set "
        "MONAI_LABEL_AUTH_REALM_URI and MONAI_LABEL_AUTH_CLIENT_ID.",
    )
