"""`liverseg models`: the versions of a bundle's model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from liverseg import versions
from liverseg.errors import InputError

# Where bundles are, beside those that are named by their path.
FOLDERS = (Path("bundles"), Path("monailabel_app/model"))

app = typer.Typer(
    help="List, compare and publish the versions of a bundle's model.", no_args_is_help=True
)
BundleName = Annotated[
    str, typer.Argument(help="A bundle of this project, or the path of a bundle's folder.")
]


@app.command("list")
def list_(bundle: BundleName) -> None:
    """Show every version with its state and its mean Dice on the validation scans of its training.

    Example: liverseg models list deeplabv3_liver
    """
    folder = _folder(bundle)
    in_use = versions.version_in_use(folder)
    # Names are typed again in other commands, so in 80 columns too none is cut short.
    widths = {
        "version": 21,
        "state": 10,
        "parent": 11,
        "scans": 5,
        "val": 3,
        "mean Dice": 6,
        "of the one in use": 6,
    }
    columns = (Column(name, min_width=width, overflow="fold") for name, width in widths.items())
    table = Table(*columns, box=SIMPLE, padding=(0, 1, 0, 0))
    for version in versions.list_versions(folder):
        record = version.record
        table.add_row(
            version.name,
            "in use" if version.name == in_use else version.state,
            record.get("parent") or "",
            *(str(len(record[key])) if key in record else "" for key in ("training", "validation")),
            *(
                f"{record[key]:.4f}" if key in record else ""
                for key in ("mean_dice", "mean_dice_in_use")
            ),
        )
    console = Console()
    if table.row_count:
        console.print(table)
    if in_use is None:
        found = versions.model_files(folder / "models")
        console.print("The model in use comes from no version." if found else "No model is in use.")


@app.command()
def compare(
    bundle: BundleName,
    version: Annotated[str, typer.Argument(help="The version to evaluate.")],
    other: Annotated[
        str | None, typer.Argument(help="The one to compare with; by default the one in use.")
    ] = None,
) -> None:
    """Evaluate two versions on the validation scans of the first one, and show their Dice.

    Example: liverseg models compare deeplabv3_liver 2026-03-01T14-05-09
    """
    folder = _folder(bundle)
    first = versions.with_weights(versions.find_version(folder, version))
    if not (first.folder / "settings.json").is_file():
        raise InputError(
            f"{first.folder}: found no settings.json, expected a version that "
            "was trained here: choose one."
        )
    second = versions.weights_in_use(folder)
    if other is not None:
        second = versions.with_weights(versions.find_version(folder, other)).folder
    found = []
    for weights in (first.folder, second):
        with tempfile.TemporaryDirectory() as output:
            found.append(versions.evaluate(folder, weights, first, Path(output)))
    table = Table("Dice", version, other or "in use")
    for name in dict.fromkeys([*found[0], *found[1]]):
        table.add_row(name, *(f"{dice[name]:.4f}" if name in dice else "" for dice in found))
    Console().print(table)


@app.command()
def publish(
    bundle: BundleName,
    version: Annotated[str, typer.Argument(help="The version to use from now on.")],
) -> None:
    """Put a version into use; the one before stays as a version.

    Example: liverseg models publish deeplabv3_liver 2026-03-01T14-05-09
    """
    versions.publish(_folder(bundle), version)
    print(f"in use: {version}")


@app.command()
def rollback(bundle: BundleName) -> None:
    """Put the version into use again that was before the one in use.

    Example: liverseg models rollback deeplabv3_liver
    """
    print(f"in use: {versions.rollback(_folder(bundle))}")


def _folder(bundle: str) -> Path:
    places = [Path(bundle), *(folder / bundle for folder in FOLDERS)]
    folder = next(
        (place for place in places if (place / "configs" / "metadata.json").is_file()), None
    )
    if folder is None:
        known = sorted(
            file.parents[1].name
            for place in FOLDERS
            for file in place.glob("*/configs/metadata.json")
        )
        raise InputError(
            f"{bundle}: found no bundle, expected a folder or one of "
            f"{', '.join(known) or 'none'}: name it."
        )
    return folder.resolve()
