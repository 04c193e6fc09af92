"""Find what a training is made with: versions of packages, and the commit."""

from __future__ import annotations

import os
import platform
import subprocess

import ignite
import monai
import torch

import liverseg


def package_versions() -> dict[str, str]:
    """Return the versions of what decides the result of a training."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
        "liverseg": liverseg.__version__,
    }


def git_commit(folder: str | os.PathLike[str]) -> str | None:
    """Return the commit of the repository around `folder`, with `-dirty` for changes, or None."""
    options = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
    command = ["git", "-C", os.fspath(folder), "describe", *options]
    try:
        found = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
