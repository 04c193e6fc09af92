"""Run the commands of an archive's README in this process, as if some packages were missing.

    python run_archive.py FILE

FILE is JSON: `absent`, the modules that cannot be imported, and `commands`, the arguments of each
`python -m monai.bundle`. Run it in the archive's folder. Its last line is JSON: the modules that
were imported, and the file of liverseg.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Collection
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class Without:
    """A finder that does not see the modules of these names."""

    def __init__(self, finder: Any, names: Collection[str]) -> None:
        self.finder, self.names = finder, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return (
            None
            if name.partition(".")[0] in self.names
            else self.finder.find_spec(name, path, target)
        )


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    absent = set(task["absent"])
    sys.meta_path[:] = [Without(finder, absent) for finder in sys.meta_path]
    # As `python -m` does it.
    sys.path[0] = ""
    for command in task["commands"]:
        print("$ python -m monai.bundle", *command, flush=True)
        sys.argv = ["monai.bundle", *command]
        try:
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    print("\n" + json.dumps({"liverseg": sys.modules["liverseg"].__file__, "modules": modules}))


if __name__ == "__main__":
    main()
