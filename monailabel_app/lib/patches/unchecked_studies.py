"""What requests may read and change of the studies and of sessions, checked before MONAI Label does it."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from fastapi import HTTPException, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints import datastore, session
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask

from lib.patches import before
from lib.schemas import check_image_info, check_label_info, check_name, json_object
from lib.store.labels import check_segments
from lib.store.uploads import check_archive, check_label, check_series, check_volume
from lib.store.volumes import read_label, values_in
from liverseg.errors import InputError
from liverseg.io.paths import nifti_suffix

# Those that MONAI Label computes.
CHECKSUMS = ("SHA256", "SHA512", "MD5")


def check_studies() -> None:
    """Check what requests ask of scans, labels and sessions."""
    before(datastore, "add_image", _check_new_image)
    before(datastore, "remove_image", lambda id, **_: _check_listed(id))
    before(datastore, "download_image", _check_download)
    before(datastore, "get_image_info", lambda image, **_: check_image(image))
    before(datastore, "update_image_info", _check_image_info)
    before(datastore, "save_label", _check_new_label)
    before(datastore, "remove_label", lambda id, tag, **_: _check_label(id, tag))
    before(datastore, "download_label", lambda label, tag, **_: _check_label(label, tag))
    before(datastore, "get_label_info", lambda label, tag, **_: _check_label(label, tag))
    before(datastore, "update_label_info", _check_label_info)
    before(datastore, "download_dataset", _check_dataset)
    datastore.download_dataset = _then_removed(datastore.download_dataset)
    before(session, "create_session", _check_new_session)
    before(session, "get_session", _check_session_image)
    before(session, "remove_session", lambda session_id, **_: check_session(session_id))
    # What `uncompress` unpacks must stay in its folder.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # type: ignore[assignment]


def _check_new_image(image: str | None, params: str, file: UploadFile, **_: Any) -> dict[str, str]:
    check_image_info("params", json_object("params", params), app_instance()._scoring_methods)
    sent = PurePath(file.filename or "").name
    # MONAI Label takes all behind the first dot for the suffix.
    name = image or sent.removesuffix(nifti_suffix(sent))
    check_name("image", name)
    check_volume("file", file, max_mb())
    # Masks and labels of names that differ in case alone would be one file on some disks.
    there = [one for one in app_instance().datastore().list_images() if one.lower() == name.lower()]
    if there:
        raise HTTPException(
            409,
            f"image: found {name!r}, expected a new one, as {there[0]!r} is there already and may have labels: choose "
            "another name, or delete that one first.",
        )
    return {"image": name}


def _check_download(image: str, check_sum: str | None, **_: Any) -> None:
    check_image(image)
    kind, colon, _digest = (check_sum or "").partition(":")
    if colon and kind not in CHECKSUMS:
        raise InputError(
            f"check_sum: found {kind!r}, expected one of {', '.join(CHECKSUMS)}: choose one."
        )


def _check_image_info(image: str, info: str, **_: Any) -> None:
    check_image(image)
    check_image_info("info", json_object("info", info), app_instance()._scoring_methods)


def _check_new_label(
    image: str, params: str, tag: str, label: UploadFile, **_: Any
) -> dict[str, str]:
    info, tag, store = (
        json_object("params", params),
        tag or DefaultLabelTag.FINAL,
        app_instance().datastore(),
    )
    check_label_info("params", info)
    check_image(image)
    check_name("tag", tag)
    check_name("label", PurePath(label.filename or "").name)
    values = check_label(label, store.get_image_uri(image), max_mb())
    if not (info.get("label_info") or info.get("params", {}).get("label_names")):
        # Who sends no names has drawn on with those of the label before.
        known = store.get_label_info(image, tag)
        info |= {key: known[key] for key in ("label_info", "params") if known.get(key)}
    _check_segments(tag, values, info)
    return {"params": json.dumps(info)}


def _check_label_info(label: str, tag: str, info: str, **_: Any) -> None:
    _check_label(label, tag)
    given, store = json_object("info", info), app_instance().datastore()
    check_label_info("info", given)
    values = values_in(read_label(store.get_label_uri(label, tag)))
    _check_segments(tag, values, {**store.get_label_info(label, tag), **given})


def _check_segments(tag: str, values: list[int], info: dict[str, Any]) -> None:
    # Of others than final ones nobody learns.
    if tag == DefaultLabelTag.FINAL:
        try:
            check_segments(
                values,
                info,
                {name: bundle.labels for name, bundle in app_instance().bundles.items()},
            )
        except InputError as error:
            raise InputError(f"label: {error}") from error


def _check_dataset(limit_cases: int | None, **_: Any) -> None:
    if limit_cases is not None and limit_cases < 1:
        raise InputError(
            f"limit_cases: found {limit_cases}, expected a number above 0: leave it out for all."
        )
    if not app_instance().datastore().get_labeled_images():
        raise HTTPException(
            404, "dataset: found no scan with a final label, expected one: label a scan first."
        )


def _then_removed(download: Callable[..., FileResponse]) -> Callable[..., FileResponse]:
    def answer(*args: Any, **kwargs: Any) -> FileResponse:
        response = download(*args, **kwargs)
        response.background = BackgroundTask(os.unlink, response.path)
        return response

    return answer


def _check_new_session(files: list[UploadFile], uncompress: bool, expiry: int, **_: Any) -> None:
    for file in files:
        check_name("files", PurePath(file.filename or "").name)
    if expiry < 0:
        raise InputError(
            f"expiry: found {expiry} s, expected 0 (the server's own) or more: fix it."
        )
    if len(files) == 1:
        (check_archive if uncompress else check_volume)("files", files[0], max_mb())
    elif uncompress:
        raise InputError(
            f"uncompress: found {len(files)} files, expected one archive: send one, or leave it out."
        )
    else:
        check_series("files", files, max_mb())


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


def check_image(image: str) -> None:
    """Refuse a scan that is not in the studies, or cannot be read.

    Raises:
        HTTPException: 404 with some that are.
        InputError: for one that is no volume.
    """
    if not image or not app_instance().datastore().get_image_uri(image):
        raise _not_there(image)


def _check_listed(image: str) -> None:
    if image not in app_instance().datastore().list_images():
        raise _not_there(image)


def _not_there(image: str) -> HTTPException:
    known = sorted(app_instance().datastore().list_images())
    some = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    return HTTPException(
        404,
        f"image: found {image!r}, expected the id of one in the studies ({some or 'none'}): upload it first.",
    )


def _check_label(label: str, tag: str) -> None:
    store = app_instance().datastore()
    check_image(label)
    if not store.get_label_uri(label, tag):
        raise HTTPException(
            404,
            f"label: found none of {label!r} with the tag {tag!r}, expected one: save it first.",
        )


def max_mb() -> int:
    """The largest upload in 10⁶ bytes."""
    return app_instance().max_upload_mb
