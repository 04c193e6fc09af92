"""Files stay in the temporary folder: of refused requests, each DICOM SEG and each archive.

MONAI Label removes them after an answer alone, and those it sends as DICOM SEG or archive never:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/infer.py#L80-L113 and
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/datastore.py#L191-L196
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import BackgroundTasks, FastAPI
from monailabel.endpoints import datastore, infer
from monailabel.utils.others.generic import remove_file
from starlette.background import BackgroundTask

from lib.patches.endpoints import Endpoint, wrap


def fix(server: FastAPI) -> None:
    """Remove them."""
    for endpoint in (infer.api_run_inference, datastore.api_add_image, datastore.api_save_label):
        wrap(server, endpoint, _removing)
    wrap(server, datastore.api_download_dataset, _removing_archive)


def _removing(endpoint: Endpoint) -> Endpoint:
    async def answer(background_tasks: BackgroundTasks, **given: Any) -> Any:
        try:
            response = await endpoint(background_tasks=background_tasks, **given)
        except Exception:
            for task in background_tasks.tasks:
                task.func(*task.args, **task.kwargs)
            raise
        if given.get("output") == "dicom_seg":
            background_tasks.add_task(remove_file, response.path)
        return response

    return answer


def _removing_archive(endpoint: Endpoint) -> Endpoint:
    async def answer(**given: Any) -> Any:
        response = await endpoint(**given)
        response.background = BackgroundTask(os.unlink, response.path)
        return response

    return answer
