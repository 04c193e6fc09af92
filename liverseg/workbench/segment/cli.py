"""`liverseg segment`: from a scan, or many, to masks and what is made of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from liverseg.bundle import choose
from liverseg.errors import InputError


def segment(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A scan, a folder, a .zip or a .csv of many.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the results.")],
    bundle: Annotated[str, typer.Option(help="Name, folder or archive.")] = "unet3d_liver",
    modality: Annotated[str | None, typer.Option(help="ct or mr.")] = None,
    series: Annotated[str | None, typer.Option(help="UID or description; all.")] = None,
    roi: Annotated[str, typer.Option(help="Classes, as liver,lesion.")] = "",
    to: Annotated[
        str, typer.Option(help="classes,nrrd,seg,rtstruct,stl,obj,glb besides NIfTI.")
    ] = "",
    statistics: Annotated[bool, typer.Option("--statistics", help="Volumes, lesions, HU.")] = False,
    report: Annotated[bool, typer.Option("--report", help="A page to look at.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="A picture.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="A NIfTI of each class.")
    ] = False,
    ensemble: Annotated[str, typer.Option(help="Bundles that vote, as A,B.")] = "",
    fast: Annotated[bool, typer.Option("--fast", help="No mirror check, one plane.")] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over flips.")] = False,
    planes: Annotated[str, typer.Option(help="Those that vote, of cascade_lits.")] = "",
    postprocessing: Annotated[str | None, typer.Option(help="One of the bundle's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:1, …")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Scans at once, on each machine.")] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="NAME=VALUE of the bundle.")] = [],  # noqa: B006
) -> None:
    """Segment scans with a bundle: NIfTI, NRRD, MetaImage or DICOM, one or many.

    The same command goes on where it was stopped. docs/how-to/segment.md shows each use.

    Examples: liverseg segment ct.nii.gz out --statistics --report;
    liverseg segment dicom/ out --to seg,rtstruct; liverseg segment scans/ out --jobs 2
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from liverseg.workbench.segment.cohort import failed, quieten, run_cases
    from liverseg.workbench.segment.inference import Options
    from liverseg.workbench.segment.outputs import FORMATS, Wanted
    from liverseg.workbench.segment.session import open_session

    formats = _words(to)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(
            f"--to: found {unknown[0]}, expected some of {', '.join(FORMATS)}: correct it."
        )
    if output.is_file() or output.suffix in (".gz", ".nii", ".nrrd", ".dcm"):
        raise InputError(
            f"{output}: found the name of a file, expected that of a folder for the results: "
            "correct it."
        )
    choose("--engine", engine, dict.fromkeys(("local", "ray")))
    if address is not None and engine != "ray":
        raise InputError(
            f"--address: found {address} with --engine {engine}, expected it with --engine ray: "
            "add that, or leave --address out."
        )
    if engine == "ray":
        # Without an address, the cluster that this machine is of.
        address = address or "auto"
    options = Options(
        roi=_words(roi), device=device, fast=fast, planes=_words(planes), tta=tta,
        postprocessing=postprocessing, modality=modality,
        settings=dict(map(_setting, set_)),
    )  # fmt: skip
    wanted = Wanted(formats, statistics, report, preview, probabilities)
    quieten()
    console = Console()
    with open_session(source, output, bundle, options, wanted, series, _words(ensemble)) as session:
        cases, request = session
        console.print(f"{len(cases)} scan{'s' * (len(cases) != 1)}, {request.name}")
        progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=console, transient=True,
            disable=len(cases) == 1,
        )  # fmt: skip
        with progress:
            bar = progress.add_task("Segmenting", total=len(cases))

            def done(record: dict[str, Any], before: bool) -> None:
                progress.advance(bar)
                console.print(_line(record, before), markup=False, soft_wrap=True)

            records = run_cases(cases, output, request, jobs, done, address)
    console.print(f"Results are in {output}.", soft_wrap=True)
    failed(records)


def _line(record: dict[str, Any], before: bool) -> str:
    if "error" in record:
        return f"failed  {record['name']}: {record['error']}"
    volumes = ", ".join(f"{name} {ml:.0f} ml" for name, ml in record["volume_ml"].items())
    flags = f"  [{', '.join(record['flags'])}]" if record["flags"] else ""
    how_long = "done before" if before else f"{record['seconds']:.1f} s"
    return f"{record['name']}: {volumes}{flags} ({how_long})"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"--set: found {text!r}, expected NAME=VALUE: correct it.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        # Text needs no quotes.
        return name, value
