"""The commands of a document, as a reader copies them into a shell, and what is wrong with them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from helpers.waiting import SECONDS
from liverseg.errors import InputError
from liverseg.settings import check_name

PROGRAMS = ("python", "torchrun", "liverseg", "…")


def commands(document: Path, folder: Path, programs: Sequence[str] = PROGRAMS) -> list[list[str]]:
    """Return the commands of a document's shell blocks, each split into arguments as a shell does.

    Each of `programs` only records how it was started; a command of another program fails.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    record, bin_folder = folder / "record", folder / "bin"
    bin_folder.mkdir()
    record.touch()
    for name in programs:
        # One write for each command, for some run side by side.
        (bin_folder / name).write_text(
            f'#!/bin/sh\nprintf "%s\\037" {name} "$@" "$(printf "\\036")" >> {record}\n'
        )
        (bin_folder / name).chmod(0o755)
    subprocess.run(
        ["/bin/bash", "-ec", "\n".join(blocks) + "\nwait"],
        cwd=folder,
        env={"PATH": str(bin_folder)},
        check=True,
        timeout=SECONDS,
    )
    return [line.split("\037")[:-1] for line in record.read_text().split("\036\037")[:-1]]


def read_configs(arguments: Sequence[str], folder: Path) -> ConfigParser:
    """Config of the files that `monai.bundle run` is given, which lie in `folder` or below."""
    files = arguments[arguments.index("--config_file") + 1].strip("[]").replace("'", "").split(",")
    parser = ConfigParser()
    parser.read_config([folder / file for file in files])
    return parser


def check_run(arguments: Sequence[str], folder: Path) -> None:
    """Check that the configs of `monai.bundle run ID …` have the id, each setting and each entry.

    Raises:
        InputError: for a setting that nothing uses.
    """
    parser = read_configs(arguments, folder)
    assert arguments[1] in parser.get(), arguments
    for argument in arguments:
        if argument.startswith("--") and argument not in ("--config_file", "--tracking"):
            check_name(argument.removeprefix("--"), parser, parser)
        if argument.startswith("@") and argument.removeprefix("@") not in parser:
            raise InputError(f"{argument} in {arguments}: found no such entry, expected one.")
