"""`liverseg zoo`: bundles as people download them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Annotated

import typer

import liverseg
from liverseg.errors import InputError
from liverseg.io.paths import absolute
from liverseg.workbench.zoo.build import PACKAGE, build_archive

app = typer.Typer(
    help="Get bundles' weights, and pack bundles for others to download.", no_args_is_help=True
)


@app.callback()
def zoo() -> None:
    """Get bundles' weights, and pack bundles for others to download."""


@app.command()
def fetch(
    bundle: Annotated[
        str, typer.Argument(help="unet3d_liver in ./bundles, or the path of its folder.")
    ],
    wheel: Annotated[
        Path | None,
        typer.Option(
            help="The wheel of pyliverlesionseg 0.3, where it has been downloaded already."
        ),
    ] = None,
) -> None:
    """Get trained weights for a bundle from the package that they are published in, with pip, once.

    Example: liverseg zoo fetch unet3d_liver
    """
    from liverseg.workbench.zoo.fetch import fetch_weights

    folder = _folder(bundle)
    if folder.name != "unet3d_liver" or not (folder / "configs" / "metadata.json").is_file():
        raise InputError(
            f"{folder}: found no weights to fetch, expected the bundle "
            "unet3d_liver: name its folder."
        )
    models = folder / "models"
    print(
        f"{models}: {'fetched' if fetch_weights(folder, wheel) else 'already there'}; see "
        f"{models / 'NOTICE'}"
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def distill(
    context: typer.Context,
    bundle: Annotated[
        str, typer.Argument(help="The bundle to train: one of the liver, with or without lesions.")
    ],
    scans: Annotated[
        Path, typer.Option(help="Folder of scans; with a dataset.json, what it lists.")
    ],
    teacher: Annotated[
        str, typer.Option("--from", help="The bundle whose masks are the labels.")
    ] = "unet3d_liver",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for labels, check.html, dataset.json and the training; "
            "by default distilled/BUNDLE."
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            help="A scan whose label is bad, as check.html names it; repeat it for others."
        ),
    ] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Phantoms that train as well.")] = 12,
    labels_only: Annotated[
        bool, typer.Option("--labels-only", help="Stop before the training.")
    ] = False,
) -> None:
    """Train a bundle on scans without labels, with the masks of a trained one.

    First --labels-only: then look at check.html, correct masks in OUT/labels or leave scans
    out, and call it again, which trains, or goes on with a training of the same labels. Scans
    under "test" in a dataset.json get masks; those under "training" and "validation" have
    their own labels, 1 liver and 2 lesion, and these validate. Options that are not listed
    here go to the training.

    Examples: liverseg zoo distill deeplabv3_liver --scans data/scans --labels-only;
    liverseg zoo distill deeplabv3_liver --scans data/scans --leave-out case7 --max_epochs 200
    """
    from rich.console import Console

    from liverseg.workbench.zoo.distill import read_options, train
    from liverseg.workbench.zoo.fetch import fetch_starting_model
    from liverseg.workbench.zoo.pseudo_labels import make_data

    console, student, source, left_out = (
        Console(),
        _folder(bundle),
        _folder(teacher),
        leave_out or [],
    )
    options = read_options(student, context.args)
    if source.name == "unet3d_liver":
        fetch_starting_model(source)
    folder = absolute(out or Path("distilled") / student.name)
    datalist = make_data(console, student, source, absolute(scans), folder, left_out, phantoms)
    if labels_only:
        return
    command = ["liverseg", "zoo", "distill", student.name, "--from", source.name, "--scans", "DIR"]
    command += [part for name in left_out for part in ("--leave-out", name)]
    command += ["--phantoms", str(phantoms), *context.args]
    models = train(console, student, source, datalist, options, command)
    console.print(
        f"Weights: [bold]{models}[/bold]; to use them, copy what is in it to {student / 'models'}."
    )


@app.command()
def build(
    bundle: Annotated[
        str, typer.Argument(help="A bundle in ./bundles, or the path of a bundle's folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the archive.")] = Path("dist"),
) -> None:
    """Make the archive of a bundle: its files, its weights if there are any, and their code.

    Example: liverseg zoo build deeplabv3_liver --out dist/

    Whoever has the packages of its metadata.json, and not liverseg, downloads and runs it with
    python -m monai.bundle download --name deeplabv3_liver --url URL --bundle_dir DIR
    """
    folder = _folder(bundle)
    archive = build_archive(folder, out)
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as packed:
        names = [name.partition("/")[2] for name in packed.namelist()]
    weights = [name for name in names if name.endswith(".pt")]
    print(archive)
    print(
        f"{len(content) / 1e6:.1f} MB, with the liverseg {liverseg.__version__} of {PACKAGE.parent}"
    )
    print(
        f"with the weights {', '.join(weights)}"
        if weights
        else f"no weights: there are none in {folder / 'models'}"
    )
    if weights and "models/model.pt" not in weights:
        print("no models/model.pt, which MONAI's model zoo and ckpt_export ask for")
    print(f"sha256 {hashlib.sha256(content).hexdigest()}")


@app.command()
def render(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles in ./bundles, or paths of their folders; by default all."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, and fail where something would change.")
    ] = False,
) -> None:
    """Write bundles' configs and documents from their sources, in bundles/_shared and each bundle.

    Examples: liverseg zoo render; liverseg zoo render unet_liver; liverseg zoo render --check
    """
    from liverseg.workbench.zoo.render import stale_files, write_files

    folders = [absolute(_folder(name)) for name in bundles or []]
    folders = folders or [path.parent for path in sorted(Path("bundles").glob("*/bundle.json"))]
    if not folders:
        raise InputError(
            "bundles: found no */bundle.json in it: call this from the folder that holds it."
        )
    changed = [
        path for folder in folders for path in (stale_files if check else write_files)(folder)
    ]
    for path in changed:
        print(path)
    if check and changed:
        raise InputError(
            f"{len(changed)} files: found differences from their sources, expected none: change "
            "the sources, and run liverseg zoo render."
        )
    print(
        "All files are as their sources say." if not changed else f"{len(changed)} files written."
    )


def _folder(bundle: str) -> Path:
    return Path(bundle) if "/" in bundle or Path(bundle).is_dir() else Path("bundles") / bundle
