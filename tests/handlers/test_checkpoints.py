from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler

from liverseg.errors import InputError
from liverseg.handlers import Checkpoints, RunSummary


class Run:
    """A real trainer of a tiny network whose validation metric per epoch is given."""

    def __init__(
        self, folder, metrics, cases=("a.nii", "b.nii"), content=b"scan", width=2, learning_rate=0.1, **options
    ):
        scans = next(parent for parent in folder.parents if parent.is_dir())
        validation_data = [{"image": str(scans / case)} for case in cases]
        for item in validation_data:
            Path(item["image"]).write_bytes(content)
        torch.manual_seed(0)
        self.network = torch.nn.Conv2d(1, width, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), learning_rate, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        data = [{"image": torch.ones(1, 4, 4), "label": torch.ones(width, 4, 4)}] * 2
        self.evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(Dataset(data)), self.network)
        self.evaluator.add_event_handler(Events.COMPLETED, self._set_metric, metrics)
        self.states = []
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=len(metrics),
            train_data_loader=DataLoader(Dataset(data)),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=torch.nn.MSELoss(),
            decollate=False,
            train_handlers=[
                LrScheduleHandler(self.scheduler, print_lr=False),
                ValidationHandler(1, self.evaluator),
                Checkpoints(
                    folder,
                    self.network,
                    self.optimizer,
                    self.scheduler,
                    self.evaluator,
                    validation_data,
                    **options,
                ),
                RunSummary(folder / "out", self.evaluator),
            ],
        )

    def _set_metric(self, evaluator, metrics):
        evaluator.state.metrics["val_mean_dice"] = metrics[evaluator.state.epoch - 1]
        self.states.append({key: value.clone() for key, value in self.network.state_dict().items()})

    def run(self):
        self.trainer.run()
        return self


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_model_is_the_best_epoch_and_checkpoint_the_last(tmp_path):
    run = Run(tmp_path, [0.2, 0.8, 0.5]).run()
    assert same(load(tmp_path / "model.pt"), run.states[1])
    checkpoint = load(tmp_path / "checkpoint.pt")
    assert same(checkpoint["model"], run.states[2])
    assert (checkpoint["epoch"], checkpoint["best_metric"], checkpoint["best_metric_epoch"]) == (3, 0.8, 2)
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["val_mean_dice"], record["epoch"]) == (0.8, 2)
    assert "a.nii" not in (tmp_path / "model.json").read_text()


def test_resuming_equals_never_having_stopped(tmp_path):
    whole = Run(tmp_path / "whole", [0.1, 0.2, 0.3, 0.4]).run()
    Run(tmp_path / "parts", [0.1, 0.2]).run()
    resumed = Run(tmp_path / "parts", [0.1, 0.2, 0.3, 0.4], resume=True).run()
    assert len(resumed.states) == 2
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert resumed.trainer.state.iteration == whole.trainer.state.iteration == 8
    history = (tmp_path / "parts" / "out" / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history] == ["epoch", "1", "2", "3", "4"]


def test_a_resumed_run_remembers_its_best(tmp_path):
    first = Run(tmp_path, [0.2, 0.8]).run()
    Run(tmp_path, [0.2, 0.8, 0.7], resume=True).run()
    assert same(load(tmp_path / "model.pt"), first.states[1])


def test_resuming_nothing_starts_at_the_beginning(tmp_path):
    assert len(Run(tmp_path, [0.1, 0.2], resume=True).run().states) == 2


def test_a_worse_model_of_a_later_run_replaces_nothing(tmp_path):
    Run(tmp_path, [0.8]).run()
    before = (tmp_path / "model.pt").read_bytes()
    Run(tmp_path, [0.5, 0.79], learning_rate=0.2).run()
    assert (tmp_path / "model.pt").read_bytes() == before
    better = Run(tmp_path, [0.5, 0.81], learning_rate=0.2).run()
    assert same(load(tmp_path / "model.pt"), better.states[1])
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint.pt", "model.pt"]


def test_a_model_validated_on_other_scans_is_kept_beside(tmp_path):
    Run(tmp_path, [0.8]).run()
    before = (tmp_path / "model.pt").read_bytes()
    other = Run(tmp_path, [0.3], cases=("c.nii",), learning_rate=0.2).run()
    assert same(load(tmp_path / "model.pt"), other.states[0])
    assert [path.read_bytes() for path in tmp_path.glob("model_*.pt")] == [before]


def test_another_scan_of_the_same_name_is_another_scan(tmp_path):
    Run(tmp_path, [0.8]).run()
    other = Run(tmp_path, [0.3], content=b"another scan", learning_rate=0.2).run()
    assert same(load(tmp_path / "model.pt"), other.states[0])


def test_patience_stops_the_training(tmp_path):
    assert len(Run(tmp_path, [0.1, 0.5, 0.4, 0.4, 0.4, 0.9], patience=3).run().states) == 5


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    Run(tmp_path, [0.5]).run()
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of this network"):
        Run(tmp_path, [0.5, 0.6], width=3, resume=True).run()


@contextmanager
def full_disk(free_bytes):
    """No file can grow past `free_bytes`: what a write meets on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_loses_nothing(tmp_path):
    Run(tmp_path, [0.5]).run()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with full_disk(100), pytest.raises(InputError, match=r"(model|checkpoint)\.pt: could not be saved .* is kept"):
        Run(tmp_path, [0.9], learning_rate=0.2).run()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_an_unwritable_folder_is_refused_before_the_first_epoch(tmp_path):
    (tmp_path / "file").touch()
    run = Run(tmp_path / "file" / "models", [0.5])
    with pytest.raises(InputError, match="the folder cannot be written"):
        run.run()
    assert run.states == []


def test_the_summary_is_the_last_line_printed_and_a_file(tmp_path, capsys):
    Run(tmp_path, [0.2, 0.8, 0.5]).run()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (printed["best_val_mean_dice"], printed["best_epoch"], printed["epochs"]) == (0.8, 2, 3)
    assert printed["peak_memory_gb"] > 0.05
    assert printed["versions"]["torch"] == torch.__version__
