"""`liverseg demo`: the main job from end to end on phantoms, with the same commands that a user types."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from liverseg.errors import InputError
from liverseg.io.paths import absolute

# Phantoms of 3 mm in-plane are small enough for minutes on two cores; everything else is the bundle's default.
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
    scan: Annotated[Path | None, typer.Option(help="A CT of your own: NIfTI, or a folder of DICOM files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo"),
    bundle: Annotated[Path, typer.Option(help="The bundle to try, one that finds the liver alone.")] = Path(
        "bundles/deeplabv3_liver"
    ),
) -> None:
    """Make phantoms, train, evaluate on unseen ones, segment a scan and write a report.

    A second call trains nothing anew: it segments the scan you name. Another bundle gets a folder of its own beside the
    first one's. Delete the folder to start over.

    Examples: liverseg demo; liverseg demo --scan ct.nii.gz; liverseg demo --bundle bundles/unet_liver
    """
    from liverseg.io.masks import find_mask
    from liverseg.workbench.report.html import write_report

    console = Console()
    out, bundle = absolute(out), absolute(bundle)
    if scan is not None:
        scan = _only_scan(scan)
    test = train_on_phantoms(console, out, bundle, steps=5)
    paths, own = _paths(out, bundle), out / bundle.name

    console.rule("3/5 Evaluation on phantoms that the training has not seen")
    evaluations = {}
    for name, choice in POSTPROCESSINGS.items():
        evaluations[name] = own / "evaluation" / choice
        if not (evaluations[name] / "summary.json").is_file():
            options: dict[str, Any] = {
                "output_dir": str(evaluations[name]),
                "mask_cleaning": f"@postprocessings#{choice}",
            }
            _run(console, bundle, "evaluating", ["train", "evaluate"], {**paths, **SETTINGS, **options})

    console.rule("4/5 Segmentation")
    image = scan or Path(test[0]["image"])
    options = {"output_dir": str(own / "masks"), "spacing": SETTINGS["spacing"], "dataset_dir": str(image)}
    _run(console, bundle, "inference", ["inference"], {**paths, **options})
    mask = find_mask(own / "masks", image)
    assert mask is not None

    console.rule("5/5 Report")
    write_report(
        out / "report.html",
        title=json.loads((bundle / "configs" / "metadata.json").read_text())["name"],
        history=own / "training" / "history.csv",
        evaluations=evaluations,
        scans=[(image.name, image, mask, Path(test[0]["label"]) if scan is None else None)],
        facts=json.loads((own / "training" / "metrics.json").read_text()),
    )
    console.print(f"Open [bold]{out / 'report.html'}[/bold] in a browser.")


def train_on_phantoms(console: Console, out: Path, bundle: Path, steps: int) -> list[dict[str, Any]]:
    """Make phantoms in `out/phantoms` and train `bundle` on them with `SETTINGS`, each unless it is done.

    The first two of `steps`; the weights are in `models` of `out/<name of the bundle>`.

    Returns:
        The phantoms that the training has not seen, as items with `image` and `label`.

    Raises:
        InputError: when `bundle` is none or finds more than the liver, or its training fails.
    """
    from liverseg.data import load_datalist
    from liverseg.workbench.datasets.cli import phantoms

    if not (bundle / "configs" / "train.json").is_file():
        raise InputError(
            f"{bundle}: there is no bundle, expected configs/train.json in it: run from the project's root."
        )
    finds = set(json.loads((bundle / "configs" / "train.json").read_text())["classes"]) - {"background"}
    # What the report calls the liver is all that the mask holds.
    if finds != {"liver"}:
        raise InputError(
            f"{bundle}: found a bundle of {', '.join(sorted(finds))}, expected one of the liver alone, which is what "
            "the report shows: choose deeplabv3_liver, unet_liver or fcn_liver."
        )
    console.rule(f"1/{steps} Phantoms")
    data, training = out / "phantoms", out / bundle.name / "training"
    if not (data / "dataset.json").is_file():
        phantoms(data, cases=20, test=4, shape=(128, 128, 48), spacing=(3.0, 3.0, 5.0))

    console.rule(f"2/{steps} Training")
    if not (training / "metrics.json").is_file():
        options = {**_paths(out, bundle), **SETTINGS, "output_dir": str(training), "resume": True}
        _run(console, bundle, "training", ["train"], options)
    return load_datalist(data / "dataset.json", "test")


def _only_scan(path: Path) -> Path:
    """The scan that `path` names: a folder may hold it deeper down."""
    from liverseg.data import find_scans

    if not path.exists():
        raise InputError(f"{path}: there is no such scan: set SCAN to a NIfTI file or a folder of DICOM files.")
    scans = find_scans(path)
    if len(scans) != 1:
        raise InputError(
            f"{path}: found {len(scans)} scans in it, expected one: set SCAN to a NIfTI file or a folder with one "
            "DICOM series."
        )
    return Path(scans[0]["image"])


def _paths(out: Path, bundle: Path) -> dict[str, str]:
    return {
        "bundle_root": str(bundle),
        "dataset_dir": str(out / "phantoms"),
        "ckpt_dir": str(out / bundle.name / "models"),
    }


def _run(console: Console, bundle: Path, run_id: str, configs: list[str], options: dict[str, Any]) -> None:
    files = [str(bundle / "configs" / f"{name}.json") for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    console.print(shlex.join(["python", *command[1:]]), style="dim", soft_wrap=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError(f"{run_id}: the command above failed, so the demo stops here: do what it says, then go on.")
