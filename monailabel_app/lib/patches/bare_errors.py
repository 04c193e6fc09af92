"""Errors are answered with a bare 500 and no word of what is wrong.

MONAI Label 0.8.5 has a handler for none of its exceptions:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/app.py#L57-L72
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from lib.store.dicom_server import DicomServerError
from liverseg.errors import InputError, sentence

logger = logging.getLogger(__name__)


def fix(server: FastAPI) -> None:
    """Answer errors with `{"detail": message}`.

    400 for what the user can fix, 404 for an image or a label that is not there, 503 for a DICOM
    server that does not answer, 500 for the rest. All are in the server's log, as OHIF shows none
    of them; those of 500 with the traceback. Only the log says in which folders of the server a
    file is.
    """

    def answer(request: Request, error: Exception) -> JSONResponse:
        status, detail = _status(request, error)
        logger.warning("%s %s: %d %s", request.method, request.url.path, status, detail)
        return JSONResponse({"detail": _without_folders(detail)}, status)

    for kind in (InputError, RequestValidationError, MONAILabelException, HTTPException, Exception):
        server.add_exception_handler(kind, answer)


def _status(request: Request, error: Exception) -> tuple[int, Any]:
    if isinstance(error, HTTPException) and error.status_code == 429:
        return (
            429,
            f"{request.url.path}: found one that runs, expected none: wait for its end, or cancel "
            "it (DELETE).",
        )
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        what = "nothing" if first["type"] == "missing" else f"{first['input']!r:.100}"
        return 400, f"{where}: found {what}, expected otherwise ({first['msg']}): fix the request."
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return 404, f"{error.msg}: see /datastore/?output=all for what is there."
    if isinstance(error, MONAILabelException):
        return 400 if error.error == MONAILabelError.INVALID_INPUT else 500, error.msg
    message = sentence(error)
    if message:
        return 503 if isinstance(error, DicomServerError) else 400, message
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
    given = [
        settings.MONAI_LABEL_STUDIES,
        settings.MONAI_LABEL_SESSION_PATH,
        os.getcwd(),
        sys.prefix,
    ]
    given += [tempfile.gettempdir(), os.path.expanduser("~")]
    folders = {os.path.realpath(folder) for folder in given} | {
        folder for folder in given if os.path.isabs(folder)
    }
    for folder in sorted(folders - {"/"}, key=len, reverse=True):
        detail = detail.replace(f"{folder.rstrip('/')}/", "")
    return detail
