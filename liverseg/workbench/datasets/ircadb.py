"""Convert 3D-IRCADb-01 as downloaded: DICOM series of scans and structures (Soler et al. 2010).

    3Dircadb1.N/PATIENT_DICOM/image_0…        or PATIENT_DICOM.zip
    3Dircadb1.N/MASKS_DICOM/<structure>/…     or MASKS_DICOM.zip

The names of the structures are free text. Lesions are those whose name begins with "livertumor".
Cysts (livercyst, liverkyst, liverkyste), "tumor" of patient 7, which lies outside the liver, and
"metastasectomie" of patient 14 are not.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom import series_at
from liverseg.io.dicom_header import require_pydicom
from liverseg.io.dicom_pixels import read_pixels
from liverseg.io.dicom_series import Series
from liverseg.io.dicom_slices import slices_of
from liverseg.io.dicom_voxels import grid_of, read_voxels, stack
from liverseg.io.paths import is_hidden
from liverseg.workbench.datasets.layout import (
    LIVER_AND_LESION,
    Case,
    Layout,
    Volume,
    first_folder,
    not_empty,
)

LESION = "livertumor"
SAME_PLACE_MM = 0.1


def find(root: Path) -> list[Case]:
    """List the patients."""
    require_pydicom(root)
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
    with (
        _unpacked(image.with_suffix("")) as scan,
        _unpacked(label.with_suffix(""), _is_wanted) as masks,
    ):
        series = series_at(scan)
        structures = {
            path.name.lower(): path
            for path in masks.iterdir()
            if path.is_dir() and not is_hidden(path)
        }
        if "liver" not in structures:
            raise InputError(
                f"{masks}: no folder liver in it, only {sorted(structures)}, expected the masks of "
                "the liver: download the patient again."
            )
        planes = [np.zeros(each.size, np.uint8) for each in series.slices]
        # Lesions last: they are cut out of the liver.
        for name in ["liver", *(name for name in sorted(structures) if name.startswith(LESION))]:
            for plane, mask in zip(planes, _masks(series, structures[name]), strict=True):
                plane[mask] = 1 if name == "liver" else 2
        return Volume(
            read_voxels(series)[0], stack(series, planes, np.uint8(0), order=0), grid_of(series)[1]
        )


def _is_wanted(structure: str) -> bool:
    return structure.lower() == "liver" or structure.lower().startswith(LESION)


@contextmanager
def _unpacked(path: Path, wanted: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Yield the folder `path`, or one with what lies in `path`.zip until the block ends.

    As deep as it holds its namesake.

    Args:
        path: the folder.
        wanted: which folders of the zip to unpack, by their names; None for all of it.

    Raises:
        InputError: when neither is there, or the zip cannot be read.
    """
    archive = path.with_name(f"{path.name}.zip")
    if path.is_dir():
        yield _inmost(path, path.name)
        return
    if not archive.is_file():
        raise InputError(
            f"{path}: there is no such folder, nor {archive.name}: unpack the data set again."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as zipped:
                names = zipped.namelist()
                zipped.extractall(
                    folder, [n for n in names if wanted is None or any(map(wanted, Path(n).parts))]
                )
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                f"{archive}: not a whole zip file ({error}): download it again."
            ) from error
        try:
            yield _inmost(Path(folder), path.name)
        except InputError as error:
            raise InputError(str(error).replace(folder, str(archive))) from error


def _inmost(folder: Path, name: str) -> Path:
    while (inner := folder / name).is_dir():
        folder = inner
    return folder


def _masks(series: Series, folder: Path) -> list[np.ndarray]:
    """Return each slice's mask: that at its position, or of its file name without positions."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file))
    if len(files) != len(series.slices):
        raise InputError(
            f"{folder}: {len(files)} masks for {len(series.slices)} slices, expected one for each: "
            "download the patient again."
        )
    found = [slices_of(file) for file in files]
    masks = [slices[0] for slices in found if not isinstance(slices, str)]
    if len(masks) == len(files) and not any(mask.problem for mask in masks):
        distances_mm = np.linalg.norm(
            [[each.position - mask.position for mask in masks] for each in series.slices], axis=-1
        )
        nearest = [int(index) for index in distances_mm.argmin(axis=1)]
        if distances_mm.min(axis=1).max() < SAME_PLACE_MM and len(set(nearest)) == len(masks):
            return [
                _read_mask(masks[index].file, each.size)
                for index, each in zip(nearest, series.slices, strict=True)
            ]
    if {file.name for file in files} != {file.name for file in series.files}:
        raise InputError(
            f"{folder}: neither positions nor file names are those of the scan, expected masks of "
            "its slices: download the patient again."
        )
    return [_read_mask(folder / each.file.name, each.size) for each in series.slices]


def _read_mask(file: Path, size: tuple[int, int]) -> np.ndarray:
    (mask,) = read_pixels(file)[0]
    if mask.shape != size:
        raise InputError(
            f"{file}: the mask has {mask.shape[0]}×{mask.shape[1]} pixels, the scan "
            f"{size[0]}×{size[1]}, expected the same: download the patient again."
        )
    return mask > 0


IRCADB = Layout("ircadb", "ct", LIVER_AND_LESION, find, read)
