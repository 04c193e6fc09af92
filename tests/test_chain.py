"""Chains of trainings: the processes, their command lines, and the files that they leave."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys

import pytest
from helpers.bundle_runs import monai_bundle_here
from monai.bundle import create_workflow
from monai.bundle import run as run_bundle

from liverseg.chain import die_with_parent, run_rounds, run_stages
from liverseg.errors import InputError, message

STAGES = [
    {"target": target, **stage}
    for target in ("liver", "lesion")
    for stage in (
        {"stage": "localise"},
        *({"stage": "tune", "plane": plane} for plane in ("axial", "coronal")),
    )
]

# What stands in for Python here, for MONAI takes five seconds to start;
# bundles/test_every_bundle.py runs real chains. It notes its arguments, trains round N to the
# metric on line N of `metrics`, and fails where `fail` says so.
PROGRAM = """#!/bin/sh
echo "$*" >> calls
if grep -qxF -- "$*" fail 2>/dev/null; then exit 7; fi
for word; do
  case $word in
    --round=*)
      n=${word#--round=}
      mkdir -p models/rounds/$n/patches
      echo model $n > models/rounds/$n/model.pt
      echo "{\\"val_mean_dice\\": $(sed -n ${n}p metrics)}" > models/rounds/$n/model.json
      echo "{\\"patches\\": {\\"2\\": $n, \\"8\\": 10}}" > models/rounds/$n/patches/patches.json
  esac
done
"""
START = "-m monai.bundle run run --config_file=['train.json']"
TUNE = "[stage for stage in @all_stages if stage['stage'] == 'tune']"
CONFIG = {
    "liverseg": "$resolve_name('liverseg.bundle').require('0.1')",
    "imports": ["$from pkgutil import resolve_name"],
    "initialize": ["$@liverseg"],
    "all_stages": STAGES,
    "training": ["$@liverseg.chain.run_stages(@all_stages)"],
    "iterate": [f"$@liverseg.chain.run_stages({TUNE}, 'iterate', 'rounds')"],
    "rounds": ["$@liverseg.chain.run_rounds(@max_rounds, @ckpt_dir, @resume, @round_patience)"],
    "run": ["$None"],
    "network": "$[@target, @stage, @plane, @max_epochs, @prior]",
    **{"target": "liver", "stage": "localise", "plane": "axial", "ckpt_dir": "models"},
    **{
        "max_rounds": 1,
        "round_patience": 1,
        "resume": False,
        "max_epochs": 1,
        "prior": "gradcam",
        "round": 0,
    },
}


@pytest.fixture(autouse=True)
def bundle(tmp_path, monkeypatch):
    """Write a config of several networks, and a program that runs in Python's place."""
    program = tmp_path / "python"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "train.json").write_text(json.dumps(CONFIG))


def calls(folder) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.is_file() else []


def words(settings) -> str:
    return "".join(f" --{key}={value}" for key, value in settings.items())


def test_all_stages_run_in_their_order_with_the_settings_that_were_given(tmp_path):
    run_bundle(
        "training", config_file="train.json", max_epochs=3, prior="box", ckpt_dir=tmp_path / "2024"
    )
    given = f" --max_epochs=3 --prior=box --ckpt_dir={tmp_path / '2024'}"
    assert calls(tmp_path) == [START + given + words(stage) for stage in STAGES]


def test_the_same_from_the_command_line(tmp_path, monkeypatch):
    typed = "--config_file train.json --ckpt_dir 2024 --resume true --plane=axial --stage tune"
    monai_bundle_here(monkeypatch, "run", "training", *typed.split(), "--prior", "a 1e5")
    given = " --ckpt_dir=2024 --resume=True --plane=axial --stage=tune --prior=a 1e5"
    assert calls(tmp_path) == [
        f"{START}{given} --target={target}" for target in ("liver", "lesion")
    ]


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"stage": "localise"}, [0, 3]),
        ({"stage": "tune"}, [1, 2, 4, 5]),
        ({"target": "lesion"}, [3, 4, 5]),
        ({"plane": "coronal"}, [0, 2, 3, 5]),  # a localisation has no plane, and stays
        ({"target": "liver", "stage": "tune", "plane": "axial"}, [1]),
    ],
)
def test_settings_choose_stages(tmp_path, given, chosen):
    run_bundle("training", config_file="train.json", **given)
    assert calls(tmp_path) == [START + words({**given, **STAGES[number]}) for number in chosen]


def test_another_id_may_run_a_stage(tmp_path):
    workflow = create_workflow(
        config_file="train.json", run_id="iterate", plane="axial", target="liver"
    )
    workflow.run()
    (call,) = calls(tmp_path)
    assert (
        call
        == START.replace("run run", "run rounds") + " --plane=axial --target=liver --stage=tune"
    )


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            {"stage": "tuning"},
            "stage: found 'tuning', expected one of localise, tune: set it to one of these.",
        ),
        (
            {"plane": "oblique"},
            "plane: found 'oblique', expected one of axial, coronal, sagittal: write it as "
            "--plane axial.",
        ),
        (
            {"stage": "tune", "target": "spleen"},
            "target: found 'spleen', expected one of liver, lesion: set it to one",
        ),
    ],
)
def test_an_unknown_value_is_refused_before_anything_runs(tmp_path, given, shown):
    with pytest.raises(RuntimeError) as error:
        run_bundle("training", config_file="train.json", **given)
    assert message(error.value).startswith(shown)
    assert calls(tmp_path) == []


def test_a_stage_that_fails_ends_the_chain_with_its_status(tmp_path):
    (tmp_path / "fail").write_text(START + words(STAGES[2]))
    with pytest.raises(SystemExit) as ended:
        run_bundle("training", config_file="train.json")
    assert ended.value.code == 7
    assert len(calls(tmp_path)) == 3


@pytest.mark.parametrize(
    ("alias", "run_id"), [("training", "run"), ("iterate", "rounds"), ("rounds", "run")]
)
def test_torchrun_is_told_to_run_one_network(tmp_path, monkeypatch, alias, run_id):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as error:
        run_bundle(alias, config_file="train.json")
    shown = f"{alias}: found 2 processes of torchrun, expected one: "
    shown += "run one network at a time under torchrun, with the id"
    assert message(error.value) == f"{shown} `{run_id}`."
    assert calls(tmp_path) == []


def test_outside_monais_workflows_the_way_to_run_one_network_is_named(tmp_path):
    for alias, run_id, chain in [
        ("training", "run", lambda: run_stages(STAGES)),
        ("iterate", "rounds", lambda: run_stages(STAGES, "iterate", "rounds")),
        ("rounds", "run", lambda: run_rounds(3, tmp_path / "models")),
    ]:
        wrong = f"{alias}: found a program other than MONAI's .*run the id `{run_id}`"
        with pytest.raises(InputError, match=wrong):
            chain()


@pytest.fixture
def rounds(tmp_path):
    """Run rounds that reach these metrics, after a training that reached 0.5; return rounds.csv."""

    def run(metrics, patience=1, **settings) -> list[list[str]]:
        models = tmp_path / "models"
        if not models.exists():
            models.mkdir()
            (models / "model.pt").write_text("model 0\n")
            (models / "model.json").write_text('{"val_mean_dice": 0.5}')
        (tmp_path / "metrics").write_text("\n".join(map(str, metrics)))
        try:
            run_bundle(
                "rounds",
                config_file="train.json",
                max_rounds=len(metrics),
                round_patience=patience,
                **settings,
            )
        except RuntimeError as error:
            raise InputError(message(error)) from error
        with (models / "rounds" / "rounds.csv").open(newline="") as file:
            return list(csv.reader(file))

    return run


def round_calls(most, patience, numbers, **settings) -> list[str]:
    given = START + words({"max_rounds": most, "round_patience": patience, **settings})
    return [f"{given} --round={number}" for number in numbers]


def best(tmp_path) -> tuple[str, float]:
    models = tmp_path / "models"
    return (models / "model.pt").read_text().strip(), json.loads(
        (models / "model.json").read_text()
    )["val_mean_dice"]


def test_the_best_round_becomes_the_model_and_all_are_kept(rounds, tmp_path):
    table = rounds([0.6, 0.9, 0.7], patience=2, max_epochs=2)
    assert calls(tmp_path) == round_calls(3, 2, (1, 2, 3), max_epochs=2)
    assert best(tmp_path) == ("model 2", 0.9)
    header = ["round", "val_mean_dice", "patches"]
    assert table == [
        header,
        ["0", "0.5", "0"],
        ["1", "0.6", "11"],
        ["2", "0.9", "12"],
        ["3", "0.7", "13"],
    ]
    for number in range(4):
        folder = tmp_path / "models" / "rounds" / str(number)
        assert (folder / "model.pt").read_text() == f"model {number}\n"
        assert (folder / "model.json").is_file()


def test_where_no_round_is_better_the_model_stays(rounds, tmp_path):
    rounds([0.4, 0.5])  # as good is not better
    assert best(tmp_path) == ("model 0", 0.5)


@pytest.mark.parametrize(
    ("metrics", "patience", "run"),
    [
        ([0.6, 0.5, 0.9], 1, 2),
        ([0.4, 0.9], 1, 1),
        ([0.6, 0.5, 0.55, 0.9], 2, 3),
        ([0.6, 0.5, 0.7, 0.6, 0.65, 0.9], 2, 5),
        ([0.4, 0.3, 0.2, 0.6], 0, 4),
    ],
)
def test_it_stops_after_patience_rounds_without_a_better_model(
    rounds, tmp_path, metrics, patience, run
):
    rounds(metrics, patience=patience)
    assert len(calls(tmp_path)) == run
    assert best(tmp_path)[1] == max(0.5, *metrics[:run])


def test_killed_rounds_are_resumed_where_they_stopped(rounds, tmp_path):
    (tmp_path / "fail").write_text(*round_calls(4, 0, [3]))
    with pytest.raises(SystemExit) as ended:
        rounds([0.8, 0.7, 0.9, 0.6], patience=0)
    assert ended.value.code == 7
    assert best(tmp_path) == ("model 1", 0.8)
    (tmp_path / "fail").unlink()
    (tmp_path / "models" / "rounds" / "3").mkdir(exist_ok=True)
    (tmp_path / "models" / "rounds" / "3" / "model.json").write_text(
        '{"val_mean_dice": 0.1}'
    )  # of an early epoch

    with pytest.raises(
        InputError, match=r"rounds: found rounds of an earlier run, expected none: .*--resume true"
    ):
        rounds([0.8, 0.7, 0.9, 0.6], patience=0)
    table = rounds([0.8, 0.7, 0.9, 0.6], patience=0, resume="true")
    assert calls(tmp_path) == [
        *round_calls(4, 0, (1, 2, 3)),
        *round_calls(4, 0, (3, 4), resume=True),
    ]
    assert [row[1] for row in table[1:]] == ["0.5", "0.8", "0.7", "0.9", "0.6"]
    assert best(tmp_path) == ("model 3", 0.9)


def test_rounds_that_are_done_stay_done_and_more_can_follow(rounds, tmp_path):
    rounds([0.6, 0.5])
    rounds([0.6, 0.5], resume=True)
    assert len(calls(tmp_path)) == 2
    rounds([0.6, 0.5, 0.7], resume=True, patience=2)
    assert len(calls(tmp_path)) == 3
    assert best(tmp_path) == ("model 3", 0.7)


@pytest.mark.parametrize("missing", ["model.pt", "model.json"])
def test_without_a_trained_model_there_are_no_rounds(rounds, tmp_path, missing):
    models = tmp_path / "models"
    models.mkdir()
    other = {"model.pt": "model.json", "model.json": "model.pt"}[missing]
    (models / other).write_text('{"val_mean_dice": 0.5}')
    for _ in range(2):  # the first attempt leaves nothing behind
        with pytest.raises(
            InputError,
            match=f"models: found no {missing}, expected that of a training: run training",
        ):
            rounds([0.6])
    assert calls(tmp_path) == []


def test_rounds_that_were_killed_while_they_were_begun_begin_again(rounds, tmp_path):
    begun = tmp_path / "models" / "rounds" / "0"
    begun.mkdir(parents=True)
    (begun / "model.pt").write_text("model 0\n")
    (tmp_path / "models" / "model.pt").write_text("model 0\n")
    (tmp_path / "models" / "model.json").write_text('{"val_mean_dice": 0.5}')
    rounds([0.6], resume=True)
    assert best(tmp_path) == ("model 1", 0.6)


@pytest.mark.parametrize(("of_its_parent", "status"), [(True, 0), (False, signal.SIGKILL)])
def test_a_child_that_asks_when_its_parent_is_gone_dies_at_once(of_its_parent, status):
    # Of a child whose parent has ended, another process is the parent.
    parent = os.getpid() if of_its_parent else 2**22
    child = os.fork()
    if child == 0:
        die_with_parent(parent)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == status
