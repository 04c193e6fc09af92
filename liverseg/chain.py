"""Train several networks one after the other, or one in several rounds, with the same settings.

Each training is its own process. This frees a network's memory and its cached data before the next
one starts, and leaves a chain that was killed where `--resume true` finds it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from liverseg.bundle import choose
from liverseg.command_line import Command, running_command
from liverseg.errors import InputError
from liverseg.files import atomic_write, write_text
from liverseg.kinds import is_text

PR_SET_PDEATHSIG = 1


def run_stages(
    stages: Sequence[Mapping[str, str]], alias: str = "training", run_id: str = "run"
) -> None:
    """Run the stages of a training one after the other, each in its own process.

    What MONAI was asked to run, on the command line or from Python, is repeated for each stage
    with the stage's settings, such as `--stage lesion`. A setting that was given already
    chooses the stages that have this value or do not have the setting; the first stage that
    fails ends the chain.

    Args:
        stages: the settings of each, in order.
        alias: the id that was typed.
        run_id: the id that runs one stage.

    Raises:
        InputError: outside MONAI's `run` and `create_workflow`, and for a value that no stage has.
    """
    command = _command(alias, run_id)
    chosen = {
        key: command.settings[key] for stage in stages for key in stage if key in command.settings
    }
    for key, value in chosen.items():
        choose(key, value, dict.fromkeys(stage[key] for stage in stages if key in stage))
    for stage in stages:
        if all(stage.get(key, value) == value for key, value in chosen.items()):
            _run(command, run_id, stage)


def run_rounds(
    rounds: int, ckpt_dir: str | os.PathLike[str], resume: bool = False, patience: int = 1
) -> None:
    """Fine-tune a trained network in rounds, each on labels of the round before, and keep the best.

    Algorithm 1 of IJIES 2022. The id `run` with `--round N` labels patches with the model of round
    N − 1 and trains in the folder `rounds/N`; round 0 is the model the rounds start from. A round's
    metric is the best of its epochs on the validation scans. When the rounds end, the model of the
    best one is the `model.pt` of `ckpt_dir`, and `rounds.csv` lists them all.

    Args:
        rounds: at most this many.
        ckpt_dir: the folder of the trained `model.pt` and `model.json`; rounds go into
            its folder `rounds`.
        resume: go on with rounds that were begun before; finished ones stay as they are.
        patience: stop after this many rounds in a row that bring no better model; 0 never stops.

    Raises:
        InputError: outside MONAI's `run` and `create_workflow`, where there is no model to start
            from, or are rounds already and `resume` is not set.
    """
    command = _command("rounds", "run")
    trained, folder = Path(ckpt_dir), Path(ckpt_dir) / "rounds"
    if folder.exists() and not resume:
        raise InputError(
            f"{folder}: found rounds of an earlier run, expected none: go on with "
            "--resume true, or move the folder."
        )
    for name in ("model.pt", "model.json"):
        if not (trained / name).is_file():
            raise InputError(
                f"{trained}: found no {name}, expected that of a training: run training first."
            )
    if not (folder / "0" / "model.json").is_file():  # the last to be copied
        for name in ("model.pt", "model.json"):
            _copy(trained / name, folder / "0" / name)
    results = [_result(folder, 0)]
    for number in range(1, rounds + 1):
        if not (folder / str(number) / "done").is_file():
            _run(command, "run", {"round": number})
            (folder / str(number) / "done").touch()
        results.append(_result(folder, number))
        best = max(results, key=lambda result: result["val_mean_dice"])
        print(
            f"Round {number}: val_mean_dice {results[-1]['val_mean_dice']:.4f}, the best "
            f"is round {best['round']}."
        )
        write_text(folder / "rounds.csv", pd.DataFrame(results).to_csv(index=False))
        for name in ("model.pt", "model.json"):
            _copy(folder / str(best["round"]) / name, trained / name)
        if patience and number - best["round"] >= patience:
            return


def die_with_parent(parent: int | None = None) -> None:
    """Make this child process, on Linux, die with its parent.

    So it does not write on where the next run starts.

    Args:
        parent: its process id, for a child that asks late: the parent may be gone by then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent not in (None, os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


def _result(folder: Path, number: int) -> dict[str, float]:
    model = json.loads((folder / str(number) / "model.json").read_text())
    patches = folder / str(number) / "patches" / "patches.json"
    counts = json.loads(patches.read_text())["patches"] if number else {}
    return {
        "round": number,
        "val_mean_dice": model["val_mean_dice"],
        "patches": sum(counts.values()),
    }


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as content, atomic_write(target) as file:
        shutil.copyfileobj(content, file)


def _command(alias: str, run_id: str) -> Command:
    """Return the command to repeat, as `run_id` in place of `alias`."""
    command = running_command()
    if command is None:
        raise InputError(
            f"{alias}: found a program other than MONAI's `run` or `create_workflow`, whose "
            f"settings it repeats for each network: run the id `{run_id}` for one after the other."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"{alias}: found {os.environ['WORLD_SIZE']} processes of torchrun, expected one: run "
            f"one network at a time under torchrun, with the id `{run_id}`."
        )
    return command


def _run(command: Command, run_id: str, settings: Mapping[str, Any]) -> None:
    """Run MONAI's command line with these settings added; end this process too where it fails."""
    options = {name: value for name, value in command.options.items() if name != "run_id"}
    words = [
        f"--{name}={_word(name, value)}"
        for name, value in {**options, **command.settings, **settings}.items()
    ]
    arguments = [sys.executable, "-m", "monai.bundle", "run", run_id, *words]
    status = subprocess.run(arguments, check=False, preexec_fn=die_with_parent).returncode
    if status != 0:
        sys.exit(status)


def _word(name: str, value: Any) -> str:
    """Return a value as MONAI's command line reads it: as Python, or else as text."""
    from fire.parser import DefaultParseValue

    text = str(value)
    return text if is_text(name) or DefaultParseValue(text) == value else repr(value)
