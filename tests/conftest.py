from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import write_dataset

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
def dataset(tmp_path_factory) -> Path:
    """A folder as a bundle's `dataset_dir`."""
    return write_dataset(tmp_path_factory.mktemp("data"))
