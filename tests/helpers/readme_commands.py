"""The commands of a README, as a reader copies them into a shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from helpers.waiting import SECONDS


def commands(readme: Path, folder: Path) -> list[list[str]]:
    """The commands of its shell blocks, as a shell starts them: in their order, with their arguments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)
    record, bin_folder = folder / "record", folder / "bin"
    bin_folder.mkdir()
    for name in ("python", "torchrun", "liverseg", "…"):
        (bin_folder / name).write_text(
            f'#!/bin/sh\nprintf "%s\\037" {name} "$@" >> {record}\nprintf "\\036" >> {record}\n'
        )
        (bin_folder / name).chmod(0o755)
    subprocess.run(
        ["bash", "-ec", "\n".join(blocks)],
        cwd=folder,
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"},
        check=True,
        timeout=SECONDS,
    )
    return [line.split("\037")[:-1] for line in record.read_text().split("\036")[:-1]]
