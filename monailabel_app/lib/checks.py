"""What requests may ask for, checked before MONAI Label acts on it.

The endpoints' modules call functions of their own by name, so that a check can be put before one of these; FastAPI's
and Starlette's inner workings, which change, are left alone.
"""

from __future__ import annotations

import functools
import inspect
import json
import tarfile
from collections.abc import Callable, Collection
from pathlib import PurePath
from typing import Any

from fastapi import BackgroundTasks, HTTPException, UploadFile
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, scoring, session, train, wsi_infer
from monailabel.endpoints import model as model_files
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.interfaces.utils.app import app_instance

from lib.uploads import check_label, check_volume, update_model
from liverseg.errors import InputError

# What a request says outside its `params`: there, it could name any file of the server, and code to run.
RESERVED = ("bundle_path", "image", "images", "label", "model", "session")
# What clients send beside the model's options, and all that begins with `result_`. The classes of `label_prompt` OHIF
# picks out of the mask itself.
GENERAL = (
    *("client_id", "label_info", "label_tag", "label_prompt", "logging", "restore_label_idx", "roi"),
    *("save_label", "selected_label_name", "timeout"),
)


def check_requests() -> None:
    """Check what requests ask for before MONAI Label acts on it, which it does for any name and any path."""
    _before(infer, "run_inference", _check_inference)
    _before(wsi_infer, "run_wsi_inference", _refuse_whole_slides)
    _before(batch_infer, "run", _check_batch)
    _before(train, "run_model", _check_training)
    _before(activelearning, "sample", lambda strategy, **_: _check_known("strategy", strategy, _strategies()))
    _before(scoring, "run_method", lambda method, **_: _check_known("method", method, app_instance()._scoring_methods))
    for module, name in ((train, "run"), (train, "run_model"), (scoring, "run"), (scoring, "run_method")):
        _before(module, name, lambda params, **_: _check_params(params))
    model_files.update_model = _update_model
    _before(datastore, "add_image", _check_new_image)
    _before(datastore, "save_label", _check_new_label)
    _before(session, "create_session", _check_new_session)
    # What `uncompress` unpacks must stay in its folder.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # type: ignore[assignment]


def _before(module: Any, name: str, check: Callable[..., None]) -> None:
    original = getattr(module, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        check(**given.arguments)
        return original(*args, **kwargs)

    setattr(module, name, checked)


def _strategies() -> Collection[str]:
    return app_instance()._strategies


def _check_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise HTTPException(
            404, f"{what}: found {name!r}, expected one of {', '.join(known) or 'none, as there is none'}: choose one."
        )


def _check_params(params: dict[str, Any] | None) -> None:
    own = params or {}
    # Those of all models, or of all methods, are given by name.
    for keys in (own, *(value for value in own.values() if isinstance(value, dict))):
        reserved = [key for key in RESERVED if key in keys]
        if reserved:
            raise InputError(f"params: found {', '.join(reserved)}, expected options: say these in the address.")
    if "label_tag" in own:
        _check_name("label_tag", str(own["label_tag"]))


def _check_training(model: str, params: dict[str, Any] | None, **_: Any) -> None:
    tasks = app_instance()._trainers
    _check_known("model", model, tasks)
    _check_options(model, params or {}, tasks[model].config())
    tasks[model].check(params or {}, app_instance().datastore())


def _check_options(model: str, params: Collection[str], options: Collection[str]) -> None:
    known = [*options, *GENERAL]
    for key in params:
        if key not in known and not key.startswith("result_"):
            raise InputError(f"model {model}: found option {key!r}, expected one of {', '.join(known)}: mend its name.")


def _check_batch(model: str, params: dict[str, Any] | None, **_: Any) -> None:
    _check_params(params)
    tasks = app_instance()._infers
    _check_known("model", model, tasks)
    state = tasks[model].info().get("state", "ready")
    if state != "ready":
        raise HTTPException(409, f"model {model}: {state}, and ask again.")


def _check_inference(
    model: str, image: str, session_id: str, params: str, file: UploadFile | None, label: UploadFile | None, **_: Any
) -> None:
    tasks = app_instance()._infers
    _check_known("model", model, tasks)
    asked, options = _json_object("params", params), tasks[model].config()
    if tasks[model].type == InferType.DEEPEDIT:
        options = [*options, *tasks[model].labels, "reset_state"]
        # 3D Slicer says which segment is chosen, and gives a list of clicks for every label of any model.
        labels = {name for task in tasks.values() for name in task.labels}
        asked = {key: value for key, value in asked.items() if key != "label" and not (key in labels and value == [])}
    _check_params(asked)
    _check_options(model, asked, options)
    if file is not None:
        check_volume("file", file)
    elif session_id:
        _check_name("session_id", session_id)
        if app_instance().sessions().get_session(session_id) is None:
            raise HTTPException(404, f"session_id: found no session {session_id!r}, expected one: create it anew.")
    else:
        _check_image(image)
    if label is not None:
        _check_name("label", PurePath(label.filename or "").name)


def _refuse_whole_slides(model: str, **_: Any) -> None:
    raise HTTPException(404, f"model: found {model!r} asked for a whole slide, expected /infer: this app has volumes.")


def _check_new_image(image: str | None, params: str, file: UploadFile, **_: Any) -> None:
    _json_object("params", params)
    _check_name("image", image or PurePath(file.filename or "").name)
    check_volume("file", file)


def _check_new_label(image: str, params: str, tag: str, label: UploadFile, **_: Any) -> None:
    _json_object("params", params)
    _check_image(image)
    _check_name("tag", tag or "final")
    _check_name("label", PurePath(label.filename or "").name)
    check_label(label, app_instance().datastore().get_image_uri(image))


def _update_model(background_tasks: BackgroundTasks, model: str, file: UploadFile) -> dict[str, Any]:
    app = app_instance()
    _check_known("model", model, app._infers)
    return update_model(app.bundles.get(model), model, file)


def _check_new_session(files: list[UploadFile], **_: Any) -> None:
    for file in files:
        _check_name("files", PurePath(file.filename or "").name)


def _check_image(image: str) -> None:
    store = app_instance().datastore()
    if not image or not store.get_image_uri(image):
        known = sorted(store.list_images())
        some = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
        raise HTTPException(
            404, f"image: found {image!r}, expected the id of one in the studies ({some or 'none'}): upload it first."
        )


def _check_name(what: str, name: str) -> None:
    if not name or name.startswith(".") or any(part in name for part in "/\\") or not name.isprintable():
        raise InputError(f"{what}: found {name!r}, expected a name without slashes and leading dot: rename it.")


def _json_object(what: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"{what}: found no JSON ({error}), expected an object of options: mend it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{what}: found {value!r}, expected an object of options by name: mend it.")
    return value
