from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"


@pytest.fixture
def samples() -> Path:
    """The folder of real scans."""
    if not SAMPLES.is_dir():
        pytest.skip(f"the real scans are not there: {SAMPLES}")
    return SAMPLES


@pytest.fixture
def write_nifti(tmp_path):
    """Write an array as NIfTI under `tmp_path`; returns the path as text."""

    def write(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def blob_scans(tmp_path_factory) -> Path:
    """A folder as a bundle's `dataset_dir`: five tiny scans to train on in three folds, one in LPS to test on."""
    folder = tmp_path_factory.mktemp("blob_scans")
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(64), np.arange(64), np.arange(8), indexing="ij")
    sections: dict[str, list[dict[str, object]]] = {"training": [], "test": []}
    for case in range(6):
        centre = random.uniform(24, 40, 2)
        liver = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (6 * (z - 4)) ** 2 < 15**2
        body = (x - 32) ** 2 + (y - 32) ** 2 < 30**2
        image = np.where(liver, 110.0, np.where(body, 20.0, -1000.0)) + random.normal(0, 15, liver.shape)
        affine = np.diag([-3.0, -3.0, 5.0, 1.0] if case == 5 else [3.0, 3.0, 5.0, 1.0])
        affine[:3, 3] = 10, -20, 30
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / f"volume-{case}.nii.gz")
        nib.save(nib.Nifti1Image(liver.astype(np.uint8), affine), folder / f"segmentation-{case}.nii.gz")
        item = {"image": f"volume-{case}.nii.gz", "label": f"segmentation-{case}.nii.gz"}
        sections["test" if case == 5 else "training"].append(item | {"patient": str(case), "fold": case % 3})
    (folder / "dataset.json").write_text(json.dumps(sections))
    return folder
