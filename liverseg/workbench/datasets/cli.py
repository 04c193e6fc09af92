"""`liverseg data`: data sets as the bundles read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write phantoms, or split a folder of scans by patient.", no_args_is_help=True)

Folds = Annotated[int, typer.Option(help="Folds for cross-validation, split by patient.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same data set.")]


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    cases: Annotated[int, typer.Option(help="Scans to train and validate on.")] = 20,
    test: Annotated[int, typer.Option(help="Scans of other patients, in no fold.")] = 4,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Voxels along right, anterior, superior.")] = (
        128,
        128,
        48,
    ),
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Voxel size in mm.")] = (3.0, 3.0, 5.0),
    modality: Annotated[str, typer.Option(help="ct or mr.")] = "ct",
    organs: Annotated[
        bool, typer.Option("--organs", help="Label liver, kidneys and spleen, as CHAOS does, not liver and lesions.")
    ] = False,
    folds: Folds = 5,
    seed: Seed = 0,
) -> None:
    """Write synthetic abdominal scans with liver and lesions, named as LiTS names its files.

    Examples: liverseg data phantoms data/phantoms --cases 20 --test 4;
    liverseg data phantoms data/mr --modality mr --organs
    """
    from liverseg.data import write_datalist, write_phantoms
    from liverseg.data.phantom_io import CHAOS_LABELS, LITS_LABELS

    items = write_phantoms(
        out, cases, seed=seed, shape=shape, spacing=spacing, modality=modality, organs=organs, num_test=test
    )
    path = write_datalist(
        out / "dataset.json",
        items[:cases],
        CHAOS_LABELS if organs else LITS_LABELS,
        test=items[cases:],
        num_folds=folds,
        seed=seed,
        name="phantoms",
    )
    typer.echo(path)


@app.command()
def split(
    folder: Annotated[Path, typer.Argument(help="Folder with the scans.")],
    images: Annotated[str, typer.Option(help="Pattern of the images; {} stands for the patient.")] = "volume-{}.nii",
    labels: Annotated[str, typer.Option(help="Pattern of the labels; {} stands for the patient.")] = (
        "segmentation-{}.nii"
    ),
    test_share: Annotated[float, typer.Option(help="Share of the patients kept apart for testing.")] = 0.2,
    folds: Folds = 5,
    seed: Seed = 0,
) -> None:
    """Write FOLDER/dataset.json for pairs of images and labels, split by patient.

    Examples: liverseg data split data/lits;
    liverseg data split data/msd --images "imagesTr/liver_{}.nii.gz" --labels "labelsTr/liver_{}.nii.gz"
    """
    from liverseg.workbench.datasets.split import split_folder

    typer.echo(split_folder(folder, images, labels, test_share, folds, seed))
