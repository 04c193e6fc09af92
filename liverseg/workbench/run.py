"""Run bundles as a user does, with the command that is shown, and say what matters."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from liverseg.errors import InputError


def run_bundle(
    console: Console, bundle: Path, run_id: str, configs: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Show the command that runs a bundle, and run it.

    Args:
        console: where the command is shown.
        bundle: the bundle's folder.
        run_id: `training`, `evaluating` or `inference`.
        configs: the names of its configs, without `.json`.
        options: settings by name.

    Raises:
        InputError: when the command fails; it has printed why.
    """
    files = [str(bundle / "configs" / f"{name}.json") for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    command += ["--bundle_root", str(bundle)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    console.print(shlex.join(["python", *command[1:]]), style="dim", soft_wrap=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError(
            f"{run_id}: the command above failed, so this ends here: do what it says, then go on."
        )


def announce(console: Console, message: str) -> None:
    """Show a message in bold, unbroken and with its brackets, which Rich takes for markup."""
    console.print(message, style="bold", markup=False, soft_wrap=True)
