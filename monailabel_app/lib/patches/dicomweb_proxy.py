"""OHIF's way to the DICOM server, with the app's password, passes on any path but no query.

MONAI Label passes on paths that lead out of DICOMweb, and any POST with all of the user's headers,
a token among them; but neither the query, so that filters do nothing, nor `Accept`, so that
compressed pictures come in a form that OHIF did not ask for:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/proxy.py#L33-L94
"""

from __future__ import annotations

import functools
import re
from typing import Any

import requests
import urllib3
from fastapi import FastAPI, HTTPException, Request, Response
from monailabel.config import settings
from monailabel.endpoints import proxy

from lib.patches.endpoints import replace

# Of the headers of an answer; the others are for this server alone, such as cookies and whom it
# lets in.
PASSED_ON = (
    "cache-control",
    "content-encoding",
    "content-location",
    "content-type",
    "etag",
    "last-modified",
    "warning",
)


def fix(server: FastAPI) -> None:
    """Pass on what DICOMweb asks, and nothing else."""
    # The last one answers first, and `proxy` answers all addresses.
    endpoints = {"": proxy.proxy, "qido": proxy.proxy_qido, "wado": proxy.proxy_wado}
    for op, endpoint in {**endpoints, "stow": proxy.proxy_stow}.items():
        replace(server, endpoint, functools.partial(pass_on, op=op))


async def pass_on(request: Request, op: str, path: str, **_: Any) -> Response:
    """Ask the DICOM server for `path`; `op` is `qido`, `wado`, `stow` or nothing.

    Raises:
        HTTPException: 404 and 405 for what is no DICOMweb, 502 where the server does not answer.
    """
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
            f"{request.url.path}: found no answer of the DICOM server ({type(error).__name__}), "
            "expected one: see whether it runs.",
        ) from error
    passed_on = {key: value for key, value in found.headers.items() if key.lower() in PASSED_ON}
    return Response(content, found.status_code, passed_on)


def _check(request: Request, path: str) -> None:
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise HTTPException(
            404,
            f"{request.url.path}: found a folder as studies, expected a DICOM server: use "
            "/datastore.",
        )
    if not re.fullmatch(r"(studies|series|instances|bulkdata)(/[\w,-][\w.,-]*)*/?", path, re.ASCII):
        raise HTTPException(
            404, f"path: found {path!r}, expected studies/… as in DICOMweb: fix the address."
        )
    if request.method != "GET" and not re.fullmatch(r"studies(/[\d.]+)?", path):
        raise HTTPException(
            405, f"path: found POST for {path!r}, expected studies, to store: use GET to read."
        )
