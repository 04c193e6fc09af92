"""What MONAI Label's server lacks: each fault is met by one function or class, none by editing MONAI Label."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import jwt
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints import datastore, infer, proxy
from monailabel.endpoints.user import auth
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.utils.others.generic import remove_file

from lib.checks import check_requests
from lib.dicom_server import DicomServerError
from lib.studies import before
from lib.transport import Threads, UploadLimit
from liverseg.errors import InputError, sentence

logger = logging.getLogger(__name__)


def mend(server: FastAPI, inferences: int, max_upload_mb: int) -> None:
    """Put everything of this module into MONAI Label's server, when it has started and before its first request.

    Args:
        server: `monailabel.app.app`.
        inferences: at most so many run at once; others wait for their turn.
        max_upload_mb: the largest request in 10⁶ bytes.
    """
    check_requests()
    remove_leftovers()
    check_proxy()
    check_tokens()
    # Whoever asks for it would throw the app away, with all that it knows.
    server.router.routes[:] = [route for route in server.router.routes if getattr(route, "path", "") != "/reload"]
    answer_with_sentences(server)
    # Starlette has put its middleware together for the start itself, and does so anew for the next request.
    server.middleware_stack = None
    server.add_middleware(Threads, inferences=inferences)
    server.add_middleware(UploadLimit, max_mb=max_upload_mb)


def answer_with_sentences(server: FastAPI) -> None:
    """Answer errors with `{"detail": sentence}`, where MONAI Label answers with a bare 500.

    400 for what the user can mend, 404 for an image or a label that is not there, 503 for a DICOM server that does not
    answer, 500 for the rest. All are in the
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
        return 503 if isinstance(error, DicomServerError) else 400, said
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


def check_proxy() -> None:
    """Pass on to the DICOM server what DICOMweb asks of it, and nothing else: it is asked with the app's password.

    MONAI Label passes on any path, also those that lead out of DICOMweb, and any POST.
    """

    def check(request: Request, path: str, **_: Any) -> None:
        if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
            raise HTTPException(
                404, f"{request.url.path}: found a folder as studies, expected a DICOM server: use /datastore."
            )
        if not re.fullmatch(r"(studies|series|instances|bulkdata)(/[\w,-][\w.,-]*)*/?", path, re.ASCII):
            raise HTTPException(404, f"path: found {path!r}, expected studies/… as in DICOMweb: mend the address.")
        if request.method != "GET" and not re.fullmatch(r"studies(/[\d.]+)?", path):
            raise HTTPException(405, f"path: found POST for {path!r}, expected studies, to store: use GET to read.")

    before(proxy, "proxy_dicom", check)


def remove_leftovers() -> None:
    """Remove what MONAI Label has written of a request where it is refused, too: by itself it does so after answers.

    The DICOM SEG of an inference it never removes.
    """
    written: ContextVar[BackgroundTasks] = ContextVar("written")

    def removing(original: Callable) -> Callable:
        def call(background_tasks: BackgroundTasks, *args: Any, **kwargs: Any) -> Any:
            written.set(background_tasks)
            try:
                return original(background_tasks, *args, **kwargs)
            except Exception:
                for task in background_tasks.tasks:
                    task.func(*task.args, **task.kwargs)
                raise

        return call

    make_dicom_seg = infer.nifti_to_dicom_seg

    def noted(*args: Any, **kwargs: Any) -> Any:
        path = make_dicom_seg(*args, **kwargs)
        written.get().add_task(remove_file, path)
        return path

    for module, name in ((infer, "run_inference"), (datastore, "add_image"), (datastore, "save_label")):
        setattr(module, name, removing(getattr(module, name)))
    infer.nifti_to_dicom_seg = noted
