"""A session takes any files, and an archive writes outside its folder when it is unpacked.

https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/session.py#L57-L97 and
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/utils/sessions.py#L110-L155
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile
from monailabel.endpoints import session
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions

from lib.patches.endpoints import check
from lib.schemas import check_name
from lib.store.uploads import check_archive, check_series, check_volume
from liverseg.errors import InputError


def fix(server: FastAPI) -> None:
    """Check what requests ask of sessions."""
    check(server, session.api_create_session, _check_new_session)
    check(server, session.api_get_session, _check_session_image)
    check(server, session.api_remove_session, lambda session_id, **_: check_session(session_id))


class SafeSessions(Sessions):
    """MONAI Label's, whose archives are unpacked in their folder; those of the app."""

    def add_session(
        self,
        data_file: str,
        expiry: int = 0,
        uncompress: bool = False,
        session_id: str | None = None,
    ) -> tuple[str, SessionInfo]:
        """As MONAI Label's."""
        if uncompress and os.path.isfile(data_file):
            folder = tempfile.mkdtemp()
            # Of ZIP files Python unpacks nothing outside anyway, and takes no filter.
            options: Any = {} if data_file.lower().endswith(".zip") else {"filter": "data"}
            shutil.unpack_archive(data_file, folder, **options)
            data_file = folder
        return super().add_session(data_file, expiry, session_id=session_id)


def _check_new_session(files: list[UploadFile], uncompress: bool, expiry: int, **_: Any) -> None:
    for file in files:
        check_name("files", PurePath(file.filename or "").name)
    if expiry < 0:
        raise InputError(
            f"expiry: found {expiry} s, expected 0 (the server's own) or more: fix it."
        )
    if len(files) == 1:
        (check_archive if uncompress else check_volume)("files", files[0])
    elif uncompress:
        raise InputError(
            f"uncompress: found {len(files)} files, expected one archive: send one, or leave it "
            "out."
        )
    else:
        check_series("files", files)


def _check_session_image(session_id: str, image: bool, **_: Any) -> None:
    check_session(session_id)
    if image and not os.path.isfile(app_instance().sessions().get_session(session_id).image):
        raise HTTPException(
            404,
            f"image: found a folder in session {session_id!r}, expected one file: leave it out.",
        )


def check_session(session_id: str) -> None:
    """Refuse a session that is not there.

    Raises:
        HTTPException: 404 for it.
        InputError: for what is no name.
    """
    check_name("session_id", session_id)
    if app_instance().sessions().get_session(session_id) is None:
        raise HTTPException(
            404, f"session_id: found no session {session_id!r}, expected one: create it anew."
        )
