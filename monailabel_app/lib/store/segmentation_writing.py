"""Write a label as DICOM SEG."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pydicom
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from pydicom.dataset import Dataset

from liverseg.errors import InputError


def write_segmentation(scan: Path, label: str, segments: list[dict[str, Any]]) -> Dataset:
    """A label map as DICOM SEG.

    Args:
        scan: folder with the DICOM files.
        label: NIfTI file.
        segments: what describes each value, in their order.
    """
    file = Path(nifti_to_dicom_seg(str(scan), label, segments))
    try:
        return pydicom.dcmread(file)
    except FileNotFoundError as error:
        raise InputError(
            f"label of {scan.name}: found that itkimage2segimage cannot write it as DICOM SEG, "
            "expected it to: see the server's log."
        ) from error
    finally:
        file.unlink(missing_ok=True)


def named_segments(info: Mapping[str, Any], values: Collection[int]) -> list[dict[str, Any]]:
    """Return the segment of each value, in the order of the values, which MONAI Label goes by.

    Args:
        info: `label_info` is what 3D Slicer sends, `params` with `label_names` what a model gave.
        values: in the label.
    """
    names = info.get("params", {}).get("label_names") or {}
    given = {int(value): {"name": name} for name, value in names.items()}
    given |= {
        int(one.get("idx", number)): dict(one)
        for number, one in enumerate(info.get("label_info") or (), 1)
    }
    # The first one's `model_name` becomes the series' description.
    common = {"model_name": info.get("model", "Segmentation")}
    return [
        {"name": f"segment {value}", **common, **given.get(value, {}), "idx": value}
        for value in sorted(values)
    ]
