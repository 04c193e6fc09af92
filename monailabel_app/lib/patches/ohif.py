"""OHIF as MONAI Label brings it proposes port 8000, whatever its own is, and sends no token.

https://github.com/Project-MONAI/MONAILabel/pull/1588 asks for the first. MONAI Label also asks for
a token that no browser sends with an address, and finds none of the files in folders, as it joins
their path with `os.pathsep`:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/ohif.py#L31-L50
"""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints import ohif

from lib.patches.endpoints import answer_first

FOLDER = Path(ohif.__file__).parent / "static" / "ohif"
PANEL, CONFIG = "3933.bundle.92d0a0e9bc7e6861b7c9.js", "app-config.js"
# Of the panel: what stands there, and what it must be.
CHANGES = {
    # Port 8000, or what OHIF of another server of this machine left as a cookie.
    (
        "CookieUtils.getCookieString('MONAILABEL_SERVER_URL', "
        "'http://' + window.location.host.split(':')[0] + ':8000/')"
    ): "window.location.origin + '/'",
    "'http://127.0.0.1:8000'": "window.location.origin",
    # It sends no token, as the rest of OHIF does.
    "return new MonaiLabelClient(": (
        "Object.assign(axios_default().defaults.headers.common, "
        "props.servicesManager.services.userAuthenticationService.getAuthorizationHeader()); "
        "return new MonaiLabelClient("
    ),
}


def fix(server: FastAPI) -> None:
    """Serve OHIF's own files to all, as they hold nothing of anyone, and its panel for this server.

    Where a token is asked for, OHIF is told where its user logs in.
    """
    files = {
        file.relative_to(FOLDER).as_posix(): file for file in FOLDER.rglob("*") if file.is_file()
    }
    panel, config = files[PANEL].read_text(), files[CONFIG].read_text()
    for old, new in CHANGES.items():
        assert panel.count(old) == 1, f"{PANEL}: {old}"
        panel = panel.replace(old, new)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        realm = {
            "authority": settings.MONAI_LABEL_AUTH_REALM_URI,
            "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
            "redirect_uri": "/callback",
            "response_type": "code",
            "scope": "openid",
        }
        # With a slash at its end, OHIF comes back from the login to the login.
        config += "window.config.routerBasename = '/ohif';\n"
        config += f"window.config.oidc = {json.dumps([realm])};\n"
    changed = {PANEL: panel, CONFIG: config}

    def page(path: str) -> Response:
        if path in changed:
            return Response(
                changed[path], media_type="text/javascript", headers={"Cache-Control": "no-cache"}
            )
        # All else is an address within the page.
        return FileResponse(files.get(path, files["index.html"]))

    answer_first(server, "/ohif/{path:path}", page)
