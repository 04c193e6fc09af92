"""Studies as users run them, with a real bundle on tiny data: killed, resumed, calibrated."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from helpers.bundle_runs import ROOT, write_dataset
from helpers.waiting import SECONDS, wait_until
from rich.console import Console
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.study.calibrate import Calibration, calibrate_study
from liverseg.workbench.study.cli import app
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.spec import read_study

pytestmark = pytest.mark.slow

MAIN = "from liverseg.workbench.cli import main; main()"
SMALL = {"spacing": [6.0, 6.0, -1.0], "spatial_size": [32, 32], "patience": 0}


@pytest.fixture(autouse=True)
def own_code(monkeypatch):
    """The commands that a study starts run the code that is tested."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write_study(folder: Path, **changes) -> Path:
    scans = write_dataset(folder / "scans", num_cases=2)
    content = {
        "data": {
            "ct": {"dataset_dir": str(scans), "labels": {"liver": [1, 2]}}
        },
        "networks": {"DeepLab": {"bundle": "deeplabv3_liver"}},
        "settings": {"max_epochs": 1, "val_interval": 1, **SMALL},
        "folds": [0, 1],
        "tables": {
            "own": {
                "where": {"data": "ct", "network": "DeepLab", "loss": "dice", "task": "liver"},
                "rows": {"raw": {}},
                "columns": {"mean IoU": {"metric": "mean_iou"}, "Dice": {"metric": "dice:liver"}},
            }
        },
    } | changes  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def last_line(training: Path) -> pd.Series:
    return pd.read_csv(training / "history.csv").iloc[-1]


def test_a_killed_study_repeats_no_finished_cell_and_resumes_the_others(tmp_path):
    settings = {"max_epochs": 6, "val_interval": 6, "roc": True, **SMALL}
    study, out = write_study(tmp_path, settings=settings), tmp_path / "out"
    arguments = [
        "study",
        "run",
        str(study),
        "--out",
        str(out),
        "--workers",
        "1",
        "--bundles",
        str(ROOT / "bundles"),
    ]
    command = [sys.executable, "-c", MAIN, *arguments]
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    cells = out / "cells"

    def is_in_the_second() -> bool:
        assert first.poll() is None, "the study ended too early"
        return len(list(cells.glob("*/training/history.csv"))) == 2

    wait_until(is_in_the_second, interval_s=0.02)
    started = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait(SECONDS)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, "a command of the killed study goes on"
    done = next(path.parent.parent.parent for path in cells.glob("*/evaluation/none/summary.json"))
    half = next(folder for folder in cells.iterdir() if folder != done)
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    assert int(last_line(half / "training")["epoch"]) < 6

    second = subprocess.run(
        command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=SECONDS
    )
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 of 2 cells are done already." in second.stdout
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()} == before
    log = (half / "training.log").read_text()
    assert log.count("$ python -m monai.bundle run training") == 2
    assert "Resuming after epoch" in log
    assert int(last_line(half / "training")["epoch"]) == 6
    assert (done / "models" / "model.pt").is_file()
    assert not (done / "models" / "checkpoint.pt").exists()
    assert "Missing" not in (out / "tables" / "own.md").read_text()
    # What `roc` asks for.
    (roc,) = (out / "plots").glob("*_roc.png")
    assert f"plots/{roc.name}" in (out / "index.html").read_text()


def test_a_failing_cell_stops_no_other_and_is_named(tmp_path):
    table = {
        "where": {"data": "ct", "network": "DeepLab", "task": "liver", "metric": "mean_iou"},
        "rows": {"wrong": {"loss": "wrong"}, "right": {"loss": "dice"}},
        "columns": {"IoU": {}},
    }
    losses = {"wrong": {"loss": "@losses#dice", "optimizers#adam#betas": [2, 0.9]}}
    study, out = (
        write_study(tmp_path, folds=[0], tables={"own": table}, losses=losses),
        tmp_path / "out",
    )
    arguments = [
        "run",
        str(study),
        "--out",
        str(out),
        "--workers",
        "1",
        "--bundles",
        str(ROOT / "bundles"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("1 of 2 trainings failed")
    assert "ct_DeepLab_wrong_liver_fold0" in str(result.exception)
    assert "Invalid beta parameter at index 0: 2" in str(result.exception)
    text = (out / "tables" / "own.md").read_text()
    assert "| wrong |  |" in text
    assert "| right | 0." in text


def test_two_studies_at_once_on_one_folder(tmp_path):
    with (
        StudyFolder(tmp_path).lock(),
        pytest.raises(
            InputError, match=rf"another study runs in this folder \(process {os.getpid()}\)"
        ),
        StudyFolder(tmp_path).lock(),
    ):
        pass
    with StudyFolder(tmp_path).lock():
        pass


def test_calibration_goes_on_where_it_stopped(tmp_path):
    import optuna

    path, out = write_study(tmp_path, folds=[0], keep_models=False), tmp_path / "out"
    study, console = read_study(path, ROOT / "bundles"), Console(record=True, width=500)

    def calibrate(trials: int) -> float:
        wanted = Calibration("iou_xy_alpha", 0.4, 1.1, False, trials, None, None, "iou_xy", "liver")
        return calibrate_study(study, wanted, StudyFolder(out), 1, console)

    calibrate(1)
    (cell,) = (out / "cells").iterdir()
    assert (
        json.loads((cell / "cell.json").read_text())["settings"]["iou_xy_alpha"] == 0.5
    )  # the papers' first
    before = (cell / "training" / "metrics.json").stat().st_mtime_ns
    (name,) = optuna.get_all_study_names(f"sqlite:///{out / 'calibrate.db'}")
    search = optuna.load_study(study_name=name, storage=f"sqlite:///{out / 'calibrate.db'}")
    killed = search.ask()
    killed.suggest_float("iou_xy_alpha", 0.4, 1.1)
    best = calibrate(2)

    trials = optuna.load_study(study_name=name, storage=f"sqlite:///{out / 'calibrate.db'}").trials
    complete = {
        trial.params["iou_xy_alpha"]: trial.value
        for trial in trials
        if trial.state.name == "COMPLETE"
    }
    assert list(complete) == [0.5, 1.0]
    assert [trial.params["iou_xy_alpha"] for trial in trials if trial.state.name == "FAIL"] == [1.0]
    assert (cell / "training" / "metrics.json").stat().st_mtime_ns == before
    for folder in (out / "cells").iterdir():
        alpha = json.loads((folder / "cell.json").read_text())["settings"]["iou_xy_alpha"]
        metrics = json.loads((folder / "training" / "metrics.json").read_text())
        assert complete[alpha] == metrics["best_val_mean_dice"]
        assert "--section" not in (folder / "training.log").read_text()
        assert not (folder / "evaluation").exists()
    assert best == max(complete, key=lambda alpha: complete[alpha])
    assert (out / "plots" / "calibrate_ct_DeepLab_liver_iou_xy_iou_xy_alpha.png").is_file()

    train_as_printed(console.export_text(), cell / "training.log", tmp_path)
    if best == 0.5:
        assert last_line(tmp_path / "t")["loss"] == last_line(cell / "training")["loss"]


def train_as_printed(shown: str, log: Path, folder: Path) -> None:
    """Run the command of a training's log with the loss that a calibration prints in one value."""
    line = next(line for line in shown.splitlines() if line.startswith("As one value:"))
    printed = shlex.split(line)
    command = shlex.split(log.read_text().splitlines()[0].removeprefix("$ python"))
    values = dict(zip(command[4::2], command[5::2], strict=True))
    values |= {"--loss": printed[printed.index("--loss") + 1], "--output_dir": str(folder / "t")}
    values |= {"--ckpt_dir": str(folder / "m"), "--resume": "False"}
    values.pop("--iou_xy_alpha")
    run = subprocess.run(
        [sys.executable, *command[:4], *(word for pair in values.items() for word in pair)],
        check=False, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"key": "iou_xy_alhpa"},
            "--key: deeplabv3_liver: iou_xy_alhpa: found no iou_xy_alhpa in the config",
        ),
        ({"network": "UNet"}, "--network: found UNet, expected one of DeepLab"),
        ({"low": 2.0}, "expected low below high"),
        ({"loss": "iou_x"}, "loss: found iou_x, expected one of"),
        ({"task": "spleen"}, "--task: found spleen, expected all or one of liver"),
    ],
)
def test_what_cannot_be_calibrated(tmp_path, changes, message):
    study = read_study(write_study(tmp_path), ROOT / "bundles")
    good = {
        "key": "iou_xy_alpha", "low": 0.4, "high": 1.6, "log": False, "trials": 1,
        "data": None, "network": None, "loss": "iou_xy", "task": "liver",
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        calibrate_study(
            study, Calibration(**good | changes), StudyFolder(tmp_path / "out"), 1, Console()
        )
    assert not (tmp_path / "out" / "cells").exists()
