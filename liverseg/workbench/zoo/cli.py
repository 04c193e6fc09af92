"""`liverseg zoo`: bundles as people download them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Annotated

import typer

import liverseg
from liverseg.workbench.zoo.build import PACKAGE, build_archive

app = typer.Typer(help="Pack bundles for others to download.", no_args_is_help=True)


@app.callback()
def zoo() -> None:
    """Pack bundles for others to download."""


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(help="A bundle in ./bundles, or the path of a bundle's folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the archive.")] = Path("dist"),
) -> None:
    """Make the self-contained archive of a bundle: its files, its weights if there are any, and the code they need.

    Example: liverseg zoo build deeplabv3_liver --out dist/

    Whoever has the packages of its metadata.json, and not liverseg, downloads and runs it with
    python -m monai.bundle download --name deeplabv3_liver --url URL --bundle_dir DIR
    """
    folder = Path(bundle) if "/" in bundle or Path(bundle).is_dir() else Path("bundles") / bundle
    archive = build_archive(folder, out)
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as packed:
        names = [name.partition("/")[2] for name in packed.namelist()]
    weights = [name for name in names if name.endswith(".pt")]
    print(archive)
    print(f"{len(content) / 1e6:.1f} MB, with the liverseg {liverseg.__version__} of {PACKAGE.parent}")
    print(
        f"with the weights {', '.join(weights)}"
        if weights
        else f"no weights, for there are none in {folder / 'models'}"
    )
    if weights and "models/model.pt" not in weights:
        print("no models/model.pt, which MONAI's model zoo and ckpt_export ask for")
    print(f"sha256 {hashlib.sha256(content).hexdigest()}")
