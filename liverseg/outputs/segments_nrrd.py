"""Write masks as NRRD, with segments as 3D Slicer has them in `.seg.nrrd`.

The header is written here, as pynrrd refuses names that are not ASCII. The format is that of
http://teem.sourceforge.net/nrrd/format.html, and of 3D Slicer's vtkMRMLSegmentationStorageNode.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Mapping

import numpy as np

from liverseg.files import atomic_write
from liverseg.io.dicom_voxels import LPS_TO_RAS
from liverseg.outputs.codes import SCHEME, Code, code_of
from liverseg.outputs.segmentation import Segmentation, boxes_of

SLICER_CODES = "Segmentation category and type - 3D Slicer General Anatomy list"
SLICER_REGIONS = "Anatomic codes - DICOM master list"


def write_segments_nrrd(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Write a mask for 3D Slicer: a segment for each class that is there, with colour and code.

    Args:
        segmentation: what to write.
        path: a name in `.seg.nrrd`, by which 3D Slicer knows what it is.

    Raises:
        InputError: when it cannot be written; the old file is as it was.
    """
    names = {value: segmentation.name(value) for value in boxes_of(segmentation.mask)}
    write_nrrd(path, segmentation.mask, segmentation.affine, names)


def write_nrrd(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    compress: bool = True,
) -> None:
    """Write a labelmap as NRRD.

    Args:
        path: where.
        mask: (H, W, D), uint8.
        affine: (4, 4), voxel index to RAS mm.
        names: of the values that are segments; none for a plain labelmap. Those that the mask does
            not hold are left out.
        compress: by gzip.

    Raises:
        InputError: when it cannot be written; the old file is as it was.
    """
    lps = LPS_TO_RAS @ affine
    fields = {
        "type": "uint8",
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, mask.shape)),
        "space directions": " ".join(map(_vector, lps[:3, :3].T)),
        "kinds": "domain domain domain",
        "encoding": "gzip" if compress else "raw",
        "space origin": _vector(lps[:3, 3]),
    }
    header = "".join(f"{key}: {text}\n" for key, text in fields.items())
    boxes = boxes_of(mask) if names else {}
    segments = [(names[value], value, box) for value, box in boxes.items() if value in names]
    for number, segment in enumerate(segments):
        header += "".join(f"Segment{number}_{key}:={text}\n" for key, text in _segment(*segment))
    with atomic_write(path) as file:
        file.write(f"NRRD0004\n{header}\n".encode())
        if compress:
            with gzip.GzipFile(
                fileobj=file, mode="wb", compresslevel=1, mtime=0, filename=""
            ) as packed:
                packed.writelines(_planes(mask))
        else:
            file.writelines(_planes(mask))


def _planes(mask: np.ndarray) -> Iterator[bytes]:
    return (mask[:, :, k].tobytes("F") for k in range(mask.shape[2]))


def _segment(name: str, value: int, box: tuple[slice, ...]) -> Iterator[tuple[str, object]]:
    code = code_of(name)
    yield "ID", "_".join(name.split())
    yield "Name", " ".join(name.split())
    yield "LabelValue", value
    yield "Layer", 0
    yield "Extent", " ".join(f"{along.start} {along.stop - 1}" for along in box)
    if code.rgb:
        yield "Color", " ".join(f"{part / 255:.4f}" for part in code.rgb)
    what, where = (code.category, code.kind, code.side), (code.region, None)
    entry = "~".join([SLICER_CODES, *map(_triple, what), SLICER_REGIONS, *map(_triple, where)])
    yield "Tags", f"TerminologyEntry:{entry}|"


def _triple(code: Code | None) -> str:
    return f"{SCHEME}^{code.value}^{code.meaning}" if code else "^^"


def _vector(numbers: np.ndarray) -> str:
    return f"({','.join(repr(float(number)) for number in numbers)})"
