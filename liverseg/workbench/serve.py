"""`liverseg serve`: the MONAI Label server with this project's app."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from liverseg.errors import InputError
from liverseg.files import check_writable
from liverseg.workbench.demo import SETTINGS, train_on_phantoms
from liverseg.workbench.run import announce

STARTING_MODEL = "unet3d_liver"


def serve(
    context: typer.Context,
    studies: Annotated[
        str | None,
        typer.Option(
            help="Folder of NIfTI scans, or address of a DICOMweb server; by default a real CT."
        ),
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Bundles to serve, separated by commas; by default all.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    out: Annotated[
        Path, typer.Option(help="Folder for the CT or the phantoms, as of liverseg demo.")
    ] = Path("demo"),
    app: Annotated[Path, typer.Option(help="Folder of the MONAI Label app.")] = Path(
        "monailabel_app"
    ),
) -> None:
    """Annotate scans in 3D Slicer or OHIF with any bundle.

    It fetches the trained weights of unet3d_liver with pip, once, and without --studies a real CT;
    where they cannot be had it says so, and offers phantoms and a network trained on others. What
    is no option here goes to `monailabel start_server`.

    Nobody is asked for a password: with --host 0.0.0.0, whoever reaches this machine reads and
    deletes scans.

    Examples: liverseg serve; liverseg serve --studies data/scans;
    liverseg serve --studies data/scans --models deeplabv3_liver,cascade_lits --port 8001 --conf
    inferences 1
    """
    if find_spec("monailabel") is None:
        raise InputError(
            'found no package monailabel, expected it: pip install ".[label]" in the repository.'
        )
    if not (app / "main.py").is_file():
        raise InputError(
            f"{app}: there is no app, expected main.py in it: run from the project's root."
        )
    # The app refuses other versions of MONAI Label too, below a traceback of the server.
    version = app / "lib" / "patches" / "version.py"
    if version.is_file():
        runpy.run_path(str(version))["check_version"]()
    if (
        studies is not None
        and not studies.startswith(("http://", "https://"))
        and not (studies and Path(studies).is_dir())
    ):
        raise InputError(
            f"--studies: found {studies!r}, expected a folder with scans, or the address of a "
            "DICOMweb server: fix it."
        )
    # Both as the server takes them.
    names = [name.strip() for name in (models or "").split(",") if name.strip()]
    folders = (app.resolve().parent / "bundles", app.resolve() / "model")
    known = {path.name for folder in folders if folder.is_dir() for path in folder.glob("[!._]*/")}
    if unknown := sorted(set(names) - known):
        raise InputError(
            f"--models: found {', '.join(unknown)}, expected names among "
            f"{', '.join(sorted(known))}: correct it."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise InputError(
            f"{host}:{port}: cannot be listened on ({error.strerror}), expected an address of this "
            "machine and a free port: choose another with --host or --port."
        ) from error
    console, fetched = Console(), False
    if not names or STARTING_MODEL in names:
        fetched = _fetch_starting_model(console, app.resolve().parent / "bundles" / STARTING_MODEL)
    if studies is None:
        real = _fetch_studies(console, out.resolve()) if fetched else None
        studies = str(real or prepare_phantoms(console, out.resolve(), app.resolve()))
    # Of all addresses there is none to go to.
    reached = (
        socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    )
    announce(console, f"In 3D Slicer's module MONAI Label, the server is http://{reached}:{port}")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", studies, "--host", host, "--port", str(port)]
    command += [*(["--conf", "models", models] if models else []), *context.args]
    # The server takes this process's place, so that whoever stops this one stops it.
    os.execve(command[0], command, {"TQDM_DISABLE": "1", **os.environ})


def _fetch_starting_model(console: Console, bundle: Path) -> bool:
    """Give the bundle its weights; without them the server has its other models."""
    try:
        from liverseg.workbench.zoo.fetch import fetch_starting_model

        fetch_starting_model(bundle)
    except InputError as error:
        announce(console, f"Without the weights of {bundle.name}: {error}")
        return False
    return True


def _fetch_studies(console: Console, out: Path) -> Path | None:
    """Return a folder with the real CT that comes with the weights, or None."""
    from liverseg.workbench.zoo.fetch import fetch_ct

    try:
        scan, _ = fetch_ct(out / "ct")
    except InputError as error:
        announce(console, f"Without a real CT: {error}")
        return None
    studies = check_writable(out / "ct_studies")
    if not (studies / scan.name).is_file():
        shutil.copy(scan, studies)
    return studies


def prepare_phantoms(console: Console, out: Path, app: Path) -> Path:
    """Give the app a bundle trained on phantoms; returns a folder with phantoms it has not seen."""
    bundle = app.parent / "bundles" / "deeplabv3_liver"
    test = train_on_phantoms(console, out, bundle, first=1, steps=3)
    console.rule("3/3 Server")
    studies = check_writable(out / "studies")
    for item in test:
        if not (studies / Path(item["image"]).name).is_file():
            shutil.copy(item["image"], studies)
    # The weights go with the voxel size that they were trained for, so both make a bundle of their
    # own.
    taken = check_writable(app / "model" / f"{bundle.name}_phantoms")
    shutil.copytree(bundle / "configs", taken / "configs", dirs_exist_ok=True)
    config = taken / "configs" / "inference.json"
    content = {**json.loads(config.read_text()), "spacing": SETTINGS["spacing"]}
    config.write_text(json.dumps(content, indent=4))
    if not (taken / "models" / "model.pt").is_file():
        shutil.copytree(
            out / bundle.name / "models",
            taken / "models",
            ignore=shutil.ignore_patterns("checkpoint.pt"),
            dirs_exist_ok=True,
        )
    return studies
