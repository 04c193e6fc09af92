"""Run the cells of a study side by side, each in processes of its own, so that it can be killed at any time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from liverseg.chain import die_with_parent
from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.workbench.study.cells import Cell, Step, phantoms_folder, python_command, steps
from liverseg.workbench.study.metrics import last_epoch
from liverseg.workbench.study.read import Study


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the output folder for this process, until it ends in whatever way.

    Raises:
        InputError: when another process holds it, or it cannot be written.
    """
    path = check_writable(out) / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"{out}: another study runs in this folder (process {file.read().strip() or 'unknown'}): wait for "
                "its end, or give another folder with --out."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def make_phantoms(study: Study, out: Path) -> None:
    """Write the phantoms that the study's data sets ask for, where they are not there."""
    from liverseg.workbench.datasets.cli import phantoms

    for name, entry in study.data.items():
        folder = phantoms_folder(study, out, name) if "phantoms" in entry else None
        if folder and not (folder / "dataset.json").is_file():
            phantoms(folder, **{"test": 0, **entry["phantoms"]})


def is_done(cell: Cell, out: Path) -> bool:
    """Whether the training and all the evaluations of the cell are there, of these very settings."""
    record = cell_folder(cell, out) / "cell.json"
    same = record.is_file() and json.loads(record.read_text())["digest"] == cell.digest
    return same and all(step.is_done() for step in steps(cell, cell_folder(cell, out)))


def cell_folder(cell: Cell, out: Path) -> Path:
    """Where everything of the cell goes."""
    return out / "cells" / cell.name


@dataclass
class _Running:
    cell: Cell
    slot: int
    steps: list[Step]
    started: float
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None


class Runner:
    """Run cells, several at once, and show how far they are.

    Each command of a cell is a process of its own, with its output in the cell's folder; the commands die with this
    process. What is done is known from the files alone, so a killed study goes on where it was when it is run again.

    Args:
        out: the study's folder.
        workers: cells at once; None takes the number of GPUs, or of CPU cores where there is none.
        keep_models: keep `model.pt` of a cell that is done.
        console: where to show progress.
    """

    def __init__(self, out: Path, workers: int | None, keep_models: bool, console: Console) -> None:
        self.out = out
        self.gpus = visible_gpus()
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        self.workers = workers or len(self.gpus) or cores
        self.threads = max(1, cores // self.workers)
        self.keep_models = keep_models
        self.console = console
        self.running: list[_Running] = []
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def run(
        self, cells: Sequence[Cell], on_done: Callable[[Cell], None] = lambda cell: None
    ) -> dict[str, str]:
        """Run the cells that are not done.

        Args:
            cells: in this order.
            on_done: called after each that ends well.

        Returns:
            For each cell that failed, what its log says of it.
        """
        done = [cell for cell in cells if is_done(cell, self.out)]
        for cell in done:
            self.seconds[cell.network].append(_recorded_seconds(cell_folder(cell, self.out)))
        waiting = [cell for cell in cells if cell not in done]
        count, finished = len(waiting), 0
        if done:
            self.console.print(f"{len(done)} of {len(cells)} cells are done already.")
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            try:
                while waiting or self.running:
                    while waiting and len(self.running) < self.workers:
                        self._start(waiting.pop(0))
                    time.sleep(0.2)
                    for running in list(self.running):
                        if self._advance(running):
                            finished += 1
                            self._report(running.cell, finished, count)
                            if running.cell.name not in self.failed:
                                on_done(running.cell)
                    live.update(
                        self._progress(waiting, len(done) + finished, len(cells)), refresh=True
                    )
            finally:
                for running in self.running:
                    if running.process:
                        running.process.terminate()
        return self.failed

    def _start(self, cell: Cell) -> None:
        folder = check_writable(cell_folder(cell, self.out))
        trained = all(step.result.is_file() for step in steps(cell, folder) if step.trains)
        # Models that were not kept are needed once more where an evaluation has been added.
        if trained and not any((folder / "models").rglob("model.pt")):
            shutil.rmtree(folder / "models", ignore_errors=True)
            for step in steps(cell, folder):
                if step.trains:
                    step.result.unlink()
        todo = [step for step in steps(cell, folder) if not step.is_done()]
        slot = min(set(range(self.workers)) - {running.slot for running in self.running})
        self.running.append(_Running(cell, slot, todo, time.monotonic()))
        _write_record(cell, folder, None)

    def _advance(self, running: _Running) -> bool:
        """Look after a cell; true when it has come to its end, good or bad."""
        folder = cell_folder(running.cell, self.out)
        if running.process is None:
            if not running.steps:
                self._finish(running, folder)
                return True
            self._launch(running, folder)
            return False
        if (status := running.process.poll()) is None:
            return False
        running.process = None
        assert running.log is not None
        running.log.close()
        step = running.steps.pop(0)
        if status == 0 and step.trains:
            step.result.touch()
        if status != 0 or not step.is_done():
            log = folder / f"{step.name}.log"
            self.failed[running.cell.name] = f"{_reason(log)} ({log})"
            self.running.remove(running)
            return True
        return False

    def _launch(self, running: _Running, folder: Path) -> None:
        step = running.steps[0]
        command = python_command(step)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads)),
        }
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[running.slot % len(self.gpus)]
        running.log = (folder / f"{step.name}.log").open("ab")
        running.log.write(f"$ {shell_line(step)}\n".encode())
        running.log.flush()
        running.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=running.log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread here
        )

    def _finish(self, running: _Running, folder: Path) -> None:
        self.running.remove(running)
        seconds = time.monotonic() - running.started
        self.seconds[running.cell.network].append(seconds)
        # Only a training that goes on reads checkpoints, and they are three times as large as the models.
        for name in ("checkpoint.pt",) if self.keep_models else ("checkpoint.pt", "model.pt"):
            for path in (folder / "models").rglob(name):
                path.unlink()
        _write_record(running.cell, folder, seconds)

    def _report(self, cell: Cell, finished: int, count: int) -> None:
        if cell.name in self.failed:
            self.console.print(
                f"[red]failed[/red] {cell.name}: {self.failed[cell.name]}", soft_wrap=True
            )
        else:
            self.console.print(
                f"{finished}/{count} {cell.name} ({self.seconds[cell.network][-1]:.0f} s)"
            )

    def _progress(self, waiting: Sequence[Cell], done: int, count: int) -> Table:
        table = Table.grid(padding=(0, 2))
        left = self._seconds_left(waiting)
        table.add_row(
            f"[bold]{done}/{count} cells", "" if left is None else f"about {_duration(left)} left"
        )
        for running in self.running:
            step = running.steps[0].name if running.steps else ""
            if running.steps and running.steps[0].trains:
                step += f", epoch {self._epoch(running.cell)} of {running.cell.settings.get('max_epochs', '?')}"
            table.add_row(running.cell.name, step)
        return table

    def _epoch(self, cell: Cell) -> int:
        try:
            return int(last_epoch(cell_folder(cell, self.out) / "training")["epoch"])
        except FileNotFoundError:
            return 0

    def _seconds_left(self, waiting: Sequence[Cell]) -> float | None:
        known = [seconds for finished in self.seconds.values() for seconds in finished]
        if not known:
            return None

        def expected(cell: Cell) -> float:
            same = self.seconds[cell.network] or known
            return sum(same) / len(same)

        now = time.monotonic()
        running = [max(0.0, expected(each.cell) - (now - each.started)) for each in self.running]
        total = sum(map(expected, waiting)) + sum(running)
        return max([total / self.workers, *running])


def visible_gpus() -> list[str]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    chosen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return chosen[: torch.cuda.device_count()] or [
        str(index) for index in range(torch.cuda.device_count())
    ]


def shell_line(step: Step) -> str:
    """The step's command as a user types it."""
    import shlex

    return shlex.join(["python", *step.arguments])


def _write_record(cell: Cell, folder: Path, seconds: float | None) -> None:
    record = {
        **{
            key: getattr(cell, key)
            for key in ("digest", "data", "network", "loss", "task", "fold", "seed")
        },
        "bundle": cell.bundle.folder.name,
        "settings": cell.settings,
        "seconds": seconds,
    }
    text = json.dumps(record, indent=1)
    with atomic_write(folder / "cell.json") as file:
        file.write(f"{text}\n".encode())


def _recorded_seconds(folder: Path) -> float:
    return json.loads((folder / "cell.json").read_text())["seconds"] or 0.0


def _reason(log: Path) -> str:
    """What the last command in the log ended with: its sentence, or the error that a traceback began with."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text[text.rfind("$ python ") :].splitlines() if line.strip()]
    sentences = [line for line in lines if line.startswith("error: ")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return [*sentences, *errors[:1], lines[-1]][0]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 60
        else f"{minutes} min"
        if minutes < 120
        else f"{minutes / 60:.1f} h"
    )
