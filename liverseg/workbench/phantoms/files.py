"""Write phantom data sets, named as in LiTS: `volume-N.nii` and `segmentation-N.nii`."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from liverseg import __version__
from liverseg.errors import InputError
from liverseg.io.nifti import write_nifti
from liverseg.workbench.phantoms.anatomy import ORGANS
from liverseg.workbench.phantoms.phantom import Phantom, make_phantom

_MARK = "liverseg phantom"

LITS_LABELS = {"0": "background", "1": "liver", "2": "lesion"}
# In the order of the grey values of CHAOS's MRI labels: 63, 126, 189, 252.
CHAOS_LABELS = {
    "0": "background",
    "1": "liver",
    "2": "right_kidney",
    "3": "left_kidney",
    "4": "spleen",
}
# The organs of unet3d_abdomen in its order.
ABDOMEN_LABELS = {
    "0": "background",
    "1": "aorta",
    "2": "portal_vein",
    "3": "liver",
    "4": "spleen",
    "5": "stomach",
    "6": "gallbladder",
    "7": "pancreas",
}


def write_phantoms(
    out_dir: str | os.PathLike[str],
    num_cases: int,
    seed: int = 0,
    *,
    shape: Sequence[int] = (128, 128, 48),
    spacing: Sequence[float] = (3.0, 3.0, 5.0),
    modality: str = "ct",
    phase: str = "portal",
    labels: Mapping[str, str] = LITS_LABELS,
    num_test: int = 0,
    num_workers: int = 2,
) -> list[dict[str, str]]:
    """Write phantoms as pairs of NIfTI files: the scan as int16, its labels as uint8.

    A case that is there already, made by this version with the same arguments, is left as it is;
    one that is truncated or made otherwise is written again. Files appear whole or not at all.

    Args:
        out_dir: folder for the files, made where missing.
        num_cases: how many `volume-N.nii` with `segmentation-N.nii`.
        seed: which patients; another seed gives others.
        shape: voxels along x, y, z.
        spacing: voxel size in mm along x, y, z.
        modality: "ct" or "mr".
        phase: CT contrast phase, as for `make_phantom`.
        labels: the value that each organ gets: `LITS_LABELS`, `CHAOS_LABELS` or `ABDOMEN_LABELS`.
        num_test: how many `test-volume-N.nii` with `test-segmentation-N.nii` in addition, of other
            patients.
        num_workers: phantoms made at the same time.

    Returns:
        One `{"image", "label", "patient"}` per case, file names relative to `out_dir`: first the
        `num_cases`, then the `num_test`.

    Raises:
        InputError: for an argument that `make_phantom` does not take, a count too low, a folder
            that cannot be written, or a scan in the folder that is no phantom and would be
            overwritten.
    """
    for name, count, least in (
        ("num_cases", num_cases, 0),
        ("num_test", num_test, 0),
        ("num_workers", num_workers, 1),
        ("seed", seed, 0),
    ):
        if count < least:
            raise InputError(
                f"{name}: found {count}, expected a number from {least} on; choose another."
            )
    folder = Path(out_dir)
    cases = [("", k) for k in range(num_cases)] + [("test-", k) for k in range(num_test)]

    def write(case: tuple[str, int]) -> dict[str, str]:
        kind, number = case
        item = {
            "image": f"{kind}volume-{number}.nii",
            "label": f"{kind}segmentation-{number}.nii",
            "patient": f"{kind}phantom-{number}",
        }
        # Hashed, so that data sets of neighbouring seeds share no patient.
        patient = int(np.random.SeedSequence([seed, bool(kind), number]).generate_state(1)[0])
        arguments = (
            __version__,
            patient,
            tuple(shape),
            tuple(spacing),
            modality,
            phase,
            tuple(labels.items()),
        )
        mark = f"{_MARK} {hashlib.sha256(repr(arguments).encode()).hexdigest()[:32]}"
        paths = [folder / item["image"], folder / item["label"]]
        if not all([_is_whole(path, mark) for path in paths]):
            phantom = make_phantom(patient, shape, spacing, modality=modality, phase=phase)
            mask = phantom.labels if labels == LITS_LABELS else _organ_labels(phantom, labels)
            write_nifti(paths[0], phantom.image.astype(np.int16), phantom.affine, mark)
            write_nifti(paths[1], mask, phantom.affine, mark)
        return item

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(num_workers) as pool:
            jobs = pool.map(write, cases)
            return list(tqdm(jobs, total=len(cases), desc="phantoms", unit="scan"))
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}), expected a folder with space; choose "
            "another or free some."
        ) from error


def _organ_labels(phantom: Phantom, labels: Mapping[str, str]) -> NDArray[np.uint8]:
    values = np.zeros(len(ORGANS), np.uint8)
    for value, name in labels.items():
        values[ORGANS[name]] = int(value)
    return values[phantom.organs]


def _is_whole(path: Path, mark: str) -> bool:
    """Return whether `path` is complete and carries `mark`.

    Raises InputError if it is a scan from elsewhere.
    """
    try:
        with path.open("rb") as file:
            header = nib.Nifti1Header.from_fileobj(file)
    except (FileNotFoundError, nib.wrapstruct.WrapStructError, nib.spatialimages.HeaderDataError):
        return False
    found = header["descrip"].item().decode(errors="replace")
    if not found.startswith(_MARK):
        raise InputError(
            f"{path}: found a scan that is no phantom, expected phantoms "
            "only; choose another folder."
        )
    voxels = math.prod(header.get_data_shape())
    expected_bytes = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
    return found == mark and path.stat().st_size == expected_bytes
