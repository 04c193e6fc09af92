"""Name the files of a study."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import liverseg
from liverseg.errors import InputError
from liverseg.files import hold


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

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for this process, until it ends.

        Raises:
            InputError: when another process holds it, or it cannot be written.
        """
        return hold(self.path, "study")


def file_name(name: str) -> str:
    """Return a name of the user's as that of a file."""
    return re.sub(r"[ /\\]", "_", name)
