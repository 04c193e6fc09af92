"""Write files so that what was there before stays whole until the new one is."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from liverseg.errors import InputError


class NotSavedError(InputError):
    """The disk is full, say, or nobody may write there: nothing is wrong with what was to be written."""


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Make `folder` and return it.

    Raises:
        NotSavedError: when it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise NotSavedError(
            f"{folder}: the folder cannot be written ({error.strerror}), expected a writable one: choose another."
        ) from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a new file and put it in the place of `path` only when it is whole.

    Who may read it, the umask says, as of any new file.

    Raises:
        NotSavedError: when it cannot be written, for lack of a folder, space or permission; the old file is as it was.
    """
    path = Path(path)
    # One of `tempfile` would be its owner's alone, whatever the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        file = temporary.open("x+b")
        try:
            with file:
                write(file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    # torch.save turns a failed write into a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if not path.parent.is_dir():
            raise NotSavedError(
                f"{path}: could not be saved ({reason}), expected a folder {path.parent}: make it or choose another."
            ) from error
        raise NotSavedError(
            f"{path}: could not be saved ({reason}), what was there before is kept: free some space or choose "
            "another folder."
        ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON, into a folder that is made where it is missing.

    Raises:
        InputError: as `check_writable` and `write_atomically`.
    """
    check_writable(Path(path).parent)
    text = json.dumps(content, indent=1)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))
