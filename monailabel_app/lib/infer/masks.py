"""Masks as clients read them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from monailabel.datastore.utils.colors import GENERIC_ANATOMY_COLORS

from liverseg.io.nifti import read_nifti, write_nifti

NRRD_SUFFIXES = (".nrrd", ".seg.nrrd")
# 3D Slicer's colours by segment name, and those of the nearest for names that it does not know.
COLORS = {
    **GENERIC_ANATOMY_COLORS,
    "lesion": GENERIC_ANATOMY_COLORS["mass"],
    "portal vein": GENERIC_ANATOMY_COLORS["vein"],
}


def convert_mask(
    source: Path, suffix: str, labels: Mapping[str, int], compress: bool = True
) -> tuple[str, dict[str, int]]:
    """Write a mask as uint8 on the same grid into a temporary file.

    Args:
        source: NIfTI file of shape (H, W, D), which may be moved.
        suffix: of the file to write, one of `NIFTI_SUFFIXES` and `NRRD_SUFFIXES`.
        labels: value by segment name.
        compress: of an NRRD file.

    Returns:
        The file, and those of `labels` that occur in it: 3D Slicer names the values that it finds
            by their order.
    """
    volume = read_nifti(source)
    mask = volume.array.astype(np.uint8, copy=False)
    present = {name: value for name, value in labels.items() if (mask == value).any()}
    descriptor, path = tempfile.mkstemp(suffix=suffix)
    os.close(descriptor)
    if suffix in NRRD_SUFFIXES:
        header = nrrd_header(volume.affine, present if suffix == ".seg.nrrd" else {})
        nrrd.write(
            path, mask, {**header, "encoding": "gzip" if compress else "raw"}, compression_level=1
        )
    elif source.name.endswith(suffix) and mask is volume.array:
        shutil.move(source, path)
    else:
        write_nifti(path, mask, volume.affine)
    return path, present


def nrrd_header(affine: np.ndarray, segments: Mapping[str, int]) -> dict[str, Any]:
    """The header of a labelmap, with segment names and colours as 3D Slicer reads `.seg.nrrd`.

    Args:
        affine: voxel to RAS in mm, (4, 4).
        segments: value by name; none for a plain labelmap.
    """
    lps = np.diag([-1, -1, 1, 1]) @ affine
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
    }
    for number, (name, value) in enumerate(segments.items()):
        segment = {"ID": name.replace(" ", "_"), "Name": name, "LabelValue": value, "Layer": 0}
        if name in COLORS:
            segment["Color"] = " ".join(f"{part / 255:.4f}" for part in COLORS[name])
        header |= {f"Segment{number}_{key}": text for key, text in segment.items()}
    return header
