"""What MONAI Label's server lacks: each fault is met by one function or class, none by editing MONAI Label."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints import datastore, infer
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.utils.others.generic import remove_file
from starlette.middleware.cors import CORSMiddleware

from lib.patches import answer_first
from lib.patches.any_web_page import OwnPages, own_hosts
from lib.patches.blocking_endpoints import Threads, UploadLimit
from lib.patches.ohif import serve_ohif
from lib.patches.proxy import pass_on_dicomweb
from lib.patches.tokens import check_tokens
from lib.patches.unchecked_tasks import check_requests
from lib.store.dicom_server import DicomServerError
from liverseg.errors import InputError, sentence

logger = logging.getLogger(__name__)


def fix_server(
    server: FastAPI, inferences: int, max_upload_mb: int, hosts: str, origins: Sequence[str]
) -> None:
    """Put everything of this module into MONAI Label's server, when it has started and before its first request.

    Args:
        server: `monailabel.app.app`.
        inferences: at most so many run at once; others wait for their turn.
        max_upload_mb: the largest request in 10⁶ bytes.
        hosts: names that it is reached by, separated by commas.
        origins: of other pages that may ask it.

    Raises:
        InputError: for what is no name.
    """
    check_requests()
    remove_leftovers()
    pass_on_dicomweb()
    check_tokens()
    # Whoever asks for it would throw the app away, with all that it knows.
    server.router.routes[:] = [
        route for route in server.router.routes if getattr(route, "path", "") != "/reload"
    ]
    for path in ("/infer/wsi/{model}", "/infer/wsi_v2/{model}"):
        answer_first(server, path, _refuse_whole_slides, "POST")
    serve_ohif(server)
    answer_with_sentences(server)
    host = _listens_on()
    names = own_hosts(hosts, host)
    _say_who_is_answered(host, names, origins)
    # Starlette has put its middleware together for the start itself, and does so anew for the next request.
    server.middleware_stack = None
    # Of its own, MONAI Label lets all pages in; with MONAI_LABEL_CORS_ORIGINS it does not start.
    server.user_middleware = [
        one for one in server.user_middleware if one.cls is not CORSMiddleware
    ]
    server.add_middleware(Threads, inferences=inferences)
    server.add_middleware(UploadLimit, max_mb=max_upload_mb)
    if origins:
        server.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    server.add_middleware(OwnPages, hosts=names, origins=origins)


def _refuse_whole_slides(model: str) -> None:
    raise HTTPException(
        404,
        f"model: found {model!r} asked for a whole slide, expected /infer: this app has volumes.",
    )


def _listens_on() -> str:
    """The address that MONAI Label's server was started with, which it tells nobody."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", "--host", default="0.0.0.0")
    return parser.parse_known_args()[0].host


def _say_who_is_answered(host: str, names: list[str], origins: Sequence[str]) -> None:
    logger.info(
        "Answered are programs and this server's own pages, at its addresses and the names %s; other pages: %s.",
        ", ".join(names),
        ", ".join(origins) or "none",
    )
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    if not alone and not settings.MONAI_LABEL_AUTH_ENABLE:
        logger.warning(
            "%s: whoever reaches this machine over a network can read and delete scans, labels and models, as nobody "
            "is asked for a password: start the server with --host 127.0.0.1, close the port in the firewall, or set "
            "MONAI_LABEL_AUTH_ENABLE.",
            host,
        )


def answer_with_sentences(server: FastAPI) -> None:
    """Answer errors with `{"detail": sentence}`, where MONAI Label answers with a bare 500.

    400 for what the user can fix, 404 for an image or a label that is not there, 503 for a DICOM server that does not
    answer, 500 for the rest. All are in the server's log, as OHIF shows none of them; those of 500 with the traceback.
    Only the log says in which folders of the server a file is.
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
            f"{request.url.path}: found one that runs, expected none: wait for its end, or cancel it (DELETE).",
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

    for module, name in (
        (infer, "run_inference"),
        (datastore, "add_image"),
        (datastore, "save_label"),
    ):
        setattr(module, name, removing(getattr(module, name)))
    infer.nifti_to_dicom_seg = noted
