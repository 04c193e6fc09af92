"""The command `liverseg`."""

from __future__ import annotations

import sys

import typer

from liverseg.errors import InputError
from liverseg.workbench import demo, models, serve
from liverseg.workbench.datasets import cli as datasets
from liverseg.workbench.segment.cli import segment
from liverseg.workbench.segment.report import report
from liverseg.workbench.study import cli as study
from liverseg.workbench.zoo import cli as zoo

app = typer.Typer(
    help="Segment scans with the bundles, one or many, and write masks, figures and pages; prepare "
    "data, try, serve and pack bundles. To train: python -m monai.bundle run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(datasets.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(study.app, name="study")
app.add_typer(zoo.app, name="zoo")
app.command("segment")(segment)
app.command("report")(report)
app.command("demo")(demo.demo)
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    serve.serve
)


def main() -> None:
    """Run the command; wrong input ends it with its one message and status 1."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
