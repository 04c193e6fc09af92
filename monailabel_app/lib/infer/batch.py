"""Segment many scans, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from liverseg.errors import InputError

logger = logging.getLogger(__name__)


class BatchSegmentation(BatchInferTask):
    """MONAI Label's, in which a scan that fails does not end the rest, with or without a GPU.

    MONAI Label's stops at the first error unless it has several workers, and divides by the number
    of GPUs:
    https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/interfaces/tasks/batch_infer.py
    """

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable
    ) -> dict[str, Any]:
        """As MONAI Label's; the result of a scan that failed is `{"error": message}`."""

        def infer_one(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return infer(one, store)
            except Exception as error:
                logger.warning(
                    "%s: %s",
                    one["image"],
                    error,
                    exc_info=not isinstance(error, InputError | HTTPException),
                )
                return {"error": str(error)}

        multi_gpu = request.get("multi_gpu", True) and torch.cuda.is_available()
        return super().__call__({**request, "multi_gpu": multi_gpu}, datastore, infer_one)
