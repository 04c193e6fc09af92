"""Whatever a request sends becomes a scan or a label: files that are none, wrong grids, any name.

MONAI Label writes what it gets, over what is there; a tag may hold `*`, and a name may lead out of
the folder:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/datastore.py#L61-L196
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile
from monailabel.endpoints import datastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance

from lib.patches.endpoints import Endpoint, check
from lib.schemas import ImageInfo, LabelInfo, check_name, read
from lib.store.labels import check_segments
from lib.store.uploads import check_label, check_volume
from lib.store.volumes import read_label, values_in
from liverseg.errors import InputError
from liverseg.io.paths import nifti_suffix

# Those that MONAI Label computes.
CHECKSUMS = ("SHA256", "SHA512", "MD5")


def fix(server: FastAPI) -> None:
    """Check what requests ask of scans and labels."""
    checks: dict[Endpoint, Endpoint] = {
        datastore.api_add_image: _check_new_image,
        datastore.api_remove_image: lambda id, **_: _check_listed(id),
        datastore.api_check_image: _check_download,
        datastore.api_download_image: lambda image, **_: check_image(image),
        datastore.api_get_image_info: lambda image, **_: check_image(image),
        datastore.api_put_image_info: _check_image_info,
        datastore.api_save_label: _check_new_label,
        datastore.api_remove_label: lambda id, tag, **_: _check_label(id, tag),
        datastore.api_check_label: lambda image, tag, **_: _check_label(image, tag),
        datastore.api_download_label: lambda label, tag, **_: _check_label(label, tag),
        datastore.api_get_label_info: lambda label, tag, **_: _check_label(label, tag),
        datastore.api_put_label_info: _check_label_info,
        datastore.api_update_label_info: lambda params, **given: _check_label_info(
            info=params, **given
        ),
        datastore.api_download_dataset: _check_dataset,
    }
    for endpoint, look in checks.items():
        check(server, endpoint, look)


def _check_new_image(image: str | None, params: str, file: UploadFile, **_: Any) -> dict[str, str]:
    read("params", ImageInfo, params, app_instance().scores)
    sent = PurePath(file.filename or "").name
    # MONAI Label takes all behind the first dot for the suffix.
    name = image or sent.removesuffix(nifti_suffix(sent))
    check_name("image", name)
    check_volume("file", file)
    # Masks and labels of names that differ in case alone would be one file on some disks.
    there = [one for one in app_instance().datastore().list_images() if one.lower() == name.lower()]
    if there:
        raise HTTPException(
            409,
            f"image: found {name!r}, expected a new one, as {there[0]!r} is there already and may "
            "have labels: choose another name, or delete that one first.",
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
    read("info", ImageInfo, info, app_instance().scores)


def _check_new_label(
    image: str, params: str, tag: str, label: UploadFile, **_: Any
) -> dict[str, str]:
    info, store = read("params", LabelInfo, params), app_instance().datastore()
    tag = tag or DefaultLabelTag.FINAL
    check_image(image)
    check_name("tag", tag)
    check_name("label", PurePath(label.filename or "").name)
    values = check_label(label, store.get_image_uri(image))
    if not (info.get("label_info") or info.get("params", {}).get("label_names")):
        # Who sends no names has drawn on with those of the label before.
        known = store.get_label_info(image, tag)
        info |= {key: known[key] for key in ("label_info", "params") if known.get(key)}
    _check_segments(tag, values, info)
    return {"params": json.dumps(info)}


def _check_label_info(label: str, tag: str, info: str, **_: Any) -> None:
    _check_label(label, tag)
    given, store = read("info", LabelInfo, info), app_instance().datastore()
    values = values_in(read_label(store.get_label_uri(label, tag)))
    _check_segments(tag, values, {**store.get_label_info(label, tag), **given})


def _check_segments(tag: str, values: list[int], info: dict[str, Any]) -> None:
    # Only final labels are trained on.
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
        f"image: found {image!r}, expected the id of one in the studies ({some or 'none'}): "
        "upload it first.",
    )


def _check_label(label: str, tag: str) -> None:
    store = app_instance().datastore()
    check_image(label)
    if not store.get_label_uri(label, tag):
        raise HTTPException(
            404,
            f"label: found none of {label!r} with the tag {tag!r}, expected one: save it first.",
        )
