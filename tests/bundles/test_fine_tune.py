"""fine_tune.json over train.json: every bundle trains on from weights for a number of steps."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.bundle_runs import ABDOMEN, ROOT
from monai.bundle import ConfigParser, create_workflow

from liverseg.errors import message

BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/fine_tune.json"))
FLAT = {"spacing": [6.0, 6.0, -1.0], "spatial_size": [32, 32]}
ORGANS = ("background", "liver", "right_kidney", "left_kidney", "spleen")
# Small networks, and the data set's liver and lesion for organs.
SMALL = {
    "unet_liver": {**FLAT, "network_def#first_filters": 4},
    "fcn_liver": {**FLAT, "network_def": "@networks#simple"},
    "deeplabv3_liver": FLAT,
    "deeplabv3_abdomen_mr": {
        **FLAT,
        "classes": {name: [n] if n < 3 else [] for n, name in enumerate(ORGANS)},
    },
    "cascade_lits": {
        **{
            "localise_network#first_filters": 4,
            "localise_spacing": [6.0, 6.0, -1.0],
            "localise_size": [32, 32],
        },
        "slices_per_volume": 1,
    },
    "mixed_unet_lits": {
        "spatial_size": [32, 32],
        "slices_per_volume": 1,
        "stage_network#first_filters": 4,
    },
    "unet3d_abdomen": {
        **{"spacing": [12, 12, 12], "spatial_size": [16, 16, 16], "networks#paper#width": 4},
        **{"classes": {name: [n] if n < 3 else [] for n, name in enumerate(ABDOMEN)}},
    },
    "unet3d_liver": {
        **{
            "spatial_size": [28, 28, 28],
            "stage_networks#liver#width": 4,
            "stage_networks#lesion#width": 4,
        },
        "patches_per_volume": 1,
    },
    "deepedit_liver": {
        "spacing": [12, 12, 12],
        "spatial_size": [16, 16, 16],
        "network_def#init_filters": 8,
    },
}


def fine_tuned(bundle) -> list[str]:
    return [str(bundle / "configs" / name) for name in ("train.json", "fine_tune.json")]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def tuned(request, dataset, tmp_path_factory):
    """A bundle fine-tuned for six iterations: its weights before and after, and what it wrote."""
    bundle, folder = request.param, tmp_path_factory.mktemp(request.param.name)
    settings = {
        "bundle_root": str(bundle),
        "dataset_dir": str(dataset),
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"),
        "amp": False,
        "batch_size": 1,
        "max_iterations": 6,
        "iterations_per_epoch": 3,
        **SMALL[bundle.name],
    }
    before, given = write_start(bundle, settings, folder)
    workflow = create_workflow(
        config_file=fine_tuned(bundle),
        workflow_type="train",
        logging_file=False,
        **settings,
        **given,
    )
    network = workflow.parser.get_parsed_content("network")
    optimizer = workflow.parser.get_parsed_content("optimizer")
    workflow.parser.get_parsed_content("train#trainer").run()
    (history,) = (folder / "eval").rglob("history.csv")
    (record,) = (folder / "models").rglob("model.json")
    with history.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(
        before=before,
        after=network.state_dict(),
        rates=[group["lr"] for group in optimizer.param_groups],
        rows=rows,
        record=json.loads(record.read_text()),
    )


def write_start(bundle, settings, folder):
    """Weights to start from: what they are, and the setting that names them."""
    parser = ConfigParser()
    parser.read_config(fine_tuned(bundle))
    parser.update(settings)
    several = "pretrain_dir" in parser
    key, path = ("pretrain_dir", "start") if several else ("load_pretrain", "start.pt")
    given = {key: str(folder / path)}
    parser.update(given)
    file = Path(parser.get_parsed_content("load_pretrain"))
    file.parent.mkdir(parents=True, exist_ok=True)
    state = parser.get_parsed_content("network").state_dict()
    torch.save(state, file)
    return state, given


def test_runs_as_many_steps_as_asked_for_whatever_the_number_of_scans(tuned):
    assert tuned.rates == [pytest.approx(0, abs=1e-9)]
    # Two scans train, one in each step: an epoch has more steps than scans.
    steps = [(row["epoch"], row["iteration"]) for row in tuned.rows]
    assert steps == [("0", "0"), ("1", "3"), ("2", "6")]


def test_trains_all_but_the_statistics_of_the_norms(tuned):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    norms = [name for name in tuned.before if name.endswith(statistics)]
    assert all(torch.equal(tuned.before[name], tuned.after[name]) for name in norms)
    changed = (not torch.equal(value, tuned.after[name]) for name, value in tuned.before.items())
    assert any(changed)


def test_keeps_the_weights_where_it_finds_nothing_better(tuned):
    assert all(row["val_mean_dice"] for row in tuned.rows)
    best = max(tuned.rows, key=lambda row: float(row["val_mean_dice"]))
    assert tuned.record["epoch"] == int(best["epoch"])


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_rate_rises_falls_and_is_lower_than_that_of_a_training(bundle, monkeypatch):
    train, tune = ConfigParser(), ConfigParser()
    train.read_config(fine_tuned(bundle)[0])
    tune.read_config(fine_tuned(bundle))
    for parser in (train, tune):
        parser.update({"bundle_root": str(bundle)})
    assert tune["learning_rate"] == pytest.approx(train.get_parsed_content("learning_rate") / 10)
    steps = tune.get_parsed_content("iterations_per_epoch") * tune.get_parsed_content("max_epochs")
    assert steps == tune["max_iterations"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    tune.update({"optimizer": torch.optim.SGD([parameter], tune["learning_rate"])})
    scheduler, rates = tune.get_parsed_content("lr_scheduler"), []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(tune["learning_rate"])
    assert top == steps // 10
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("labels", [1, 2, 8, 50, 1000])
def test_as_many_steps_for_few_labels_as_for_many_and_each_as_often(labels):
    parser = ConfigParser()
    parser.read_config(fine_tuned(ROOT / "bundles" / "deeplabv3_liver"))
    parser.update({"bundle_root": ".", "train#dataset": list(range(labels)), "num_workers": 0})
    drawn = [int(item) for batch in parser.get_parsed_content("train#dataloader") for item in batch]
    assert len(drawn) == parser["iterations_per_epoch"] * parser["batch_size"]
    counts = [drawn.count(item) for item in range(labels)]
    assert max(counts) - min(counts) <= 1


def test_without_weights_it_says_what_is_missing(dataset, tmp_path):
    bundle = ROOT / "bundles" / "fcn_liver"
    settings = {"bundle_root": str(bundle), "dataset_dir": str(dataset), "ckpt_dir": str(tmp_path)}
    workflow = create_workflow(
        config_file=fine_tuned(bundle), workflow_type="train", logging_file=False, **settings
    )
    with pytest.raises(Exception, match="freeze_norms") as caught:
        workflow.run()
    assert "found no weights to start from, expected" in str(message(caught.value))
