"""Two processes of a test file, as ranks 0 and 1 of a group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.waiting import SECONDS


def run_two_ranks(file: str, *arguments: str) -> None:
    """Run `python FILE ARGUMENTS… RANK` for both ranks at once; show the output of a failure."""
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, "PYTHONPATH": path}
    commands = [[sys.executable, file, *arguments, str(rank)] for rank in range(2)]
    processes = [subprocess.Popen(command, env=environment, **streams) for command in commands]
    for process in processes:
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, output
