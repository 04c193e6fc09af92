"""Run the command `liverseg`, and say what to install where a package is missing."""

from __future__ import annotations

import sys

# The extra that brings a package, by the name that Python imports.
EXTRAS = {
    **dict.fromkeys(("jinja2", "matplotlib", "rich", "typer"), "workbench"),
    "ray": "cluster",
    **dict.fromkeys(("optuna", "pydantic", "yaml"), "study"),
}


def main() -> None:
    """Run the command; a missing package ends it with one message and status 1."""
    try:
        from liverseg.workbench import cli

        cli.main()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRAS:
            raise
        print(
            f"error: found no package {package}, expected it: "
            f'pip install ".[{EXTRAS[package]}]" in the repository.',
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
