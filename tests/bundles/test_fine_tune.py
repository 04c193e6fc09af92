"""fine_tune.json over train.json: every bundle goes on from weights gently, for a number of steps."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from helpers.bundle_runs import ROOT
from monai.bundle import ConfigParser, create_workflow

from liverseg.errors import sentence

BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/fine_tune.json"))
FLAT = {"spacing": [6.0, 6.0, -1.0], "spatial_size": [32, 32]}
ABDOMEN = (
    "background",
    "artery",
    "portal_vein",
    "liver",
    "spleen",
    "stomach",
    "gallbladder",
    "pancreas",
)
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


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_runs_steps_from_weights_and_keeps_them_where_it_finds_nothing_better(
    bundle, dataset, tmp_path
):
    settings = {
        "bundle_root": str(bundle),
        "dataset_dir": str(dataset),
        "ckpt_dir": str(tmp_path / "models"),
    }
    settings |= {
        "output_dir": str(tmp_path / "eval"),
        "amp": False,
        "batch_size": 1,
        "max_iterations": 6,
    }
    settings["iterations_per_epoch"] = 3
    settings |= SMALL[bundle.name]
    parser = ConfigParser()
    parser.read_config(fine_tuned(bundle))
    parser.update(settings)
    several = "pretrain_dir" in parser
    parser.update(
        {
            "pretrain_dir" if several else "load_pretrain": str(
                tmp_path / ("start" if several else "start.pt")
            )
        }
    )
    start = tmp_path.joinpath(parser.get_parsed_content("load_pretrain"))
    start.parent.mkdir(parents=True, exist_ok=True)
    begun = parser.get_parsed_content("network").state_dict()
    torch.save(begun, start)
    given = {"pretrain_dir": str(tmp_path / "start")} if several else {"load_pretrain": str(start)}

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

    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [pytest.approx(0, abs=1e-9)]
    (history,) = (tmp_path / "eval").rglob("history.csv")
    with history.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Two scans train, one in each step: an epoch has more steps than scans.
    assert [(row["epoch"], row["iteration"]) for row in rows] == [
        ("0", "0"),
        ("1", "3"),
        ("2", "6"),
    ]
    assert all(row["val_mean_dice"] for row in rows)
    after = network.state_dict()
    norms = [
        name
        for name in begun
        if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert all(torch.equal(begun[name], after[name]) for name in norms)
    assert not all(torch.equal(value, after[name]) for name, value in begun.items())
    (record,) = (tmp_path / "models").rglob("model.json")
    best = max(rows, key=lambda row: float(row["val_mean_dice"]))
    assert json.loads(record.read_text())["epoch"] == int(best["epoch"])


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
    assert "found no weights to start from, expected" in str(sentence(caught.value))
