"""A real DICOM series laid out as CHAOS CT: another reader finds the same as we write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import dataset_trees as trees
from monai.transforms import LoadImage

from liverseg.workbench.datasets.chaos import CHAOS_CT
from liverseg.workbench.datasets.convert import convert

pytestmark = pytest.mark.real_data


def canonical(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(array, affine))


def test_a_real_series_as_chaos(samples, tmp_path):
    organs = nib.load(samples / "ts_ct_dicom_organs.nii.gz")
    liver = (np.asarray(organs.dataobj) == 5).astype(np.uint8)
    label, affine = trees.turned(liver, organs.affine, "LPS")
    series = LoadImage(image_only=True)(samples / "ts_ct_dicom")
    scan = canonical(np.asarray(series).astype(np.int16), np.asarray(series.affine))

    # Named from head to foot, as in CHAOS, by the position that each file gives.
    from pydicom import dcmread

    files = [path for path in Path(samples / "ts_ct_dicom").iterdir() if path.is_file()]
    files.sort(key=lambda path: -dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])
    for patient in (1, 2):
        folder = tmp_path / "CHAOS" / "Train_Sets" / "CT" / str(patient)
        (folder / "DICOM_anon").mkdir(parents=True)
        for number, path in enumerate(files):
            shutil.copy(path, folder / "DICOM_anon" / f"i{number:04d},0000b.dcm")
        last = label.shape[2] - 1
        trees.write_pngs(
            folder / "Ground",
            255 * label,
            [f"liver_GT_{last - k:03d}.png" for k in range(last + 1)],
        )

    path = convert(CHAOS_CT, tmp_path / "CHAOS", tmp_path / "out", 2, 0)
    for item in json.loads(path.read_text())["training"]:
        for key, expected in (("image", scan), ("label", canonical(label, affine))):
            written = nib.as_closest_canonical(nib.load(path.parent / item[key]))
            assert np.array_equal(np.asarray(written.dataobj), np.asarray(expected.dataobj)), key
            assert np.allclose(written.affine, expected.affine, atol=1e-2), key
    (case, _) = json.loads((path.parent / "check.json").read_text())["cases"]
    assert case["verdict"] == "ok", case["reasons"]
    assert case["voxels"]["liver"] == liver.sum()
