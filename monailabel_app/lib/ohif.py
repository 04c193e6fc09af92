"""OHIF as MONAI Label brings it, for whatever address the server has."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif

from lib.patches import answer_first

FOLDER = Path(ohif.__file__).parent / "static" / "ohif"
PANEL = "3933.bundle.92d0a0e9bc7e6861b7c9.js"
# Of the panel: what stands there, and what it must be.
CHANGES = {
    # Port 8000, or what OHIF of another server of this machine left as a cookie.
    "CookieUtils.getCookieString('MONAILABEL_SERVER_URL', 'http://' + window.location.host.split(':')[0] + ':8000/')": (
        "window.location.origin + '/'"
    ),
    "'http://127.0.0.1:8000'": "window.location.origin",
    # It sends no token, as the rest of OHIF does.
    "return new MonaiLabelClient(": (
        "Object.assign(axios_default().defaults.headers.common, "
        "props.servicesManager.services.userAuthenticationService.getAuthorizationHeader()); "
        "return new MonaiLabelClient("
    ),
}


def serve_ohif(server: FastAPI) -> None:
    """Serve OHIF's own files to all, as they hold nothing of anyone, and its panel for this server.

    MONAI Label asks for a token that no browser sends with an address, finds none of the files in folders, and proposes
    port 8000 whatever its own is.
    """
    files = {file.relative_to(FOLDER).as_posix(): file for file in FOLDER.rglob("*") if file.is_file()}
    panel = files[PANEL].read_text()
    for old, new in CHANGES.items():
        assert panel.count(old) == 1, f"{PANEL}: {old}"
        panel = panel.replace(old, new)

    def page(path: str) -> Response:
        if path == PANEL:
            return Response(panel, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
        # All else is an address within the page.
        return FileResponse(files.get(path, files["index.html"]))

    answer_first(server, "/ohif/{path:path}", page, "GET")
