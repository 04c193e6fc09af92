"""No token of a user is valid, and a realm that does not answer is a bare 500.

MONAI Label does not say how tokens are signed, and PyJWT refuses all since its version 2: without
that, whoever knows the public key could sign tokens with it as a password. A token that does not
say until when it is valid would be valid for ever, and one that lacks a user is a 500:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/user/auth.py#L80-L107
A wrong password is a 500 too:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/login.py#L42-L59
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import jwt
import requests
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordRequestForm
from monailabel.config import settings
from monailabel.endpoints import login
from monailabel.endpoints.user import auth

from lib.patches.endpoints import replace

logger = logging.getLogger(__name__)


def fix(server: FastAPI) -> None:
    """Accept what the realm's key has signed, until it expires; answer all else with 401 or 502."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        server.dependency_overrides[auth.get_current_user] = current_user
        replace(server, login.access_token, log_in)


async def current_user(token: str = Depends(auth.oauth2_scheme)) -> auth.User:
    """The user of a token.

    Raises:
        HTTPException: 401 for a token that is not valid, 502 for a realm that does not answer.
    """
    key = _ask_realm("public_key")
    try:
        claims = jwt.decode(
            token,
            f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----",
            # What Keycloak signs with.
            algorithms=["RS256"],
            options={"verify_aud": False, "require": ["exp"]},
        )
        roles: Any = claims
        for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
            roles = roles.get(part)
        return auth.User(
            username=claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME),
            email=claims.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
            name=claims.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME),
            roles=roles or [],
        )
    # Also claims that are missing, or of another form.
    except (jwt.InvalidTokenError, AttributeError, TypeError, ValueError) as error:
        logger.error("token: %s", f"{error}".splitlines()[0])
        raise HTTPException(
            401, "Could not validate credentials", {"WWW-Authenticate": "Bearer"}
        ) from error


async def log_in(form_data: OAuth2PasswordRequestForm) -> dict[str, Any]:
    """A token for a user and a password.

    Raises:
        HTTPException: 401 for a wrong password, 502 for a realm that does not answer.
    """
    sent = {
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "username": form_data.username,
        "password": form_data.password,
        "grant_type": "password",
    }
    try:
        address = _ask_realm("token_endpoint", "/.well-known/openid-configuration")
        response = requests.post(address, data=sent, timeout=30)
        error = response.json().get("error")
    except (AttributeError, requests.RequestException, ValueError) as failure:
        raise _no_realm(type(failure).__name__) from failure
    if error == "invalid_grant":
        raise HTTPException(
            401, "password: found another than the user's, expected that one: log in again."
        )
    if error or not response.ok:
        raise _no_realm(f"{response.status_code} {error or ''}".strip())
    return response.json()


def _ask_realm(key: str, path: str = "") -> str:
    try:
        return _read_realm(settings.MONAI_LABEL_AUTH_REALM_URI + path, key)
    except (requests.RequestException, TypeError, ValueError) as error:
        raise _no_realm(type(error).__name__) from error
    # As a realm answers that only starts.
    except KeyError as error:
        raise _no_realm(f"no {key}") from error


@functools.cache
def _read_realm(address: str, key: str) -> str:
    response = requests.get(address, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
    response.raise_for_status()
    found = response.json()[key]
    if not found:
        raise KeyError(key)
    return str(found)


def _no_realm(found: str) -> HTTPException:
    return HTTPException(
        502,
        f"realm: found no answer as Keycloak gives it ({found}), expected one: see whether it "
        "runs, and set MONAI_LABEL_AUTH_REALM_URI and MONAI_LABEL_AUTH_CLIENT_ID.",
    )
