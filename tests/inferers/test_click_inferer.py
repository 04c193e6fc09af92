from __future__ import annotations

import numpy as np
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.networks.nets import SegResNet

from liverseg.inferers import ClickWindowInferer, EvaluateWithClicks, VolumeWindowInferer

# Oblique, and thick slices.
AFFINE = torch.tensor(
    [[1.6, -1.2, 0, 30], [1.2, 1.6, 0, -20], [0, 0, 5, 7], [0, 0, 0, 1]], dtype=torch.float64
)
OPTIONS = {"roi_size": (16, 16, 16), "spacing": (4.0, 4.0, 4.0), "amp": False}


def painter() -> torch.nn.Module:
    """Classes 1 and 2 where their click is above a half, else the background."""
    network = torch.nn.Conv3d(4, 3, 1)
    with torch.no_grad():
        network.weight[:] = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])[
            ..., None, None, None
        ]
        network.bias[:] = torch.tensor([0.5, 0, 0])
    return network


def test_without_clicks_their_channels_are_zero():
    torch.manual_seed(0)
    network = SegResNet(in_channels=4, out_channels=3).eval()
    volume = MetaTensor(torch.rand(1, 1, 40, 34, 18), affine=AFFINE)

    def automatic(x):
        return network(torch.cat([x, torch.zeros(len(x), 3, *x.shape[2:])], 1))

    expected = VolumeWindowInferer(**OPTIONS)(volume, automatic)
    inferer = ClickWindowInferer(num_classes=3, sigma=2.0, **OPTIONS)
    assert torch.equal(inferer(volume, network), expected)
    assert len(expected.unique()) > 1
    volume.meta["clicks"] = torch.zeros(1, 0, 4)
    assert torch.equal(inferer(volume, network), expected)
    volume.meta["clicks"] = torch.tensor([[[30.0, 20, 40, 2]]])
    assert not torch.equal(inferer(volume, network), expected)


def test_each_scan_of_a_batch_has_its_own_clicks():
    volume = MetaTensor(torch.zeros(2, 1, 20, 20, 20), affine=torch.eye(4))
    volume.meta["clicks"] = torch.tensor([[[4.0, 5, 6, 1]], [[12, 13, 14, 2]]])
    volume.affine = torch.eye(4)
    inferer = ClickWindowInferer(num_classes=3, sigma=1.0, roi_size=(24, 24, 24), amp=False)
    found = inferer(volume, painter())
    for index, (voxel, value) in enumerate([((4, 5, 6), 1), ((12, 13, 14), 2)]):
        where = found[index, 0].as_tensor().nonzero()
        assert torch.equal(where.float().mean(0), torch.tensor(voxel).float())
        assert found[index, 0].unique().tolist() == [0, value]


def evaluate(num_clicks: int, label: MetaTensor) -> dict:
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(
            [{"image": MetaTensor(torch.zeros(label.shape), affine=label.affine), "label": label}]
        ),
        painter(),
        inferer=ClickWindowInferer(num_classes=3, sigma=2.0, **OPTIONS),
        iteration_update=EvaluateWithClicks(num_clicks, 3, OPTIONS["spacing"]),
    )
    evaluator.run()
    (case,) = evaluator.state.output
    return case


def test_an_evaluation_clicks_into_the_errors_and_keeps_the_result_before():
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (60, 50, 20)), indexing="ij"), -1)
    voxels_mm = grid * (2.0, 2.0, 5.0)
    label = np.zeros(grid.shape[:3], np.uint8)
    label[np.linalg.norm(voxels_mm - (40, 40, 50), axis=-1) < 24] = 1
    label[np.linalg.norm(voxels_mm - (96, 76, 30), axis=-1) < 12] = 2
    label = MetaTensor(torch.from_numpy(label)[None], affine=AFFINE)

    case = evaluate(0, label)
    assert torch.equal(case["pred"], case["pred_automatic"])
    previous = 0
    for num_clicks in (1, 2, 5):
        case = evaluate(num_clicks, label)
        assert not case["pred_automatic"].any()
        found, truth = case["pred"][0].as_tensor(), label[0].as_tensor()
        right = int(((found == truth) & (truth > 0)).sum())
        assert right > previous
        previous = right
        # Clicks are so deep that what is painted around them, 2.4 voxels of 4 mm, is of their
        # class.
        assert (found == truth)[found > 0].float().mean() > 0.95
        if num_clicks == 1:
            centre_mm = found.nonzero().float().mean(0) * torch.tensor([2.0, 2, 5])
            assert (centre_mm - torch.tensor([40.0, 40, 50])).norm() < 6
            assert found.unique().tolist() == [0, 1]
    assert set(found.unique().tolist()) == {0, 1, 2}
