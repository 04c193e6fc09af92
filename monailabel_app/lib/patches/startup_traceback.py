"""What a user can fix when the server starts is the last line of a long traceback.

Starlette hands the whole traceback to uvicorn's log; nothing of MONAI Label is imported here:
https://github.com/Kludex/starlette/blob/1.10.0/starlette/routing.py (`Router.lifespan`)
"""

from __future__ import annotations

import logging
import sys

from liverseg.errors import InputError


def fix() -> None:
    """Let uvicorn log only the message of an `InputError` that ends the start."""
    logging.getLogger("uvicorn.error").addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = sys.exception()
    if isinstance(error, InputError) and record.getMessage().startswith("Traceback"):
        record.msg, record.args = str(error), ()
    return True
