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
    bundle: Annotated[Path, typer.Option(help="The bundle to try.")] = Path("bundles/deeplabv3_liver"),
) -> None:
    """Make phantoms, train, evaluate on unseen ones, segment a scan and write a report.

    A second call trains nothing anew: it segments the scan you name. Delete the folder to start over.

    Examples: liverseg demo; liverseg demo --scan ct.nii.gz
    """
    from liverseg.io.masks import find_mask
    from liverseg.io.paths import absolute
    from liverseg.workbench.report.html import write_report

    console = Console()
    out, bundle = out.resolve(), bundle.resolve()
    if scan is not None and not scan.exists():
        raise InputError(f"{scan}: there is no such scan: set SCAN to a NIfTI file or a folder of DICOM files.")
    training = out / "training"
    test = train_on_phantoms(console, out, bundle, steps=5)
    paths = _paths(out, bundle)

    console.rule("3/5 Evaluation on phantoms that the training has not seen")
    evaluations = {}
    for name, choice in POSTPROCESSINGS.items():
        evaluations[name] = out / "evaluation" / choice
        if not (evaluations[name] / "summary.json").is_file():
            options: dict[str, Any] = {
                "output_dir": str(evaluations[name]),
                "mask_cleaning": f"@postprocessings#{choice}",
            }
            _run(console, bundle, "evaluating", ["train", "evaluate"], {**paths, **SETTINGS, **options})

    console.rule("4/5 Segmentation")
    image = Path(test[0]["image"]) if scan is None else absolute(scan)
    options = {"output_dir": str(out / "masks"), "spacing": SETTINGS["spacing"], "dataset_dir": str(image)}
    _run(console, bundle, "inference", ["inference"], {**paths, **options})
    mask = find_mask(out / "masks", image)
    assert mask is not None

    console.rule("5/5 Report")
    write_report(
        out / "report.html",
        title="Liver segmentation with DeepLab v3+",
        history=training / "history.csv",
        evaluations=evaluations,
        scans=[(image.name, image, mask, Path(test[0]["label"]) if scan is None else None)],
        facts=json.loads((training / "metrics.json").read_text()),
    )
    console.print(f"Open [bold]{out / 'report.html'}[/bold] in a browser.")


def train_on_phantoms(console: Console, out: Path, bundle: Path, steps: int) -> list[dict[str, Any]]:
    """Make phantoms in `out/phantoms` and train `bundle` on them with `SETTINGS`, each unless it is done.

    The first two of `steps`; the weights are in `out/models`.

    Returns:
        The phantoms that the training has not seen, as items with `image` and `label`.

    Raises:
        InputError: when `bundle` is none, or its training fails.
    """
    from liverseg.data import load_datalist
    from liverseg.workbench.datasets.cli import phantoms

    if not (bundle / "configs" / "train.json").is_file():
        raise InputError(
            f"{bundle}: there is no bundle, expected configs/train.json in it: run from the project's root."
        )
    console.rule(f"1/{steps} Phantoms")
    data, training = out / "phantoms", out / "training"
    if not (data / "dataset.json").is_file():
        phantoms(data, cases=20, test=4, shape=(128, 128, 48), spacing=(3.0, 3.0, 5.0))

    console.rule(f"2/{steps} Training")
    if not (training / "metrics.json").is_file():
        options = {**_paths(out, bundle), **SETTINGS, "output_dir": str(training), "resume": True}
        _run(console, bundle, "training", ["train"], options)
    return load_datalist(data / "dataset.json", "test")


def _paths(out: Path, bundle: Path) -> dict[str, str]:
    return {"bundle_root": str(bundle), "dataset_dir": str(out / "phantoms"), "ckpt_dir": str(out / "models")}


def _run(console: Console, bundle: Path, run_id: str, configs: list[str], options: dict[str, Any]) -> None:
    files = [str(bundle / "configs" / f"{name}.json") for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    console.print(shlex.join(["python", *command[1:]]), style="dim", soft_wrap=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError(f"{run_id}: the command above failed, so the demo stops here: mend what it says, then go on.")
