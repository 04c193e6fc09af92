"""Name the files of a study."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import liverseg
from liverseg.errors import InputError
from liverseg.files import check_writable


class StudyFolder:
    """The folder that a study writes.

    Attributes:
        path: the folder.
        plan: what each place of each table is made of.
        tables, plots: a CSV and a Markdown file for each table, and pictures.
        page: all of them on one page.
        trials: the database of a calibration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.tables, self.plots = path / "tables", path / "plots"
        self.page = path / "index.html"
        self.trials = path / "calibrate.db"

    def run(self, name: str) -> Path:
        """Return the folder of a training and its evaluations."""
        return self.path / "cells" / name

    def phantoms(self, data: str, options: Mapping[str, Any]) -> Path:
        """Return the folder of a data set's phantoms; other options give another folder."""
        text = json.dumps([options, liverseg.__version__], sort_keys=True)
        return self.path / "data" / f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def read_plan(self) -> dict[str, Any]:
        """Return the plan that the study left.

        Raises:
            InputError: when it is not there.
        """
        if not self.plan.is_file():
            raise InputError(
                f"{self.path}: found no plan.json, expected the folder of a study: run it first, "
                "or name its --out."
            )
        return json.loads(self.plan.read_text(encoding="utf-8"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process, until it ends.

        Raises:
            InputError: when another process holds it, or it cannot be written.
        """
        path = check_writable(self.path) / ".lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{self.path}: another study runs in this folder (process "
                f"{path.read_text().strip() or 'unknown'}): wait until it ends, or give "
                "another folder with --out."
            ) from error
        try:
            path.write_text(f"{os.getpid()}\n")
            yield
        finally:
            lock.release()


def file_name(name: str) -> str:
    """Return a name of the user's as that of a file."""
    return re.sub(r"[ /\\]", "_", name)
