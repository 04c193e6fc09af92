"""OHIF's way to the DICOM server, which is asked with the app's password."""

from __future__ import annotations

import re
from typing import Any

import requests
import urllib3
from fastapi import HTTPException, Request, Response
from monailabel.config import settings
from monailabel.endpoints import proxy

# Of the headers of an answer; the others are for this server alone, such as cookies and whom it lets in.
PASSED_ON = (
    "cache-control",
    "content-encoding",
    "content-location",
    "content-type",
    "etag",
    "last-modified",
    "warning",
)


def pass_on_dicomweb() -> None:
    """Pass on to the DICOM server what DICOMweb asks of it, and nothing else.

    MONAI Label passes on any path, also those that lead out of DICOMweb, and any POST; but neither the query, so that
    filters do nothing, nor `Accept`, so that compressed pictures come in a form that OHIF did not ask for. The rest of
    the headers, a user's token among them, it gives away with a POST.
    """
    proxy.proxy_dicom = _pass_on


async def _pass_on(request: Request, op: str, path: str) -> Response:
    """Ask the DICOM server for `path`; `op` is `qido`, `wado`, `stow` or nothing."""
    _check(request, path)
    prefixes = {
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    # OHIF asks for them with QIDO's address.
    prefix = prefixes.get("wado" if op == "qido" and path.endswith("metadata") else op)
    address = "/".join(filter(None, [settings.MONAI_LABEL_STUDIES.rstrip("/"), prefix, path]))
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    headers: Any = {
        key: request.headers.get(key) for key in ("accept", "accept-encoding", "content-type")
    }
    try:
        found = requests.request(
            request.method,
            address,
            params=request.url.query,
            headers=headers,
            data=await request.body(),
            auth=(user, password) if user and password else None,
            timeout=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
            stream=True,
        )
        content = found.raw.read()
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise HTTPException(
            502,
            f"{request.url.path}: found no answer of the DICOM server ({type(error).__name__}), expected one: see "
            "whether it runs.",
        ) from error
    passed_on = {key: value for key, value in found.headers.items() if key.lower() in PASSED_ON}
    return Response(content, found.status_code, passed_on)


def _check(request: Request, path: str) -> None:
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise HTTPException(
            404,
            f"{request.url.path}: found a folder as studies, expected a DICOM server: use /datastore.",
        )
    if not re.fullmatch(r"(studies|series|instances|bulkdata)(/[\w,-][\w.,-]*)*/?", path, re.ASCII):
        raise HTTPException(
            404, f"path: found {path!r}, expected studies/… as in DICOMweb: fix the address."
        )
    if request.method != "GET" and not re.fullmatch(r"studies(/[\d.]+)?", path):
        raise HTTPException(
            405, f"path: found POST for {path!r}, expected studies, to store: use GET to read."
        )
