"""`liverseg data`: data sets as the bundles read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from liverseg.workbench.datasets.layout import Layout

app = typer.Typer(
    help="Write phantoms, convert public data sets as they are downloaded, split "
    "a folder, check a data set.",
    no_args_is_help=True,
)

Folds = Annotated[int, typer.Option(help="Folds for cross-validation, split by patient.")]
TestShare = Annotated[float, typer.Option(help="Share of the patients for testing, in no fold.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same data set.")]
Root = Annotated[
    Path, typer.Argument(help="Folder with the data set, unpacked as it was downloaded.")
]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder to write: dataset.json, check.html, check.json, and NIfTI files of DICOM."
    ),
]


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    cases: Annotated[int, typer.Option(help="Scans to train and validate on.")] = 20,
    test: Annotated[int, typer.Option(help="Scans of other patients, in no fold.")] = 4,
    shape: Annotated[
        tuple[int, int, int], typer.Option(help="Voxels along right, anterior, superior.")
    ] = (
        128,
        128,
        48,
    ),
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Voxel size in mm.")] = (
        3.0,
        3.0,
        5.0,
    ),
    modality: Annotated[str, typer.Option(help="ct or mr.")] = "ct",
    organs: Annotated[
        bool,
        typer.Option(
            "--organs",
            help="Label liver, kidneys and spleen, as CHAOS does, not liver and lesions.",
        ),
    ] = False,
    abdomen: Annotated[
        bool,
        typer.Option(
            "--abdomen", help="Label aorta, portal vein and the five organs of unet3d_abdomen."
        ),
    ] = False,
    folds: Folds = 5,
    seed: Seed = 0,
) -> None:
    """Write synthetic abdominal scans with liver and lesions, named as LiTS names its files.

    Examples: liverseg data phantoms data/phantoms --cases 20 --test 4;
    liverseg data phantoms data/mr --modality mr --organs
    """
    from liverseg.data import write_datalist
    from liverseg.data.datalist import check_folds
    from liverseg.workbench.phantoms import write_phantoms
    from liverseg.workbench.phantoms.files import ABDOMEN_LABELS, CHAOS_LABELS, LITS_LABELS

    names = ABDOMEN_LABELS if abdomen else CHAOS_LABELS if organs else LITS_LABELS
    check_folds(folds, cases)
    items = write_phantoms(
        out,
        cases,
        seed=seed,
        shape=shape,
        spacing=spacing,
        modality=modality,
        labels=names,
        num_test=test,
    )
    path = write_datalist(
        out / "dataset.json",
        items[:cases],
        names,
        test=items[cases:],
        num_folds=folds,
        seed=seed,
        name="phantoms",
    )
    typer.echo(path)


@app.command()
def split(
    folder: Annotated[Path, typer.Argument(help="Folder with the scans.")],
    images: Annotated[
        str, typer.Option(help="Pattern of the images; {} stands for the patient.")
    ] = "volume-{}.nii",
    labels: Annotated[
        str, typer.Option(help="Pattern of the labels; {} stands for the patient.")
    ] = ("segmentation-{}.nii"),
    names: Annotated[
        str,
        typer.Option(
            help="Names of the values in the labels, as 1=liver,2=lesion; without it, those of a "
            "dataset.json in FOLDER, or of LiTS for files with the names of LiTS."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="File to write; FOLDER/dataset.json without it.")
    ] = None,
    test_share: Annotated[float, typer.Option(help="Share of the patients for testing.")] = 0.2,
    folds: Folds = 5,
    seed: Seed = 0,
) -> None:
    """Write a datalist for pairs of images and labels, split by patient.

    Examples: liverseg data split data/lits; liverseg data split data/msd --images
    "imagesTr/{}.nii.gz" --labels "labelsTr/{}.nii.gz" --out data/msd/folds.json
    """
    from liverseg.workbench.datasets.split import split_folder

    typer.echo(split_folder(folder, images, labels, test_share, folds, seed, names, out))


@app.command("chaos-ct")
def chaos_ct(root: Root, out: Out, folds: Folds = 5, seed: Seed = 0) -> None:
    """Convert CHAOS, CT: DICOM with PNG masks to NIfTI; 1 liver.

    Example: liverseg data chaos-ct downloads/CHAOS --out data/chaos_ct
    """
    from liverseg.workbench.datasets.chaos import CHAOS_CT

    _convert(CHAOS_CT, root, out, folds, seed)


@app.command("chaos-mr")
def chaos_mr(
    root: Root,
    out: Out,
    t2_spir: Annotated[
        bool, typer.Option("--t2-spir", help="Also T2-SPIR, which has masks of its own.")
    ] = False,
    folds: Folds = 5,
    seed: Seed = 0,
) -> None:
    """Convert CHAOS, MR, to NIfTI; 1 liver, 2 right kidney, 3 left kidney, 4 spleen.

    T1-DUAL, whose in-phase and out-phase series share a mask. All series of a patient stay
    together in a fold.

    Examples: liverseg data chaos-mr downloads/CHAOS --out data/chaos_mr;
    liverseg data chaos-mr downloads/CHAOS --t2-spir --out data/chaos_mr
    """
    from liverseg.workbench.datasets.chaos import CHAOS_MR, CHAOS_MR_T2_SPIR

    _convert(CHAOS_MR_T2_SPIR if t2_spir else CHAOS_MR, root, out, folds, seed)


@app.command()
def lits(root: Root, out: Out, test_share: TestShare = 0, folds: Folds = 5, seed: Seed = 0) -> None:
    """Make a datalist of LiTS (volume-N.nii, segmentation-N.nii) in place; 1 liver, 2 lesion.

    Example: liverseg data lits downloads/LiTS --out data/lits
    """
    from liverseg.workbench.datasets.nifti import LITS

    _convert(LITS, root, out, folds, seed, test_share)


@app.command()
def msd(root: Root, out: Out, folds: Folds = 5, seed: Seed = 0) -> None:
    """Make a datalist of the Decathlon's Task03_Liver, NIfTI, in place; 1 liver, 2 lesion.

    Example: liverseg data msd downloads/Task03_Liver --out data/msd
    """
    from liverseg.workbench.datasets.nifti import MSD

    _convert(MSD, root, out, folds, seed)


@app.command()
def ircadb(
    root: Root, out: Out, test_share: TestShare = 0, folds: Folds = 5, seed: Seed = 0
) -> None:
    """Convert 3D-IRCADb-01: DICOM folders or zips to NIfTI, lesions joined; 1 liver, 2 lesion.

    Example: liverseg data ircadb downloads/3Dircadb1 --out data/ircadb
    """
    from liverseg.workbench.datasets.ircadb import IRCADB

    _convert(IRCADB, root, out, folds, seed, test_share)


@app.command()
def btcv(root: Root, out: Out, folds: Folds = 5, seed: Seed = 0) -> None:
    """Make a datalist of BTCV, abdomen, NIfTI, in place; 13 organs, 6 is the liver.

    Example: liverseg data btcv downloads/Abdomen --out data/btcv
    """
    from liverseg.workbench.datasets.nifti import BTCV

    _convert(BTCV, root, out, folds, seed)


@app.command()
def check(datalist: Annotated[Path, typer.Argument(help="A dataset.json.")]) -> None:
    """Write check.html and check.json beside DATALIST: a picture and a verdict for each case.

    Example: liverseg data check data/lits/dataset.json
    """
    from liverseg.workbench.datasets.convert import check_datalist

    typer.echo(check_datalist(datalist))


def _convert(
    layout: Layout, root: Path, out: Path, folds: int, seed: int, test_share: float = 0
) -> None:
    from liverseg.workbench.datasets.convert import convert

    typer.echo(convert(layout, root, out, folds, seed, test_share))
