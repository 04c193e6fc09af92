"""What requests may ask for, checked before MONAI Label acts on it.

The endpoints' modules call functions of their own by name, so that a check can be put before one of these; FastAPI's
and Starlette's inner workings, which change, are left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from fastapi import BackgroundTasks, HTTPException, UploadFile
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import activelearning, batch_infer, infer, scoring, train
from monailabel.endpoints import model as model_files
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.interfaces.utils.app import app_instance

from lib.infer.segment import Segmentation
from lib.patches import before
from lib.patches.unchecked_studies import check_image, check_session, check_studies, max_mb
from lib.schemas import check_json, check_name, json_object
from lib.store.uploads import check_volume, update_model
from liverseg.errors import InputError
from liverseg.io.paths import NIFTI_SUFFIXES, nifti_suffix

# What a request says outside its `params`: there, it could name any file of the server, and code to run.
RESERVED = ("bundle_path", "image", "images", "label", "model", "session")
# What clients send beside the model's options, and all that begins with `result_`. The classes of `label_prompt` OHIF
# picks out of the mask itself.
GENERAL = (
    *(
        "client_id",
        "label_info",
        "label_tag",
        "label_prompt",
        "logging",
        "restore_label_idx",
        "roi",
    ),
    *("save_label", "selected_label_name", "timeout"),
)
# Of a batch, beside the model's options.
NUMBERS = ("max_batch_size", "max_workers")


def check_requests() -> None:
    """Check what requests ask for before MONAI Label acts on it, which it does for any name and any path."""
    before(infer, "run_inference", _check_inference)
    before(batch_infer, "run", _check_batch)
    before(train, "run", _check_trainings)
    before(train, "run_model", _check_training)
    before(activelearning, "sample", _check_sample)
    before(scoring, "run", _check_scorings)
    before(scoring, "run_method", _check_scoring)
    model_files.update_model = _update_model
    check_studies()


def _check_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise HTTPException(
            404,
            f"{what}: found {name!r}, expected one of {', '.join(known) or 'none, as there is none'}: choose one.",
        )


def _check_params(params: Mapping[str, Any], *more: str) -> None:
    # Those of all models, or of all methods, are given by name.
    for keys in (params, *(value for value in params.values() if isinstance(value, dict))):
        reserved = [key for key in (*RESERVED, *more) if key in keys]
        if reserved:
            raise InputError(
                f"params: found {', '.join(reserved)}, expected options: say these in the address."
            )
    if "label_tag" in params:
        check_name("label_tag", params["label_tag"])


def _check_task(
    params: Mapping[str, Any], run_sync: bool | None, names: Collection[str], *more: str
) -> None:
    """Of what runs in a process of its own, for one or all of `names`."""
    check_json("params", params)
    _check_params(params, *more)
    if run_sync:
        raise InputError(
            "run_sync: found true, expected false, because nobody could see or cancel it: ask without it, and then for "
            "the status."
        )
    for name in names:
        if not isinstance(params.get(name, {}), dict):
            raise InputError(
                f"params: found {params[name]!r} for {name}, expected an object of options: fix it."
            )


def _check_trainings(params: dict[str, Any] | None, run_sync: bool | None, **_: Any) -> None:
    tasks, given = app_instance()._trainers, params or {}
    _check_task(given, run_sync, tasks)
    common = {key: value for key, value in given.items() if key not in tasks}
    for name in tasks:
        _check_training(name, {**given.get(name, {}), **common}, run_sync)


def _check_training(
    model: str, params: dict[str, Any] | None, run_sync: bool | None, **_: Any
) -> None:
    tasks = app_instance()._trainers
    _check_known("model", model, tasks)
    _check_task(params or {}, run_sync, [])
    _check_options(model, params or {}, tasks[model].config())
    tasks[model].check(params or {}, app_instance().datastore())


def _check_sample(strategy: str, params: dict[str, Any] | None, **_: Any) -> None:
    _check_known("strategy", strategy, app_instance()._strategies)
    check_json("params", params or {})
    _check_params(params or {}, "strategy")


def _check_scorings(params: dict[str, Any] | None, run_sync: bool | None, **_: Any) -> None:
    _check_task(params or {}, run_sync, app_instance()._scoring_methods, "method")


def _check_scoring(
    method: str, params: dict[str, Any] | None, run_sync: bool | None, **_: Any
) -> None:
    _check_known("method", method, app_instance()._scoring_methods)
    _check_task(params or {}, run_sync, [], "method")


def _check_options(model: str, params: Collection[str], options: Collection[str]) -> None:
    known = [*options, *GENERAL]
    for key in params:
        if key not in known and not key.startswith("result_"):
            raise InputError(
                f"model {model}: found option {key!r}, expected one of {', '.join(known)}: fix its name."
            )


def _check_batch(
    model: str, params: dict[str, Any] | None, run_sync: bool | None, **_: Any
) -> None:
    tasks = {
        name: task
        for name, task in app_instance()._infers.items()
        if isinstance(task, Segmentation)
    }
    _check_known("model", model, tasks)
    state, given = tasks[model].info()["state"], params or {}
    if state != "ready":
        raise HTTPException(409, f"model {model}: {state}, and ask again.")
    _check_task(given, run_sync, [])
    _check_options(model, given, [*tasks[model].config(), *NUMBERS, "gpus", "multi_gpu"])
    for key in NUMBERS:
        if type(given.get(key, 0)) is not int or given.get(key, 0) < 0:
            raise InputError(
                f"option {key}: found {given[key]!r}, expected a whole number from 0: fix it."
            )
    if not isinstance(given.get("gpus", ""), str):
        raise InputError(
            f'option gpus: found {given["gpus"]!r}, expected text like "0,1" or "all": fix it.'
        )
    # Final labels are what is trained on and scored against.
    if given.get("label_tag") == DefaultLabelTag.FINAL:
        raise InputError(
            "label_tag: found 'final', expected another, because masks that nobody has seen would be trained on: leave "
            "it out, and submit those that are right."
        )
    tasks[model].settings(given)


def _check_inference(
    model: str,
    image: str,
    session_id: str,
    params: str,
    file: UploadFile | None,
    label: UploadFile | None,
    output: str | None,
    **_: Any,
) -> None:
    tasks = app_instance()._infers
    _check_known("model", model, tasks)
    asked, options = json_object("params", params), tasks[model].config()
    if tasks[model].type == InferType.DEEPEDIT:
        options = [*options, *tasks[model].labels, "reset_state"]
        # 3D Slicer says which segment is chosen, and gives a list of clicks for every label of any model.
        labels = {name for task in tasks.values() for name in task.labels}
        asked = {
            key: value
            for key, value in asked.items()
            if key != "label" and not (key in labels and value == [])
        }
    _check_params(asked)
    _check_options(model, asked, options)
    if output == "dicom_seg":
        if not isinstance(app_instance().datastore(), DICOMWebDatastore):
            raise InputError(
                "output: found dicom_seg, expected image, as the studies are no DICOM server: ask for it."
            )
        if file is not None or session_id or not asked.get("label_info"):
            raise InputError(
                "output: found dicom_seg, expected it with image and label_info in params: send both."
            )
    if file is not None:
        check_volume("file", file, max_mb())
    elif session_id:
        check_session(session_id)
    else:
        check_image(image)
    if label is not None:
        name = PurePath(label.filename or "").name
        check_name("label", name)
        if not nifti_suffix(name):
            raise InputError(
                f"label: found {name!r}, expected a file {' or '.join(NIFTI_SUFFIXES)}: convert it."
            )


def _update_model(
    background_tasks: BackgroundTasks, model: str, file: UploadFile
) -> dict[str, Any]:
    app = app_instance()
    _check_known("model", model, app._infers)
    return update_model(app.bundles.get(model), model, file)
