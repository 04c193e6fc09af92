"""Convert CHAOS as downloaded: DICOM series, masks as PNG.

Kavur et al. 2019, doi 10.5281/zenodo.3431873.

    Train_Sets/CT/<patient>/DICOM_anon/*.dcm, Ground/*.png
    Train_Sets/MR/<patient>/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm, Ground/*.png
    Train_Sets/MR/<patient>/T2SPIR/DICOM_anon/*.dcm, Ground/*.png

A PNG belongs to the DICOM file of the same place in the order of the file names. The names
run from head to foot in CT, against the positions, so that slices sorted by position meet
the masks in reverse.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from liverseg.errors import InputError
from liverseg.io.dicom import series_at
from liverseg.io.dicom_header import require_pydicom
from liverseg.io.dicom_voxels import grid_of, read_voxels, stack
from liverseg.io.paths import is_hidden
from liverseg.workbench.datasets.layout import (
    Case,
    Layout,
    Volume,
    by_number,
    first_folder,
    not_empty,
)

# Grey values of the MR masks: what the data set's documentation calls the range of each organ.
MR_GREY = {1: range(55, 71), 2: range(110, 136), 3: range(175, 201), 4: range(240, 256)}


def find_ct(root: Path) -> list[Case]:
    """List the patients of the CT part."""
    require_pydicom(root)
    folder = first_folder(root, "Train_Sets/CT", "CT", "*/Train_Sets/CT")
    cases = [
        Case(f"ct-{patient.name}", f"ct-{patient.name}", patient / "DICOM_anon", patient / "Ground")
        for patient in folder.iterdir()
        if patient.is_dir() and not is_hidden(patient)
    ]
    return not_empty(cases, folder, "one folder a patient")


def find_mr(root: Path, *, t2_spir: bool = False) -> list[Case]:
    """List the MR series of each patient: in and out of phase of T1-DUAL, which share a mask.

    With `t2_spir` also T2-SPIR, which has a mask and a grid of its own.
    """
    require_pydicom(root)
    folder = first_folder(root, "Train_Sets/MR", "MR", "*/Train_Sets/MR")
    series = {"in": "T1DUAL/DICOM_anon/InPhase", "out": "T1DUAL/DICOM_anon/OutPhase"}
    if t2_spir:
        series["t2spir"] = "T2SPIR/DICOM_anon"
    cases = [
        Case(
            f"mr-{patient.name}-{name}",
            f"mr-{patient.name}",
            patient / dicom,
            patient / Path(dicom).parts[0] / "Ground",
        )
        for patient in folder.iterdir()
        if patient.is_dir() and not is_hidden(patient)
        for name, dicom in series.items()
    ]
    return not_empty(cases, folder, "one folder a patient")


def read(image: Path, label: Path, greys: dict[int, range] | None = None) -> Volume:
    """Read a series and its masks: of organs by their grey values, or of the liver above 0."""
    for folder in (image, label):
        if not folder.is_dir():
            raise InputError(
                f"{folder}: there is no such folder, expected it beside the "
                "others: unpack CHAOS again."
            )
    series = series_at(image)
    scans = sorted(series.files, key=by_number)
    masks = sorted((file for file in label.glob("*.png") if not is_hidden(file)), key=by_number)
    if len(masks) != len(scans):
        raise InputError(
            f"{label}: {len(masks)} masks for {len(scans)} DICOM files, expected one "
            "for each: unpack CHAOS again."
        )
    mask_of = dict(zip(scans, masks, strict=True))
    planes = [_read_mask(mask_of[each.file], each.size, greys) for each in series.slices]
    return Volume(
        read_voxels(series)[0], stack(series, planes, np.uint8(0), order=0), grid_of(series)[1]
    )


def _read_mask(path: Path, shape: tuple[int, int], greys: dict[int, range] | None) -> np.ndarray:
    import cv2

    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise InputError(f"{path}: not readable as a picture, expected a PNG: unpack CHAOS again.")
    if grey.shape != shape:
        raise InputError(
            f"{path}: the mask has {grey.shape[0]}×{grey.shape[1]} pixels, the scan "
            f"{shape[0]}×{shape[1]}, expected the same: unpack CHAOS again."
        )
    if greys is None:
        return (grey > 0).astype(np.uint8)
    values = np.zeros(256, np.uint8)
    for value, span in greys.items():
        values[span.start : span.stop] = value
    mask = values[grey]
    if (unknown := grey[(mask == 0) & (grey > 0)]).size:
        raise InputError(
            f"{path}: {unknown.size} pixels of grey {unknown[0]}, expected 0, 63, 126, 189 "
            "and 252: unpack CHAOS again."
        )
    return mask


CHAOS_CT = Layout("chaos-ct", "ct", {"0": "background", "1": "liver"}, find_ct, read)
CHAOS_MR = Layout(
    "chaos-mr",
    "mr",
    {"0": "background", "1": "liver", "2": "right kidney", "3": "left kidney", "4": "spleen"},
    find_mr,
    partial(read, greys=MR_GREY),
)
CHAOS_MR_T2_SPIR = Layout(
    CHAOS_MR.name, CHAOS_MR.modality, CHAOS_MR.labels, partial(find_mr, t2_spir=True), CHAOS_MR.read
)
