"""Small data sets in the layouts of the public ones, with a phantom's anatomy and known voxels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np

from liverseg.workbench.phantoms import make_phantom
from liverseg.workbench.phantoms.anatomy import ORGANS

SHAPE, SPACING = (56, 48, 20), (7.0, 7.0, 9.5)
CHAOS_GREY = {"liver": 63, "right_kidney": 126, "left_kidney": 189, "spleen": 252}


@cache
def phantom(seed: int, modality: str = "ct"):
    return make_phantom(seed, SHAPE, SPACING, modality=modality, num_lesions=3)


def turned(array: np.ndarray, affine: np.ndarray, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume stored along other axes."""
    image = nib.Nifti1Image(array, affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes)
        )
    )
    return np.asarray(image.dataobj), image.affine


def rotated(affine: np.ndarray, degrees: float) -> np.ndarray:
    """The affine of a scan that was taken obliquely: turned about the axis from left to right."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    return turn @ affine


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    names: list[str],
    change: Callable[[Any, int], None] | None = None,
    **tags: Any,
) -> None:
    """Write (columns, rows, slices) as a DICOM series, slice k in the file names[k].

    A tag of None is left out; `change(dataset, k)` alters slice k before it is written.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    column_mm, row_mm, _ = np.linalg.norm(lps[:3, :3], axis=0)
    # Whatever the scanner counted: nothing may depend on it.
    numbers = np.random.default_rng(0).permutation(array.shape[2]) + 1
    for k, name in enumerate(names):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)
        file.is_little_endian, file.is_implicit_VR = True, False
        pixels = np.ascontiguousarray(array[:, :, k].T)
        values = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            # CHAOS was anonymised so that every file has a series of its own.
            "SeriesInstanceUID": generate_uid(),
            "Modality": "CT",
            "InstanceNumber": int(numbers[k]),
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "PixelSpacing": [float(row_mm), float(column_mm)],
            "ImageOrientationPatient": [
                float(v) for v in (*lps[:3, 0] / column_mm, *lps[:3, 1] / row_mm)
            ],
            "ImagePositionPatient": [float(v) for v in (lps @ [0, 0, k, 1])[:3]],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            **tags,
        }
        for tag, value in values.items():
            if value is not None:
                setattr(file, tag, value)
        file.PixelData = (pixels - values["RescaleIntercept"]).astype(np.uint16).tobytes()
        if change is not None:
            change(file, k)
        file.save_as(folder / name, write_like_original=False)


def write_pngs(folder: Path, array: np.ndarray, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), np.ascontiguousarray(array[:, :, k].T))


def chaos_ct(
    root: Path, patients=(1, 2, 10)
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Write CHAOS CT, with files from head to foot; return image, label and affine of each."""
    truth = {}
    for seed, patient in enumerate(patients):
        scan = phantom(seed % 3)
        image, affine = turned(scan.image, scan.affine, "LPS")
        label, _ = turned((scan.labels > 0).astype(np.uint8), scan.affine, "LPS")
        folder, last = root / "Train_Sets" / "CT" / str(patient), image.shape[2] - 1
        # Both ways in which CHAOS names its files, and numbers that do not sort as text.
        name = "i{:04d},0000b.dcm" if seed else "IMG-0004-{}.dcm"
        write_series(
            folder / "DICOM_anon", image, affine, [name.format(last - k) for k in range(last + 1)]
        )
        write_pngs(
            folder / "Ground",
            255 * label,
            [f"liver_GT_{last - k:03d}.png" for k in range(last + 1)],
        )
        truth[patient] = (image, label, affine)
    return truth


def chaos_mr(
    root: Path, patients=(1, 2, 3)
) -> dict[int, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Write CHAOS MR, oblique; return image, label and affine of the series of each patient.

    T1-DUAL is coronal in the first patient. T2-SPIR has fewer slices, of other pixels.
    """
    truth: dict[int, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for seed, patient in enumerate(patients):
        folder = root / "Train_Sets" / "MR" / str(patient)
        image, label, affine = _mr_series(phantom(seed, "mr"), "LPS" if seed else "LIP")
        phases = {"InPhase": image, "OutPhase": np.rint(0.8 * image)}
        for first, (phase, array) in zip((2, 1), phases.items(), strict=True):
            write_mr(folder / "T1DUAL" / "DICOM_anon" / phase, array, affine, first, step=2)
        write_grey(folder / "T1DUAL" / "Ground", label, first=2, step=2)
        # Another breath: the organs are elsewhere, on another grid.
        spir = make_phantom(seed, (40, 36, 18), (9.5, 9.5, 10.5), modality="mr", num_lesions=3)
        t2_spir = _mr_series(spir, "LPS")
        write_mr(folder / "T2SPIR" / "DICOM_anon", t2_spir[0], t2_spir[2], first=1, step=1)
        write_grey(folder / "T2SPIR" / "Ground", t2_spir[1], first=1, step=1)
        truth[patient] = {
            "in": (image, label, affine),
            "out": (phases["OutPhase"], label, affine),
            "t2spir": t2_spir,
        }
    return truth


def _mr_series(scan: Any, axcodes: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label (1 liver, 2 right kidney, 3 left kidney, 4 spleen) and an oblique affine."""
    image, affine = turned(scan.image, scan.affine, axcodes)
    organs, _ = turned(scan.organs, scan.affine, axcodes)
    label = sum(
        np.uint8(value) * (organs == ORGANS[organ]) for value, organ in enumerate(CHAOS_GREY, 1)
    ).astype(np.uint8)
    return image, label, rotated(affine, 12)


def write_mr(folder: Path, array: np.ndarray, affine: np.ndarray, first: int, step: int) -> None:
    names = [f"IMG-0004-{first + step * k:05d}.dcm" for k in range(array.shape[2])]
    write_series(folder, array, affine, names, Modality="MR", RescaleIntercept=0)


def write_grey(folder: Path, label: np.ndarray, first: int, step: int) -> None:
    names = [f"IMG-0004-{first + step * k:05d}.png" for k in range(label.shape[2])]
    write_pngs(folder, np.array([0, *CHAOS_GREY.values()], np.uint8)[label], names)


def ircadb(root: Path) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Write 3D-IRCADb: 1 as folders of shuffled masks, 2 as zips, 3 without mask positions."""
    truth = {}
    for patient in (1, 2, 3):
        scan, generator = phantom(patient), np.random.default_rng(patient)
        image, affine = turned(scan.image, scan.affine, "LPS")
        label, _ = turned(scan.labels, scan.affine, "LPS")
        folder, count = root / f"3Dircadb1.{patient}", image.shape[2]
        write_series(folder / "PATIENT_DICOM", image, affine, [f"image_{k}" for k in range(count)])
        half = label.copy()
        half[:, :, : count // 2] = 0
        elsewhere = np.zeros_like(label)
        elsewhere[:5, :5] = 1
        masks = {
            # Lesions belong to the liver here, as they do in the data set.
            "liver": label > 0,
            "livertumor01": half == 2,
            "livertumors": (label == 2) & (half != 2),
            "livercyst": elsewhere > 0,
            "tumor": elsewhere > 0,
            "metastasectomie": elsewhere > 0,
            "skin": np.ones_like(label),
        }
        for name, mask in masks.items():
            order = generator.permutation(count) if patient < 3 else range(count)
            tags = {} if patient < 3 else {"ImagePositionPatient": None}
            names = [f"image_{k}" for k in order]
            write_series(
                folder / "MASKS_DICOM" / name, 255 * mask, affine, names, RescaleIntercept=0, **tags
            )
        if patient == 2:
            for name in ("PATIENT_DICOM", "MASKS_DICOM"):
                shutil.make_archive(str(folder / name), "zip", folder, name)
                shutil.rmtree(folder / name)
        truth[patient] = (image, label, affine)
    return truth


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def pair(seed: int, axcodes: str = "RAS") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (int16), LiTS labels and affine of a phantom."""
    image, affine = turned(phantom(seed).image.astype(np.int16), phantom(seed).affine, axcodes)
    return image, turned(phantom(seed).labels, phantom(seed).affine, axcodes)[0], affine
