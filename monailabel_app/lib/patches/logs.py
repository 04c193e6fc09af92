"""`/logs` shows the lines of all servers that ever ran with the app; `/logs/gpu` needs nvidia-smi.

MONAI Label sends a file of the app's folder, in a page that loads scripts from elsewhere, and fails
for a large number of lines and without nvidia-smi:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/logs.py#L69-L88
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections import deque
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from monailabel.endpoints import logs

from lib.patches.endpoints import replace

# MONAI Label's own loggers for lines of the processes that it starts.
LOGGERS = ("", "task_train", "task_scoring", "task_batch_infer")
# So many lines are kept.
KEPT = 5000


class RecentLines(logging.Handler):
    """Keep the last lines of this server, without what DICOM says of the patient."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a record says."""
        text = re.sub(r"""(["']Patient\w+["']: )(["']).*?\2""", r"\1\2…\2", self.format(record))
        self.lines.extend(text.splitlines())


RECENT = RecentLines()


def keep_recent_lines() -> None:
    """Keep the lines from now on; the app does it before it says anything."""
    RECENT.setFormatter(
        logging.Formatter("[%(asctime)s] [%(levelname)s] (%(name)s:%(lineno)d) - %(message)s")
    )
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            # MONAI Label has made it for everyone to read before any app could say otherwise.
            if isinstance(handler, logging.FileHandler):
                os.chmod(handler.baseFilename, 0o600)
        logger.addHandler(RECENT)


def fix(server: FastAPI) -> None:
    """Answer with the last lines of this server, and say where nvidia-smi is missing."""
    replace(server, logs.api_get_logs, _last)
    replace(server, logs.gpu_info, _gpus)


def _last(lines: int, **_: Any) -> Response:
    found = list(RECENT.lines)
    chosen = found[-lines:] if 0 < lines < len(found) else found
    return Response("".join(f"{line}\n" for line in chosen), media_type="text/plain")


def _gpus(**_: Any) -> Response:
    if shutil.which("nvidia-smi") is None:
        raise HTTPException(
            404, "gpu: found no nvidia-smi on the server, expected it: install NVIDIA's driver."
        )
    found = subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, text=True, check=False)
    return Response(found.stdout, media_type="text/plain")
