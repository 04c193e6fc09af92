from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.bundle_runs import BUNDLE, SHORT, monai_bundle


@pytest.fixture(scope="session")
def trained(tmp_path_factory, dataset) -> Path:
    """Return a copy of the bundle's folder, trained for a few steps with its defaults."""
    folder = tmp_path_factory.mktemp("trained") / BUNDLE.name
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models", "eval", "output"))
    run = monai_bundle(
        "run",
        "training",
        "--config_file",
        "configs/train.json",
        cwd=folder,
        dataset_dir=dataset,
        **SHORT,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (folder / "training.log").write_text(run.stdout)
    return folder
