"""Endpoints run what a request asks for, whatever its name, path or option.

In its `params`, a request may name any file of the server and code to run, and what is no option is
passed over in silence; nobody can see or cancel a training with `run_sync`:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/infer.py#L116-L189 and
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/utils/async_tasks/task.py#L21-L50
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import activelearning, batch_infer, infer, scoring, train
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.interfaces.utils.app import app_instance

from lib.infer.segment import Segmentation
from lib.patches.endpoints import check
from lib.patches.unchecked_sessions import check_session
from lib.patches.unchecked_studies import check_image
from lib.schemas import GENERAL, BatchParams, Params, Sent, TaskParams, check_name, read
from lib.store.uploads import check_volume
from liverseg.errors import InputError
from liverseg.io.paths import NIFTI_SUFFIXES, nifti_suffix


def fix(server: FastAPI) -> None:
    """Check what requests ask for."""
    check(server, infer.api_run_inference, _check_inference)
    check(server, batch_infer.api_run, _check_batch)
    check(server, train.api_run, _check_trainings)
    check(server, train.api_run_model, _check_training)
    check(server, activelearning.api_sample, _check_sample)
    check(server, scoring.api_run, _check_scorings)
    check(server, scoring.api_run_method, _check_scoring)


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        HTTPException: 404 for it.
    """
    if name not in known:
        raise HTTPException(
            404,
            f"{what}: found {name!r}, expected one of "
            f"{', '.join(known) or 'none, as there is none'}: choose one.",
        )


def _check_options(model: str, params: Collection[str], options: Collection[str]) -> None:
    known = [*options, *GENERAL]
    for key in params:
        if key not in known and not key.startswith("result_"):
            raise InputError(
                f"model {model}: found option {key!r}, expected one of {', '.join(known)}: fix its "
                "name."
            )


def _check_task(
    params: Mapping[str, Any] | None, run_sync: bool | None, names: Collection[str], *reserved: str
) -> dict[str, Any]:
    """The `params` of what runs in a process of its own, for one or all of `names`."""
    given = read("params", TaskParams, params, reserved)
    if run_sync:
        raise InputError(
            "run_sync: found true, expected false, because nobody could see or cancel it: ask "
            "without it, and then for the status."
        )
    for name in names:
        if not isinstance(given.get(name, {}), dict):
            raise InputError(
                f"params: found {given[name]!r} for {name}, expected an object of options: fix it."
            )
    return given


def _check_trainings(params: dict[str, Any] | None, run_sync: bool | None, **_: Any) -> None:
    tasks = app_instance().trainers
    given = _check_task(params, run_sync, tasks)
    common = {key: value for key, value in given.items() if key not in tasks}
    for name in tasks:
        # Whose labels lack a class fails on its own.
        _check_model(name, {**given.get(name, {}), **common}, run_sync)


def _check_training(
    model: str, params: dict[str, Any] | None, run_sync: bool | None, **_: Any
) -> None:
    scans = _check_model(model, params, run_sync)
    app_instance().trainers[model].check_labels(scans, app_instance().datastore())


def _check_model(
    model: str, params: dict[str, Any] | None, run_sync: bool | None
) -> dict[str, list[str]]:
    """The scans of a training by what they do in it."""
    tasks = app_instance().trainers
    check_known("model", model, tasks)
    given = _check_task(params, run_sync, [])
    _check_options(model, given, tasks[model].config())
    return tasks[model].check(given, app_instance().datastore())[1]


def _check_sample(strategy: str, params: dict[str, Any] | None, **_: Any) -> None:
    check_known("strategy", strategy, app_instance().strategies)
    read("params", TaskParams, params, ["strategy"])


def _check_scorings(params: dict[str, Any] | None, run_sync: bool | None, **_: Any) -> None:
    _check_task(params, run_sync, app_instance().scores, "method")


def _check_scoring(
    method: str, params: dict[str, Any] | None, run_sync: bool | None, **_: Any
) -> None:
    check_known("method", method, app_instance().scores)
    _check_task(params, run_sync, [], "method")


def _check_batch(
    model: str, params: dict[str, Any] | None, run_sync: bool | None, **_: Any
) -> None:
    tasks = {
        name: task for name, task in app_instance().infers.items() if isinstance(task, Segmentation)
    }
    check_known("model", model, tasks)
    state = tasks[model].info()["state"]
    if state != "ready":
        raise HTTPException(409, f"model {model}: {state}, and ask again.")
    given = _check_task(params, run_sync, [])
    own = [*BatchParams.model_fields, "multi_gpu"]
    _check_options(model, given, [*tasks[model].config(), *own])
    read("params", BatchParams, params)
    # Final labels are what is trained on and scored against.
    if given.get("label_tag") == DefaultLabelTag.FINAL:
        raise InputError(
            "label_tag: found 'final', expected another, because masks that nobody has seen "
            "would be trained on: leave it out, and submit those that are right."
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
    tasks = app_instance().infers
    check_known("model", model, tasks)
    asked, options = read("params", Sent, params), tasks[model].config()
    if tasks[model].type == InferType.DEEPEDIT:
        options = [*options, *tasks[model].labels, "reset_state"]
        # 3D Slicer says which segment is chosen, and gives a list of clicks for every label of any
        # model.
        labels = {name for task in tasks.values() for name in task.labels}
        asked = {
            key: value
            for key, value in asked.items()
            if key != "label" and not (key in labels and value == [])
        }
    read("params", Params, asked)
    _check_options(model, asked, options)
    if output == "dicom_seg":
        if not isinstance(app_instance().datastore(), DICOMWebDatastore):
            raise InputError(
                "output: found dicom_seg, expected image, as the studies are no DICOM server: "
                "ask for it."
            )
        if file is not None or session_id or not asked.get("label_info"):
            raise InputError(
                "output: found dicom_seg, expected it with image and label_info in params: send "
                "both."
            )
    if file is not None:
        check_volume("file", file)
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
