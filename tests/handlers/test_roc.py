"""The ROC of an evaluation of volumes that 2-D and 3-D inferers segment."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.two_ranks import run_two_ranks
from monai.data import DataLoader, Dataset, DistributedSampler, MetaTensor
from monai.engines import SupervisedEvaluator
from scipy.stats import mannwhitneyu

from liverseg.errors import InputError
from liverseg.handlers import RocCurves, SegmentationReport
from liverseg.inferers import VolumeSliceInferer

NAMES = ["background", "liver", "lesion"]


class Scores(torch.nn.Module):
    """Logits of three classes from an image."""

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), image, -image / 2 - 1], dim=1)


def make_cases() -> list[dict[str, MetaTensor]]:
    cases = []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        label = torch.zeros(1, 12, 10, 5 + number)
        label[:, 3:9, 2:8, 1:4] = 1
        if number < 2:
            label[:, 4:6, 3:5, 2] = 2
        noise = torch.randn(label.shape, generator=generator)
        image = torch.tensor([-1.0, 1.0, -2.0])[label.long()] + 2 * noise
        meta = {"filename_or_obj": f"/scans/{number}.nii"}
        affine = torch.eye(4)
        cases.append(
            {
                "image": MetaTensor(image, affine, meta),
                "label": MetaTensor(label, affine, meta),
            }
        )
    return cases


def evaluate(folder, sampler=None, cases=None, inferer=None, names=NAMES):
    dataset = Dataset(cases or make_cases())
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, sampler=sampler and sampler(dataset)),
        network=Scores(),
        inferer=inferer or VolumeSliceInferer(amp=False),
        # The curve is that of the network, not of what becomes of its mask.
        postprocessing=lambda item: item | {"pred": torch.zeros_like(item["pred"])},
        val_handlers=[SegmentationReport(folder, names), RocCurves(folder, names)],
    ).run()


def test_the_area_is_that_of_the_networks_own_probabilities(tmp_path):
    evaluate(tmp_path)
    cases = make_cases()
    scores = [Scores()(case["image"].as_tensor()[None]).double().softmax(1)[0] for case in cases]
    probabilities = torch.cat([score.flatten(1) for score in scores], 1).numpy()
    labels = torch.cat([case["label"].as_tensor().flatten() for case in cases]).numpy()
    summary = json.loads((tmp_path / "summary.json").read_text())
    table = pd.read_csv(tmp_path / "roc.csv").set_index("class")
    for index, name in enumerate(NAMES):
        inside, outside = (
            probabilities[index, part] for part in (labels == index, labels != index)
        )
        area = mannwhitneyu(inside, outside).statistic / (inside.size * outside.size)
        # The probabilities are rounded to 255 parts.
        assert summary["pooled"]["classes"][name]["auc"] == pytest.approx(area, abs=2e-3)
        if index > 0:
            # Halfway between two levels, rounding changes nothing.
            rates = table.loc[name].set_index("threshold").loc[129 / 255]
            expected = np.mean(inside >= 128.5 / 255)
            assert rates["true_positive_rate"] == pytest.approx(expected, abs=1e-12)
    assert summary["pooled"]["classes"]["liver"]["iou"] == 0


class WithLesion(VolumeSliceInferer):
    """As a cascade, which has a channel for the lesion where it finds the liver alone too."""

    def __init__(self, lesion: int) -> None:
        super().__init__(amp=False)
        self.lesion = lesion

    def segment(self, *args, **kwargs):
        labels, found = super().segment(*args, **kwargs)
        found[:, 1] = self.lesion
        return labels.clamp(max=1), found


def of_liver_alone() -> list[dict[str, MetaTensor]]:
    return [case | {"label": case["label"].clamp(max=1)} for case in make_cases()]


def test_a_lesion_that_nobody_looks_for_is_left_out(tmp_path):
    evaluate(tmp_path, cases=of_liver_alone(), inferer=WithLesion(0), names=NAMES[:2])
    table = pd.read_csv(tmp_path / "roc.csv")
    assert table["class"].unique().tolist() == NAMES[:2]


def test_probabilities_of_other_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="found probabilities of 2 classes, expected those of"):
        evaluate(tmp_path, cases=of_liver_alone(), inferer=WithLesion(9), names=NAMES[:2])


def test_two_ranks_write_what_one_does(tmp_path):
    evaluate(tmp_path / "one")
    run_two_ranks(__file__, str(tmp_path))
    areas = []
    for folder in ("one", "two"):
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        areas.append([summary["pooled"]["classes"][name]["auc"] for name in NAMES])
    assert areas[0] == areas[1]
    one, two = (tmp_path / folder / "roc.csv" for folder in ("one", "two"))
    assert one.read_text() == two.read_text()


def main(folder: str, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    # Two of three cases each: one comes twice.
    evaluate(f"{folder}/two", lambda dataset: DistributedSampler(dataset, shuffle=False))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
