"""What the server's log tells those who ask for it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections import deque
from types import SimpleNamespace

from fastapi import HTTPException, Response
from monailabel.endpoints import logs

# MONAI Label's own loggers for lines of the processes that it starts.
LOGGERS = ("", "task_train", "task_scoring", "task_batch_infer")
KEPT = 5000


class RecentLines(logging.Handler):
    """Keep the last lines of this server, without what DICOM says of the patient.

    Args:
        number: of lines.
    """

    def __init__(self, number: int = KEPT) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=number)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a record says."""
        text = re.sub(r"""(["']Patient\w+["']: )(["']).*?\2""", r"\1\2…\2", self.format(record))
        self.lines.extend(text.splitlines())


def serve_log() -> None:
    """Answer `/logs/` with the last lines of this server, from now on.

    MONAI Label answers with a file in the app's folder, in which lie the lines of all servers that ever ran with this
    app, in a page that loads scripts from elsewhere; and fails without nvidia-smi, and for a large number of lines.
    """
    recent = RecentLines()
    recent.setFormatter(
        logging.Formatter("[%(asctime)s] [%(levelname)s] (%(name)s:%(lineno)d) - %(message)s")
    )
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            # MONAI Label has made it for everyone to read before any app could say otherwise.
            if isinstance(handler, logging.FileHandler):
                os.chmod(handler.baseFilename, 0o600)
        logger.addHandler(recent)

    def answer(logger_file: str, lines: int, html: bool, text: bool, refresh: int) -> Response:
        found = list(recent.lines)
        chosen = found[-lines:] if 0 < lines < len(found) else found
        return Response("".join(f"{line}\n" for line in chosen), media_type="text/plain")

    logs.get_logs = answer
    # All that `logs` has of `subprocess`, for nvidia-smi.
    logs.subprocess = SimpleNamespace(run=_run, PIPE=subprocess.PIPE)  # type: ignore[assignment]


def _run(command: list[str], stdout: int) -> subprocess.CompletedProcess:
    if shutil.which(command[0]) is None:
        raise HTTPException(
            404, f"gpu: found no {command[0]} on the server, expected it: install NVIDIA's driver."
        )
    return subprocess.run(command, stdout=stdout, check=False)
