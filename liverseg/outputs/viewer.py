"""Pack a scan, its mask and the mask's surface for the script of the page, `report.js`."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from liverseg.outputs.overlays import CT_HOLDS_HU, Scan
from liverseg.outputs.shown import inner_classes
from liverseg.outputs.surface import Mesh, class_meshes

# 8 bits hold steps of 2.5 HU where soft tissue is, and coarser ones below and above.
CT_CODES, CT_HU = (0, 48, 208, 255), (-1024, -150, 250, 2000)
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "Soft tissue": (-160, 240),
    "Liver": (-20, 140),
    "Lung": (-1350, 150),
    "Bone": (-500, 1300),
}
# Of intensities, which have no unit; the outermost are what 8 bits hold.
MR_WINDOWS = {"1 to 99.5 %": (1, 99.5), "5 to 98 %": (5, 98), "All": (0.1, 99.9)}
# Points of surfaces are stored as whole tenths of a millimetre.
POINTS_PER_MM = 10


def viewer(scan: Scan, class_names: Mapping[int, str]) -> dict[str, Any]:
    """Return what the script reads: `data` for JSON, the others as gzip in base64.

    Args:
        scan: what `shown_scan` returns.
        class_names: of each value above 0.
    """
    found = [int(value) for value in np.unique(scan.mask) if value]
    inner = inner_classes(class_names)
    meshes = class_meshes(scan.mask, scan.spacing_mm)
    last_faces = np.cumsum([len(meshes[value].faces) for value in found]).tolist()
    values, windows = _values_and_windows(scan.image)
    data = {
        "shape": scan.image.shape,
        "spacingMm": scan.spacing_mm,
        "values": values.round(2).tolist(),
        "unit": " HU" if _is_ct(scan.image) else "",
        "windows": windows,
        "start": _start(scan.mask),
        "points": sum(len(mesh.points) for mesh in meshes.values()),
        "classes": [
            {
                "value": value,
                "name": class_names[value],
                "colour": scan.colours[value],
                "lastFace": last,
                "inner": value in inner,
            }
            for value, last in zip(found, last_faces, strict=True)
        ],
    }
    return {
        "data": data,
        # x runs fastest, as in the script.
        "image": _packed(_codes(scan.image, values).tobytes("F")),
        "mask": _packed(scan.mask.tobytes("F")),
        "surface": _packed(_surface_bytes([meshes[value] for value in found])),
    }


def _is_ct(image: np.ndarray) -> bool:
    return bool(image.min() <= CT_HOLDS_HU)


def _values_and_windows(image: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Return what each of the 256 codes stands for, and black and white of each window."""
    if _is_ct(image):
        return np.interp(range(256), CT_CODES, CT_HU), CT_WINDOWS
    windows = {
        name: (float(low), float(high))
        for name, shares in MR_WINDOWS.items()
        for low, high in [np.percentile(image, shares)]
    }
    return np.linspace(*windows["All"], 256), windows


def _codes(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the codes, uint8, of the values that are nearest to those of the image."""
    between = (values[1:] + values[:-1]) / 2
    codes = np.empty(image.shape, np.uint8)
    for plane, target in zip(image, codes, strict=True):
        target[:] = np.searchsorted(between, plane)
    return codes


def _start(mask: np.ndarray) -> list[int]:
    """Return the slice of each axis in which the mask is largest; the middle of an empty one."""
    areas = [np.count_nonzero(mask, tuple({0, 1, 2} - {axis})) for axis in range(3)]
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in areas]


def _surface_bytes(meshes: Sequence[Mesh]) -> bytes:
    """Return points and faces of all, int16 and uint16, and normals, int8, as the script reads."""
    starts = np.cumsum([0, *(len(mesh.points) for mesh in meshes)])
    parts = [
        *((mesh.points * POINTS_PER_MM).round().astype("<i2") for mesh in meshes),
        *((mesh.faces + start).astype("<u2") for mesh, start in zip(meshes, starts, strict=False)),
        *((mesh.normals * 127).round().astype("i1") for mesh in meshes),
    ]
    return b"".join(part.tobytes() for part in parts)


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
