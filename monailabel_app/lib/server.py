"""What MONAI Label's server lacks: each fault is met by one function or class, none by editing MONAI Label."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, MutableMapping
from types import SimpleNamespace
from typing import Any

import anyio
import jwt
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user import auth
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from lib.checks import check_requests
from liverseg.bundle import sentence
from liverseg.errors import InputError

logger = logging.getLogger(__name__)


def mend(server: FastAPI, inferences: int, max_upload_mb: int) -> None:
    """Put everything of this module into MONAI Label's server, when it has started and before its first request.

    Args:
        server: `monailabel.app.app`.
        inferences: at most so many run at once; others wait for their turn.
        max_upload_mb: the largest request in 10⁶ bytes.
    """
    check_requests()
    check_tokens()
    answer_with_sentences(server)
    # Starlette has put its middleware together for the start itself, and does so anew for the next request.
    server.middleware_stack = None
    server.add_middleware(Threads, inferences=inferences)
    server.add_middleware(UploadLimit, max_mb=max_upload_mb)


class Threads:
    """Answer each request in a thread with an event loop of its own.

    MONAI Label's endpoints are coroutines that block: one inference would hold up everyone.
    """

    def __init__(self, app: Callable, inferences: int) -> None:
        self.app = app
        self.inferences = anyio.CapacityLimiter(inferences)
        self.others = anyio.CapacityLimiter(40)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        server_loop = asyncio.get_running_loop()

        def there(function: Callable) -> Callable:
            async def call(*args: Any) -> Any:
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*args), server_loop))

            return call

        infers = "/infer/" in scope["path"] and "/batch/" not in scope["path"]
        answer = self.app(scope, there(receive), there(send))
        await anyio.to_thread.run_sync(asyncio.run, answer, limiter=self.inferences if infers else self.others)


class UploadLimit:
    """Refuse requests of more than `max_mb` · 10⁶ bytes with 413, before they fill the disk."""

    def __init__(self, app: Callable, max_mb: int) -> None:
        self.app = app
        self.max_mb = max_mb

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
        """Pass one request on, as long as it is small enough."""
        length = dict(scope.get("headers", [])).get(b"content-length", b"0")
        announced = int(length) if length.isdigit() else 0
        received = 0

        async def receive_some() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(announced, received) > self.max_mb * 10**6:
                raise HTTPException(
                    413,
                    f"upload: found more than {max(announced, received) // 10**6} MB, expected at most {self.max_mb} "
                    "MB: send a smaller file, or start the server with a larger --conf max_upload_mb.",
                )
            return message

        await self.app(scope, receive_some, send)


def answer_with_sentences(server: FastAPI) -> None:
    """Answer errors with `{"detail": sentence}`, where MONAI Label answers with a bare 500.

    400 for what the user can mend, 404 for an image or a label that is not there, 500 for the rest. All are in the
    server's log, as OHIF shows none of them; those of 500 with the traceback. Only the log says in which folders of the
    server a file is.
    """

    def answer(request: Request, error: Exception) -> JSONResponse:
        status, detail = _status(request, error)
        logger.warning("%s %s: %d %s", request.method, request.url.path, status, detail)
        return JSONResponse({"detail": _without_folders(detail)}, status)

    for kind in (InputError, RequestValidationError, MONAILabelException, HTTPException, Exception):
        server.add_exception_handler(kind, answer)


def _status(request: Request, error: Exception) -> tuple[int, Any]:
    if isinstance(error, HTTPException) and error.status_code == 429:
        return 429, f"{request.url.path}: found one that runs, expected none: wait for its end, or cancel it (DELETE)."
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        what = "nothing" if first["type"] == "missing" else f"{first['input']!r:.100}"
        return 400, f"{where}: found {what}, expected otherwise ({first['msg']}): mend the request."
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return 404, f"{error.msg}: see /datastore/?output=all for what is there."
    if isinstance(error, MONAILabelException):
        return 400 if error.error == MONAILabelError.INVALID_INPUT else 500, error.msg
    said = sentence(error)
    if said:
        return 400, said
    # MONAI wraps what fails in a config in errors that say nothing of it.
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return 500, f"{request.url.path} failed ({reason}): see the server's log."


def _without_folders(detail: Any) -> Any:
    if not isinstance(detail, str):
        return detail
    sent = os.path.join(tempfile.gettempdir(), "tmp")
    detail = re.sub(re.escape(sent) + r"\w{8}(\.\w+)+", "the upload", detail)
    given = [settings.MONAI_LABEL_STUDIES, settings.MONAI_LABEL_SESSION_PATH, os.getcwd(), sys.prefix]
    given += [tempfile.gettempdir(), os.path.expanduser("~")]
    folders = {os.path.realpath(folder) for folder in given} | {folder for folder in given if os.path.isabs(folder)}
    for folder in sorted(folders - {"/"}, key=len, reverse=True):
        detail = detail.replace(f"{folder.rstrip('/')}/", "")
    return detail


def check_tokens() -> None:
    """Accept the tokens that `MONAI_LABEL_AUTH_ENABLE` asks for, if the realm's key has signed them.

    MONAI Label does not say how they are signed, and PyJWT refuses all since its version 2: without that, whoever knows
    the public key could sign tokens with it as a password. RS256 is what Keycloak signs with.
    """
    auth.jwt = SimpleNamespace(decode=functools.partial(jwt.decode, algorithms=["RS256"]))
