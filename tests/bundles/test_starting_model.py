"""unet3d_liver with the fetched weights, on real scans: no worse than when they were chosen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import BUNDLE
from monai.bundle import create_workflow

pytestmark = pytest.mark.slow

STARTING_MODEL = BUNDLE.parent / "unet3d_liver"
SHARED = Path(__file__).resolve().parents[3] / "shared"
# Scan, its reference with the value of the liver in it, modality, and the least Dice.
SCANS = {
    "scans/msd_liver_0_ct.nii.gz": ("scans/msd_liver_0_ct_liver.nii.gz", 1, "ct", 0.961),
    "scans/lidc_0001_ct.nii.gz": ("scans/lidc_0001_ct_organs.nii.gz", 5, "ct", 0.964),
    "samples/ts_ct.nii.gz": ("samples/ts_ct_organs.nii.gz", 5, "ct", 0.96),
    "samples/ts_ct_dicom": ("samples/ts_ct_dicom_organs.nii.gz", 5, "ct", 0.954),
    "samples/ts_mr.nii.gz": ("samples/ts_mr_organs.nii.gz", 5, "mr", 0.896),
}


def segment(scan: Path, folder: Path, **settings) -> nib.Nifti1Image:
    """The mask of a scan, by the bundle as it is fetched."""
    create_workflow(
        config_file=str(STARTING_MODEL / "configs" / "inference.json"),
        workflow_type="infer",
        bundle_root=str(STARTING_MODEL),
        dataset_dir=str(scan),
        output_dir=str(folder),
        **settings,
    ).run()
    (entry,) = json.loads((folder / "summary.json").read_text())["scans"]
    return nib.load(folder / entry["mask"])


def dice(mask: nib.Nifti1Image, reference: Path, value: int) -> float:
    found, wanted = (nib.as_closest_canonical(image) for image in (mask, nib.load(reference)))
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-2)
    a, b = np.asarray(found.dataobj) > 0, np.asarray(wanted.dataobj) == value
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_it_finds_the_liver_of_the_ct_that_comes_with_it(tmp_path):
    ct = Path(sys.prefix) / "ct"
    mask = segment(ct / "lidc_idri_0001.nii.gz", tmp_path)
    assert mask.shape == nib.load(ct / "lidc_idri_0001.nii.gz").shape
    assert dice(mask, ct / "lidc_idri_0001_liver.nii.gz", 1) >= 0.96


@pytest.mark.real_data
@pytest.mark.parametrize("name", SCANS)
def test_it_finds_the_liver_of_real_scans(name, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"the real scans are not there: {SHARED}")
    reference, value, modality, least = SCANS[name]
    assert (
        dice(segment(SHARED / name, tmp_path, modality=modality), SHARED / reference, value)
        >= least
    )


@pytest.mark.real_data
def test_lesions_lie_in_the_liver_and_leave_it_as_it_is(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"the real scans are not there: {SHARED}")
    scan = SHARED / "samples" / "crlm_ct_1006.nii.gz"
    liver = np.asarray(segment(scan, tmp_path / "liver").dataobj)
    both = np.asarray(
        segment(scan, tmp_path / "both", segmented_targets=["liver", "lesion"]).dataobj
    )
    np.testing.assert_array_equal(both > 0, liver > 0)
    # It has metastases that one sees.
    assert 500 < np.count_nonzero(both == 2) < np.count_nonzero(both == 1)
