from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.transforms import AsDiscreted, Compose

from liverseg.engines import ScanDataset, ScanEvaluator
from liverseg.errors import InputError, message
from liverseg.handlers import MaskSummary, WeightsCheckpointLoader
from liverseg.io.masks import MaskFolder
from liverseg.transforms import LoadVolumed, SaveMaskd


def run(folder, scans, *handlers) -> None:
    masks = MaskFolder(folder, "liver", scans=scans)
    ScanEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(ScanDataset(scans, LoadVolumed("image")), batch_size=1),
        network=torch.nn.Conv3d(1, 2, 1),
        postprocessing=Compose([AsDiscreted("pred", argmax=True), SaveMaskd("pred", masks)]),
        val_handlers=[*handlers, MaskSummary(masks)],
    ).run()


def errors(folder) -> dict[str, str | None]:
    return {
        scan["image"]: scan.get("error")
        for scan in json.loads((folder / "summary.json").read_text())["scans"]
    }


def test_scans_that_fail_are_recorded_whether_alone_or_not(tmp_path, write_nifti):
    right = {"image": write_nifti("right.nii", np.zeros((4, 4, 2), np.int16))}
    wrong = {"image": write_nifti("wrong.nii", np.zeros((4, 4), np.int16))}
    with pytest.raises(InputError, match=r"1 of 2 scans failed"):
        run(tmp_path / "both", [wrong, right])
    run(tmp_path / "each", [right])
    with pytest.raises(RuntimeError) as error:
        run(tmp_path / "each", [wrong])
    shown = message(error.value)
    assert shown is not None and "the volume is 2-D" in shown
    assert (
        errors(tmp_path / "both")
        == errors(tmp_path / "each")
        == {wrong["image"]: shown, right["image"]: None}
    )


def test_what_no_scan_is_to_blame_for_is_recorded_of_none(tmp_path, write_nifti):
    scan = {"image": write_nifti("right.nii", np.zeros((4, 4, 2), np.int16))}
    weights = WeightsCheckpointLoader(torch.nn.Conv3d(1, 2, 1), tmp_path / "gone.pt")
    with pytest.raises(InputError, match=r"gone\.pt"):
        run(tmp_path / "masks", [scan], weights)
    assert not (tmp_path / "masks").exists()


def test_a_folder_that_cannot_be_written_ends_the_run_before_the_first_scan(tmp_path):
    class NoEpoch:
        def attach(self, engine):
            engine.add_event_handler(
                Events.EPOCH_STARTED, lambda: pytest.fail("the scans are read")
            )

    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.masks: the folder cannot be written"):
        run(tmp_path / "file" / "masks", [{"image": "/gone.nii"}], NoEpoch())
