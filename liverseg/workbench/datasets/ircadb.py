"""3D-IRCADb-01 as it is downloaded: a DICOM series and one series of masks per structure (Soler et al. 2010).

    3Dircadb1.N/PATIENT_DICOM/image_0…        or PATIENT_DICOM.zip
    3Dircadb1.N/MASKS_DICOM/<structure>/…     or MASKS_DICOM.zip

The names of the structures are free text. Lesions are those whose name begins with "livertumor". Cysts (livercyst,
liverkyst, liverkyste), "tumor" of patient 7, which lies outside the liver, and "metastasectomie" of patient 14 are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.workbench.datasets.dicom import (
    Folder,
    Slice,
    open_folder,
    order_and_affine,
    read_slices,
    require_pydicom,
    stack,
    visible,
)
from liverseg.workbench.datasets.layout import LIVER_AND_LESION, Case, Layout, Volume, first_folder, not_empty

LESION = "livertumor"
SAME_PLACE_MM = 0.1


def find(root: Path) -> list[Case]:
    """List the patients."""
    require_pydicom()
    folder = first_folder(root, "3Dircadb1.*", "*/3Dircadb1.*").parent
    cases = [
        Case(
            f"ircadb-{patient.name.split('.')[-1]}",
            f"ircadb-{patient.name.split('.')[-1]}",
            _zip_or_folder(patient / "PATIENT_DICOM"),
            _zip_or_folder(patient / "MASKS_DICOM"),
        )
        for patient in folder.glob("3Dircadb1.*")
        if patient.is_dir()
    ]
    return not_empty(cases, folder, "folders 3Dircadb1.1, 3Dircadb1.2, …")


def _zip_or_folder(path: Path) -> Path:
    archive = path.with_name(f"{path.name}.zip")
    return archive if archive.is_file() and not path.is_dir() else path


def read(image: Path, label: Path) -> Volume:
    """Read a series, its liver (1) and all its liver lesions (2), joined."""
    series, masks = open_folder(image.with_suffix("")), open_folder(label.with_suffix(""))
    slices = read_slices(series)
    structures = {path.name.lower(): path for path in visible(masks) if path.is_dir()}
    if "liver" not in structures:
        raise InputError(
            f"{masks}: no folder liver in it, only {sorted(structures)}, expected the masks of the liver: "
            "download the patient again."
        )
    planes = [np.zeros(each.pixels.shape, np.uint8) for each in slices]
    # Lesions last: they are cut out of the liver.
    for name in ["liver", *(name for name in structures if name.startswith(LESION))]:
        for index, mask in _pair(slices, read_slices(structures[name]), structures[name]):
            planes[index][mask.pixels > 0] = 1 if name == "liver" else 2
    order, affine = order_and_affine(slices, series)
    return Volume(stack([each.pixels for each in slices], order), stack(planes, order), affine)


def _pair(slices: Sequence[Slice], masks: Sequence[Slice], folder: Folder) -> list[tuple[int, Slice]]:
    """The slice of each mask: the one at the same position, or of the same file name where positions say nothing."""
    if len(masks) != len(slices) or masks[0].pixels.shape != slices[0].pixels.shape:
        found, expected = (f"{len(each)} of {each[0].pixels.shape}" for each in (masks, slices))
        raise InputError(
            f"{folder}: {found} pixels, but the scan has {expected}, expected a mask for each slice: "
            "download the patient again."
        )
    if all(each.position is not None for each in (*slices, *masks)):
        places = np.array([each.position for each in slices])
        distances_mm = np.linalg.norm(places[None] - np.array([mask.position for mask in masks])[:, None], axis=-1)
        nearest = distances_mm.argmin(axis=1)
        if distances_mm.min(axis=1).max() < SAME_PLACE_MM and len(set(nearest)) == len(slices):
            return [(int(index), mask) for index, mask in zip(nearest, masks, strict=True)]
    names = {each.name: index for index, each in enumerate(slices)}
    if set(names) != {mask.name for mask in masks}:
        raise InputError(
            f"{folder}: neither positions nor file names are those of the scan, expected masks of its slices: "
            "download the patient again."
        )
    return [(names[mask.name], mask) for mask in masks]


IRCADB = Layout("ircadb", "ct", LIVER_AND_LESION, find, read)
