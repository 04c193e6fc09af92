"""Write files that are replaced only when the new one is complete."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from liverseg.errors import InputError


class NotSavedError(InputError):
    """A file cannot be written: the disk is full, say, or the folder is not writable."""


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
            f"{folder}: the folder cannot be written ({error.strerror}), expected a "
            "writable one: choose another."
        ) from error


@contextmanager
def hold(folder: str | os.PathLike[str], run: str) -> Iterator[None]:
    """Hold `folder` for this process, until the block or the process ends, in whatever way.

    Args:
        folder: made where it is missing.
        run: what runs in it, for the message.

    Raises:
        InputError: when another process holds it, or it cannot be written.
    """
    path = check_writable(folder) / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder}: another {run} runs in this folder (process "
            f"{path.read_text().strip() or 'unknown'}), expected none: wait until it ends, or give "
            "another folder."
        ) from error
    try:
        path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        lock.release()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BufferedRandom]:
    """Open a new binary file that takes the place of `path` when the block ends without an error.

    The umask says who may read it.

    Raises:
        NotSavedError: when the folder, space or permission is missing; the old file is as it was.
    """
    path = Path(path)
    # A file of `tempfile` would be its owner's alone, whatever the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        file = temporary.open("x+b")
        try:
            with file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    # torch.save turns a failed write into a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if not path.parent.is_dir():
            raise NotSavedError(
                f"{path}: could not be saved ({reason}), expected a folder {path.parent}: "
                "make it or choose another."
            ) from error
        raise NotSavedError(
            f"{path}: could not be saved ({reason}), what was there before stays: free some "
            "space or choose another folder."
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON, into a folder that is made where it is missing.

    Raises:
        InputError: as `check_writable` and `atomic_write`.
    """
    check_writable(Path(path).parent)
    write_text(path, f"{json.dumps(content, indent=1)}\n")
