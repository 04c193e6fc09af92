from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.losses import DeepSupervisionLoss, DiceCELoss, TverskyLoss
from torch.nn.functional import interpolate

from liverseg.inferers import AutocastInferer
from liverseg.losses import DiceTopKLoss, FocalTverskyLoss, PerClassLoss, TopKLoss


class TwoLevels(torch.nn.Module):
    """Logits at full and at half resolution in training, at full resolution alone in evaluation."""

    def __init__(self, kind=list):
        super().__init__()
        torch.manual_seed(0)
        self.fine = torch.nn.Conv2d(1, 2, 3, padding=1)
        self.coarse = torch.nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.kind = kind

    def forward(self, image):
        return (
            self.kind([self.fine(image), self.coarse(image)]) if self.training else self.fine(image)
        )


def batch():
    torch.manual_seed(1)
    image = torch.randn(2, 1, 16, 16)
    return {"image": image, "label": (image > 0.5).to(torch.uint8)}


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("amp", [True, False])
def test_every_level_returns_in_full_precision(kind, amp):
    network, image = TwoLevels(kind), batch()["image"]
    levels = AutocastInferer(amp)(image, network)
    assert [level.dtype for level in levels] == [torch.float32] * 2
    assert [tuple(level.shape) for level in levels] == [(2, 2, 16, 16), (2, 2, 8, 8)]
    torch.testing.assert_close(
        levels, [network.fine(image), network.coarse(image)], atol=0.05, rtol=0.05
    )
    assert AutocastInferer(amp)(image, network.eval()).shape == (2, 2, 16, 16)


LOSSES = {
    "dice_ce": DiceCELoss(to_onehot_y=True, softmax=True, batch=True),
    "focal_tversky": FocalTverskyLoss(to_onehot_y=True, softmax=True, batch=True),
    "top_k": TopKLoss(10),
    "dice_top_k": DiceTopKLoss(10, batch=True),
    "per_class": PerClassLoss(
        {"background": None, "lesion": TverskyLoss(alpha=0.5, beta=1.5, batch=True)}
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_deep_supervision_in_monais_trainer(name):
    """One step on the weighted sum of the levels' losses, the label at each level's resolution."""
    loss, data = LOSSES[name], batch()
    network = TwoLevels()
    expected = loss(network.fine(data["image"]), data["label"]) + 0.5 * loss(
        network.coarse(data["image"]),
        interpolate(data["label"], scale_factor=0.5, mode="nearest-exact"),
    )
    items = [{key: value[n] for key, value in data.items()} for n in range(2)]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=DeepSupervisionLoss(loss),
        inferer=AutocastInferer(amp=False),
        decollate=False,
    )
    trainer.run()
    assert trainer.state.output["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(not torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("channels", [16, 32, 128])
def test_gradients_where_small_patches_have_come_down_to_2_voxels(channels):
    """oneDNN reads memory there that nothing has written in bfloat16."""
    torch.manual_seed(0)
    deep = torch.nn.Conv3d(channels, channels, 3, padding=1)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, channels, 8, stride=8), deep)
    for _ in range(12):
        for size in (1000, 10000, 100000):  # What is freed is what is taken next.
            torch.full((size,), float("nan"))
        network.zero_grad()
        AutocastInferer()(torch.rand(2, 1, 16, 16, 16), network).sum().backward()
        assert deep.weight.grad.isfinite().all()


def test_only_small_patches_of_a_training_stay_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def dtype(*size):
        found = []
        network = torch.nn.Linear(size[-1], 2)
        network.register_forward_hook(lambda *call: found.append(call[-1].dtype))
        AutocastInferer()(torch.rand(1, 1, *size), network)
        return found[0]

    assert [dtype(63, 64, 64), dtype(64, 8, 8), dtype(8, 8)] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
    with torch.no_grad():
        assert dtype(8, 8, 8) == torch.bfloat16
