"""Chains of trainings: which processes are started, with which command lines, and what is left when they end."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from importlib.machinery import ModuleSpec

import pytest

from liverseg.chain import die_with_parent, run_rounds, run_stages
from liverseg.errors import InputError

STAGES = [
    {"target": target, **stage}
    for target in ("liver", "lesion")
    for stage in ({"stage": "localise"}, *({"stage": "tune", "plane": plane} for plane in ("axial", "coronal")))
]

# What stands in for Python here, for MONAI takes five seconds to start; bundles/test_every_bundle.py runs real chains.
# It notes its arguments, trains round N to the metric on line N of `metrics`, and fails where `fail` says so.
PROGRAM = """#!/bin/sh
echo "$*" >> calls
if grep -qxF -- "$*" fail 2>/dev/null; then exit 7; fi
while [ $# -gt 1 ]; do
  if [ "$1" = --round ]; then
    mkdir -p models/rounds/$2/patches
    echo model $2 > models/rounds/$2/model.pt
    echo "{\\"val_mean_dice\\": $(sed -n $2p metrics)}" > models/rounds/$2/model.json
    echo "{\\"patches\\": {\\"2\\": $2, \\"8\\": 10}}" > models/rounds/$2/patches/patches.json
  fi
  shift
done
"""
START = "-m monai.bundle run run --config_file train.json"


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """Make this process `python -m monai.bundle run <alias> …` with arguments of its own, in an empty folder."""
    program = tmp_path / "python"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("monai.bundle.__main__", None))
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def arguments(alias: str, *more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", alias, "--config_file", "train.json", *more])

    return arguments


def calls(folder) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.is_file() else []


def settings_of(stages) -> list[str]:
    return [" ".join(f"--{key} {value}" for key, value in stage.items()) for stage in stages]


def test_all_stages_run_in_their_order_with_the_command_line_that_was_typed(command_line, tmp_path):
    command_line("training", "--max_epochs", "3", "--prior=box")
    run_stages(STAGES)
    assert calls(tmp_path) == [f"{START} --max_epochs 3 --prior=box {stage}" for stage in settings_of(STAGES)]


@pytest.mark.parametrize(
    ("typed", "chosen", "added"),
    [
        (["--stage", "localise"], [0, 3], ["target"]),
        (["--stage", "tune"], [1, 2, 4, 5], ["target", "plane"]),
        (["--target", "lesion"], [3, 4, 5], ["stage", "plane"]),
        (["--plane=coronal"], [0, 2, 3, 5], ["target", "stage"]),  # a localisation has no plane, and stays
        (["--target=liver", "--stage", "tune", "--plane", "axial"], [1], []),
        (["--stage", "localise", "--stage=tune", "--target=liver"], [1, 2], ["plane"]),  # the last counts
    ],
)
def test_settings_choose_stages(command_line, tmp_path, typed, chosen, added):
    command_line("training", *typed)
    run_stages(STAGES)
    expected = [{key: STAGES[number][key] for key in added if key in STAGES[number]} for number in chosen]
    assert calls(tmp_path) == [" ".join([START, *typed, more]).strip() for more in settings_of(expected)]


def test_another_id_may_run_a_stage(command_line, tmp_path):
    command_line("iterate", "--plane=axial", "--target=liver")
    run_stages(STAGES[1:3], "iterate", "rounds")
    (call,) = calls(tmp_path)
    assert call == START.replace("run run", "run rounds") + " --plane=axial --target=liver --stage tune"


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--stage", "tuning"], "stage: found 'tuning', expected one of localise, tune: set it to one of these."),
        (["--plane=oblique"], "plane: found 'oblique', expected one of axial, coronal: set it to one of these."),
        (["--stage=tune", "--target", "spleen"], "target: found 'spleen', expected one of liver, lesion: set"),
    ],
)
def test_an_unknown_value_is_refused_before_anything_runs(command_line, tmp_path, typed, sentence):
    command_line("training", *typed)
    with pytest.raises(InputError, match=sentence):
        run_stages(STAGES)
    assert calls(tmp_path) == []


def test_a_stage_that_fails_ends_the_chain_with_its_status(command_line, tmp_path):
    failing = f"{START} {settings_of(STAGES)[2]}"
    (tmp_path / "fail").write_text(failing)
    command_line("training")
    with pytest.raises(SystemExit) as ended:
        run_stages(STAGES)
    assert ended.value.code == 7
    assert len(calls(tmp_path)) == 3


def chains(folder):
    yield "training", "run", lambda: run_stages(STAGES)
    yield "iterate", "rounds", lambda: run_stages(STAGES, "iterate", "rounds")
    yield "rounds", "run", lambda: run_rounds(3, folder / "models")


def test_torchrun_is_told_to_run_one_network(command_line, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for alias, run_id, chain in chains(tmp_path):
        command_line(alias)
        sentence = f"{alias}: found 2 processes of torchrun, expected one: run one network .* with the id `{run_id}`"
        with pytest.raises(InputError, match=sentence):
            chain()
    assert calls(tmp_path) == []


def test_from_python_the_way_to_run_one_network_is_named(tmp_path):
    for alias, run_id, chain in chains(tmp_path):
        sentence = f"{alias}: found another program than `python -m monai.bundle run {alias}`.*run the id `{run_id}`"
        with pytest.raises(InputError, match=sentence):
            chain()


@pytest.fixture
def rounds(command_line, tmp_path):
    """Run rounds that reach these metrics, after a training that reached 0.5; returns rounds.csv as text."""

    def run(metrics, *typed, **options) -> list[list[str]]:
        models = tmp_path / "models"
        if not models.exists():
            models.mkdir()
            (models / "model.pt").write_text("model 0\n")
            (models / "model.json").write_text('{"val_mean_dice": 0.5}')
        (tmp_path / "metrics").write_text("\n".join(map(str, metrics)))
        command_line("rounds", *typed)
        run_rounds(len(metrics), models, **options)
        with (models / "rounds" / "rounds.csv").open(newline="") as file:
            return list(csv.reader(file))

    return run


def best(tmp_path) -> tuple[str, float]:
    models = tmp_path / "models"
    return (models / "model.pt").read_text().strip(), json.loads((models / "model.json").read_text())["val_mean_dice"]


def test_the_best_round_becomes_the_model_and_all_are_kept(rounds, tmp_path):
    table = rounds([0.6, 0.9, 0.7], "--max_epochs", "2", patience=2)
    assert calls(tmp_path) == [f"{START} --max_epochs 2 --round {number}" for number in (1, 2, 3)]
    assert best(tmp_path) == ("model 2", 0.9)
    header = ["round", "val_mean_dice", "patches"]
    assert table == [header, ["0", "0.5", "0"], ["1", "0.6", "11"], ["2", "0.9", "12"], ["3", "0.7", "13"]]
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
def test_it_stops_after_patience_rounds_without_a_better_model(rounds, tmp_path, metrics, patience, run):
    rounds(metrics, patience=patience)
    assert len(calls(tmp_path)) == run
    assert best(tmp_path)[1] == max(0.5, *metrics[:run])


def test_killed_rounds_are_resumed_where_they_stopped(rounds, tmp_path):
    (tmp_path / "fail").write_text(f"{START} --round 3")
    with pytest.raises(SystemExit) as ended:
        rounds([0.8, 0.7, 0.9, 0.6], patience=0)
    assert ended.value.code == 7
    assert best(tmp_path) == ("model 1", 0.8)
    (tmp_path / "fail").unlink()
    (tmp_path / "models" / "rounds" / "3").mkdir(exist_ok=True)
    (tmp_path / "models" / "rounds" / "3" / "model.json").write_text('{"val_mean_dice": 0.1}')  # of an early epoch

    with pytest.raises(InputError, match=r"rounds: found rounds of an earlier run, expected none: .*--resume true"):
        rounds([0.8, 0.7, 0.9, 0.6], patience=0)
    table = rounds([0.8, 0.7, 0.9, 0.6], "--resume", "true", patience=0, resume="true")
    again = [f"{START} --resume true --round {number}" for number in (3, 4)]
    assert calls(tmp_path) == [*(f"{START} --round {number}" for number in (1, 2, 3)), *again]
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
        with pytest.raises(InputError, match=f"models: found no {missing}, expected that of a training: run training"):
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
