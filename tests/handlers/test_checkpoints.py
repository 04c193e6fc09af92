from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.full_disk import full_disk
from helpers.two_ranks import run_two_ranks
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler

from liverseg.errors import InputError
from liverseg.handlers import Checkpoints, RunSummary
from liverseg.workbench.report.curves import curves_png


class Run:
    """A real trainer of a tiny network whose validation metric per epoch is given."""

    def __init__(
        self,
        folder,
        metrics,
        cases=("a.nii", "b.nii"),
        content=b"scan",
        width=2,
        learning_rate=0.1,
        scale=1,
        parallel=False,
        val_interval=1,
        batch_size=1,
        start=None,
        **options,
    ):
        scans = next(parent for parent in folder.parents if parent.is_dir())
        validation_data = [{"image": str(scans / case)} for case in cases]
        for item in validation_data:
            Path(item["image"]).write_bytes(content)
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Conv2d(1, width, 1))
        if parallel:
            self.network = torch.nn.parallel.DistributedDataParallel(self.network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), learning_rate, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        data = [
            {
                "image": torch.arange(16.0).reshape(1, 4, 4) * n * scale,
                "label": torch.ones(width, 4, 4),
            }
            for n in (1, 2)
        ]
        self.evaluator = SupervisedEvaluator(
            torch.device("cpu"), DataLoader(Dataset(data)), self.network
        )
        self.evaluator.add_event_handler(Events.COMPLETED, self._set_metric, metrics, start)
        self.states = []
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=len(metrics),
            train_data_loader=DataLoader(Dataset(data), batch_size=batch_size),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=torch.nn.MSELoss(),
            decollate=False,
            train_handlers=[
                LrScheduleHandler(self.scheduler, print_lr=False),
                ValidationHandler(val_interval, self.evaluator),
                Checkpoints(
                    folder,
                    self.network,
                    self.optimizer,
                    self.scheduler,
                    self.evaluator,
                    validation_data,
                    validate_start=start is not None,
                    **options,
                ),
                RunSummary(folder / "out", self.evaluator),
            ],
        )

    def _set_metric(self, evaluator, metrics, start):
        epoch = evaluator.state.epoch
        evaluator.state.metrics["val_mean_dice"] = metrics[epoch - 1] if epoch else start
        self.states.append(
            {key: value.clone() for key, value in evaluator.network.state_dict().items()}
        )

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
    assert (checkpoint["epoch"], checkpoint["best_metric"], checkpoint["best_metric_epoch"]) == (
        3,
        0.8,
        2,
    )
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["val_mean_dice"], record["epoch"]) == (0.8, 2)
    assert "a.nii" not in (tmp_path / "model.json").read_text()


def test_the_last_model_stays_where_nothing_is_chosen(tmp_path):
    run = Run(tmp_path, [0.2, 0.8, 0.5, 0.4], keep_best=False).run()
    assert same(load(tmp_path / "model.pt"), run.states[3])
    assert json.loads((tmp_path / "model.json").read_text())["val_mean_dice"] == 0.4
    assert run.trainer.state.best_metric_epoch == 2
    # A later training replaces it, better or not.
    worse = Run(tmp_path, [0.1], keep_best=False).run()
    assert same(load(tmp_path / "model.pt"), worse.states[0])


def test_the_last_epoch_is_validated_whatever_the_interval(tmp_path):
    run = Run(tmp_path, [0.2, 0.3, 0.4, 0.5, 0.6], val_interval=2, keep_best=False).run()
    assert len(run.states) == 3  # after 2, 4 and 5 epochs
    assert same(load(tmp_path / "model.pt"), run.states[-1])
    with (tmp_path / "out" / "history.csv").open(newline="") as file:
        validated = [row["epoch"] for row in csv.DictReader(file) if row["val_mean_dice"]]
    assert validated == ["2", "4", "5"]


def test_weights_to_start_from_stay_where_no_epoch_beats_them(tmp_path):
    run = Run(tmp_path, [0.2, 0.8, 0.7], start=0.8).run()
    assert len(run.states) == 4
    assert same(load(tmp_path / "model.pt"), run.states[0])
    assert not same(run.states[0], run.states[1])
    assert json.loads((tmp_path / "model.json").read_text())["epoch"] == 0
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (facts["best_val_mean_dice"], facts["best_epoch"], facts["epochs"]) == (0.8, 0, 3)
    with (tmp_path / "out" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["iteration"], row["val_mean_dice"]) for row in rows] == [
        ("0", "0", "0.8"),
        ("1", "2", "0.2"),
        ("2", "4", "0.8"),
        ("3", "6", "0.7"),
    ]
    assert [bool(row["loss"]) for row in rows] == [False, True, True, True]
    assert curves_png(tmp_path / "out" / "history.csv")

    better = Run(tmp_path / "better", [0.2, 0.9], start=0.8).run()
    assert same(load(tmp_path / "better" / "model.pt"), better.states[2])


def test_a_resumed_run_does_not_validate_its_start_again(tmp_path):
    first = Run(tmp_path, [0.2], start=0.8).run()
    resumed = Run(tmp_path, [0.2, 0.7, 0.6], start=0.8, resume=True).run()
    assert (len(first.states), len(resumed.states)) == (2, 2)
    assert same(load(tmp_path / "model.pt"), first.states[0])
    assert resumed.trainer.state.best_metric_epoch == 0
    with (tmp_path / "out" / "history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


def test_the_average_of_the_start_is_the_start(tmp_path):
    run = Run(tmp_path, [0.2, 0.1], start=0.8, ema_momentum=0.5)
    begun = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.run()
    assert same(load(tmp_path / "model.pt"), begun)


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


def test_a_run_is_resumed_with_another_batch_size(tmp_path):
    Run(tmp_path, [0.1, 0.2], batch_size=1).run()
    resumed = Run(tmp_path, [0.1, 0.2, 0.3], batch_size=2, resume=True).run()
    assert (len(resumed.states), resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (
        1,
        3,
        3,
    )


def test_a_resumed_run_remembers_its_best(tmp_path):
    first = Run(tmp_path, [0.2, 0.8]).run()
    Run(tmp_path, [0.2, 0.8, 0.7], resume=True).run()
    assert same(load(tmp_path / "model.pt"), first.states[1])


def test_a_checkpoint_is_a_flat_dict_that_any_version_resumes(tmp_path):
    tmp_path.joinpath("models").mkdir()
    before = Run(tmp_path / "models", [])
    checkpoint = {
        "model": {key: value + 1 for key, value in before.network.state_dict().items()},
        "optimizer": before.optimizer.state_dict(),
        "lr_scheduler": {**before.scheduler.state_dict(), "last_epoch": 3, "_last_lr": [0.0125]},
        "epoch": 3,
        "iteration": 6,
        "best_metric": 0.8,
        "best_metric_epoch": 2,
    }
    torch.save(checkpoint, tmp_path / "models" / "checkpoint.pt")
    run = Run(tmp_path / "models", [0, 0, 0, 0.7, 0.9], resume=True, patience=2).run()
    state = run.trainer.state
    # Epoch 4 was validated and no better, when the best was two epochs old.
    assert (state.epoch, state.best_metric, state.best_metric_epoch) == (4, 0.8, 2)
    assert run.states[0]["0.num_batches_tracked"] == 3
    assert run.scheduler.last_epoch == 4
    written = load(tmp_path / "models" / "checkpoint.pt")
    assert written.keys() == checkpoint.keys()
    assert (written["epoch"], written["iteration"], written["best_metric_epoch"]) == (4, 8, 2)
    assert not (tmp_path / "models" / "model.pt").exists()


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


def test_patience_waits_for_the_first_validation(tmp_path):
    run = Run(tmp_path, [0.5] * 6, patience=2, val_interval=4).run()
    assert run.trainer.state.epoch == 6
    assert (tmp_path / "model.pt").is_file()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    Run(tmp_path, [0.5]).run()
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of this network"):
        Run(tmp_path, [0.5, 0.6], width=3, resume=True).run()


def averaged(run, momentum):
    """Average the weights of a run after each iteration, in float64."""
    averages = [{key: value.double() for key, value in run.network.named_parameters()}]

    def follow(engine):
        averages.append(
            {
                key: (1 - momentum) * averages[-1][key] + momentum * value.detach().double()
                for key, value in run.network.named_parameters()
            }
        )

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, follow)
    return averages


def test_the_average_is_validated_and_kept(tmp_path):
    run = Run(tmp_path, [0.2, 0.8, 0.5], ema_momentum=0.3)
    with torch.no_grad():  # weights that another handler loads before the first iteration
        run.network[1].weight += 1
    averages = averaged(run, 0.3)
    run.run()
    checkpoint, model = load(tmp_path / "checkpoint.pt"), load(tmp_path / "model.pt")
    for state, iteration in ((run.states[0], 2), (model, 4), (checkpoint["ema_model"], 6)):
        for key, value in averages[iteration].items():
            torch.testing.assert_close(state[key].double(), value, rtol=1e-5, atol=1e-6)
    assert same(model, run.states[1])
    assert same(checkpoint["model"], run.network.state_dict())
    assert not torch.equal(checkpoint["model"]["1.weight"], checkpoint["ema_model"]["1.weight"])
    assert torch.equal(
        checkpoint["model"]["0.running_var"], checkpoint["ema_model"]["0.running_var"]
    )


def test_resuming_an_average_equals_never_having_stopped(tmp_path):
    whole = Run(tmp_path / "whole", [0.1, 0.2, 0.3, 0.4], ema_momentum=0.1).run()
    Run(tmp_path / "parts", [0.1, 0.2], ema_momentum=0.1).run()
    resumed = Run(tmp_path / "parts", [0.1, 0.2, 0.3, 0.4], ema_momentum=0.1, resume=True).run()
    assert all(
        same(one, other) for one, other in zip(resumed.states, whole.states[2:], strict=True)
    )
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    assert same(load(tmp_path / "parts" / "model.pt"), load(tmp_path / "whole" / "model.pt"))


def test_no_average_leaves_everything_as_it_was(tmp_path):
    run = Run(tmp_path, [0.5], ema_momentum=0).run()
    assert run.evaluator.network is run.network
    assert "ema_model" not in load(tmp_path / "checkpoint.pt")
    assert not hasattr(run.trainer.state, "ema_momentum")


@pytest.mark.parametrize(("before", "after"), [(0, 0.1), (0.1, 0)])
def test_an_average_is_resumed_only_where_there_is_one(tmp_path, before, after):
    Run(tmp_path, [0.5], ema_momentum=before).run()
    with pytest.raises(
        InputError, match=r"checkpoint\.pt: not a checkpoint .*ema_mo.* resume with the settings"
    ):
        Run(tmp_path, [0.5, 0.6], ema_momentum=after, resume=True).run()


@pytest.mark.parametrize("momentum", [-0.1, 1])
def test_a_momentum_that_is_none_is_refused(tmp_path, momentum):
    with pytest.raises(
        InputError, match=f"ema_momentum is {momentum}, expected at least 0 and below 1"
    ):
        Run(tmp_path, [0.5], ema_momentum=momentum)


@pytest.mark.slow
def test_every_process_validates_the_average_that_is_saved(tmp_path):
    run_two_ranks(__file__, str(tmp_path))
    model, validated = (
        load(tmp_path / "0" / "model.pt"),
        [load(tmp_path / f"validated_{rank}.pt") for rank in range(2)],
    )
    assert same(model, validated[0])
    assert same(model, validated[1])
    # Only the first process found a checkpoint in its folder.
    assert (
        "found the checkpoint of epoch 0 in process 1 and of 1 in the first one"
        in (tmp_path / "1.txt").read_text()
    )
    # Only the second had labels that are no numbers.
    found = [(tmp_path / f"diverged_{rank}.txt").read_text() for rank in range(2)]
    assert all("found NaN or infinity after iteration 1 of the training" in text for text in found)


def spoil_gradient(run, iteration, number=float("nan")):
    """What faulty kernels give: a gradient that is no number, of a loss that is one."""

    def spoilt(gradient):
        return gradient * number if run.trainer.state.iteration == iteration else gradient

    run.network[1].bias.register_hook(spoilt)


@pytest.mark.parametrize("ema_momentum", [0, 0.5])
@pytest.mark.parametrize("iteration", [1, 2, 3])  # the second is the last of its epoch
def test_a_weight_that_is_no_number_ends_the_training_and_is_not_saved(
    tmp_path, iteration, ema_momentum
):
    run = Run(tmp_path, [0.8, 0.9, 0.95], ema_momentum=ema_momentum)
    spoil_gradient(run, iteration)
    found = rf"1\.bias: found NaN or infinity after iteration {iteration} .*--amp false, a larger"
    with pytest.raises(InputError, match=found):
        run.run()
    assert len(run.states) == (iteration > 2)
    for name in ("model", "checkpoint"):
        assert (tmp_path / f"{name}.pt").is_file() == (iteration > 2)
    if iteration > 2:
        assert same(load(tmp_path / "model.pt"), run.states[0])


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(
        InputError,
        match=r"(loss|1\.weight): found NaN or infinity after iteration \d of the training",
    ):
        Run(tmp_path, [0.8, 0.9], learning_rate=1e30).run()
    assert not (tmp_path / "model.pt").exists()


def test_statistics_that_are_not_finite_are_not_saved(tmp_path):
    run = Run(tmp_path, [0.8])
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: run.network[0].running_var.fill_(float("inf"))
    )
    with pytest.raises(
        InputError, match=r"0\.running_var: found NaN or infinity after iteration 2"
    ):
        run.run()
    assert not (tmp_path / "model.pt").exists()


def test_a_metric_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="val_mean_dice: found NaN at epoch 2, expected a number: hold out scans"
    ):
        Run(tmp_path, [0.8, float("nan"), 0.9]).run()
    assert json.loads((tmp_path / "model.json").read_text())["val_mean_dice"] == 0.8


@pytest.mark.parametrize("part", ["model", "ema_model"])
def test_a_checkpoint_that_is_not_finite_is_not_resumed(tmp_path, part):
    Run(tmp_path, [0.5], ema_momentum=0.5).run()
    checkpoint = load(tmp_path / "checkpoint.pt")
    checkpoint[part]["1.bias"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(
        InputError, match=r"checkpoint\.pt: found NaN or infinity for 1 of 2 numbers of 1\.bias"
    ):
        Run(tmp_path, [0.5, 0.6], ema_momentum=0.5, resume=True).run()


def test_a_full_disk_loses_nothing(tmp_path):
    Run(tmp_path, [0.5]).run()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with (
        full_disk(100),
        pytest.raises(InputError, match=r"(model|checkpoint)\.pt: could not be saved .* stays"),
    ):
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


if __name__ == "__main__":  # one rank of test_every_process_validates_the_average_that_is_saved
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=2
    )
    # Each rank with images of its own, so that the running means of the normalisation differ.
    run = Run(folder / str(rank), [0.5], scale=1 + rank, parallel=True, ema_momentum=0.3).run()
    torch.save(run.states[0], folder / f"validated_{rank}.pt")
    run = Run(folder / f"diverged_{rank}", [0.5], parallel=True)
    if rank == 1:
        run.trainer.loss_function = lambda pred, label: torch.nn.functional.mse_loss(
            pred, label * float("nan")
        )
    try:
        run.run()
    except InputError as error:
        (folder / f"diverged_{rank}.txt").write_text(str(error))
    try:
        Run(folder / str(rank), [0.5], parallel=True, resume=True, ema_momentum=0.3).run()
    except InputError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()
