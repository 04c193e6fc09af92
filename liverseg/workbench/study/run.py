"""Run the commands of a study side by side, so that it can be killed at any time and goes on."""

from __future__ import annotations

import copy
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from liverseg.chain import die_with_parent
from liverseg.files import check_writable, write_json, write_text
from liverseg.settings import is_used
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.length import planned_lengths
from liverseg.workbench.study.plan import Run
from liverseg.workbench.study.results import iterations_done
from liverseg.workbench.study.spec import Study


@dataclass(frozen=True)
class Step:
    """A command of a run.

    Attributes:
        name: of its log.
        arguments: after `python`.
        done: a file that is there once the command has ended well.
        settings: what decides the result and is not in the name of the run's folder, which the
            file holds.
        trains: whether it trains or evaluates.
    """

    name: str
    arguments: list[str]
    done: Path
    settings: str
    trains: bool

    def is_done(self) -> bool:
        """Return whether it has ended well with these settings."""
        return self.done.is_file() and self.done.read_text(encoding="utf-8") == self.settings

    def shell_line(self) -> str:
        """Return the command as a user types it."""
        return shlex.join(["python", *self.arguments])


def steps(run: Run) -> Iterator[Step]:
    """Yield the bundle's commands of a run: those that train, then its evaluations.

    They evaluate on the held-out fold, or on the test section where a table asks for that.
    """
    training = run.folder / "training"
    common = {
        "bundle_root": run.bundle.folder,
        **run.dataset,
        "ckpt_dir": run.folder / "models",
        **run.settings,
    }
    # Settings of the study may be of the evaluation alone, such as the planes that vote.
    of_training = {
        name: value
        for name, value in _used(run, run.bundle.train, common).items()
        if name.partition("#")[0] in run.bundle.train
    } | {"output_dir": training, "resume": True}
    for run_id in run.run_ids:
        arguments = _arguments(run_id, run, ["train"], of_training)
        yield Step(run_id, arguments, training / f"{run_id}.done", "", trains=True)
    report = next(
        index
        for index, handler in enumerate(run.bundle.evaluate["validate#handlers"])
        if handler["_target_"].endswith(".SegmentationReport")
    )
    for name, settings in run.evaluations.items():
        results = run.folder / "evaluation" / name
        options = common | {
            "output_dir": results,
            f"validate#handlers#{report}#masks_dir": results / "masks",
            "section": "validation",
            **settings,
        }
        options = _used(run, run.bundle.config.get(), options)
        arguments = _arguments("evaluating", run, ["train", "evaluate"], options)
        own = {key: value for key, value in options.items() if key in {**run.settings, **settings}}
        text = json.dumps(own, sort_keys=True)
        yield Step(f"evaluation_{name}", arguments, results / "done", text, trains=False)


def _used(run: Run, config: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without the study's settings that this command does not use.

    A study sets the radius of a postprocessing once, and a bundle refuses what changes nothing.

    Args:
        run: whose settings are looked at.
        config: that the command runs.
        options: of the command, the settings among them.
    """
    shipped = ConfigParser(copy.deepcopy(dict(config)), globals=False)
    given = ConfigParser(copy.deepcopy(dict(config)), globals=False)
    for name, value in options.items():
        if name.partition("#")[0] in config:
            given[name] = value
    return {
        name: value
        for name, value in options.items()
        if name not in run.settings or is_used(name, shipped, given)
    }


def _arguments(run_id: str, run: Run, configs: list[str], options: dict[str, Any]) -> list[str]:
    files = [str(run.bundle.folder / "configs" / f"{name}.json") for name in configs]
    options = {"config_file": files if len(files) > 1 else files[0], **options}
    words = ["-m", "monai.bundle", "run", run_id]
    for name, value in options.items():
        words += [f"--{name}", value if isinstance(value, str) else literal(value)]
    return words


def literal(value: Any) -> str:
    """Return a value as the command line of monai.bundle reads it: Python, with double quotes."""
    if isinstance(value, dict):
        pairs = (f"{literal(key)}: {literal(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def make_phantoms(study: Study, folder: StudyFolder) -> None:
    """Write the phantoms that the study's data sets ask for, where they are not there."""
    from liverseg.workbench.datasets.cli import phantoms

    for name, data in study.data.items():
        if data.phantoms is not None:
            path = folder.phantoms(name, data.phantoms)
            if not (path / "dataset.json").is_file():
                phantoms(path, **{"test": 0, **data.phantoms})


def run_all(
    runs: Sequence[Run], workers: int | None, keep_models: bool, console: Console
) -> dict[str, str]:
    """Run what is not done, several at once, and show how far it is.

    Each command is its own process, with its output in the run's folder; the commands die with
    this process. What is done is known from the files alone, so a killed study goes on where it
    was when it is run again.

    Args:
        runs: in this order.
        workers: runs at once; None takes the number of GPUs, or of CPU cores where there is none.
        keep_models: keep `model.pt` of a run that is done.
        console: where to show progress.

    Returns:
        For each run that failed, what its log says of it.
    """
    waiting = [run for run in runs if not _is_done(run)]
    done = len(runs) - len(waiting)
    if done:
        console.print(f"{done} of {len(runs)} cells are done already.")
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # An epoch may take hours.
        speed_estimate_period=7 * 24 * 3600,
    )
    runner = _Runner(workers, keep_models, progress)
    failed: dict[str, str] = {}
    with progress, ThreadPoolExecutor(runner.workers) as pool:
        total = progress.add_task("cells", total=len(runs), completed=done)
        futures = {pool.submit(runner.run, run): run for run in waiting}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                run, reason = futures[future], future.result()
                progress.advance(total)
                if reason is None:
                    seconds = json.loads((run.folder / "cell.json").read_text())["seconds"]
                    console.print(f"{count}/{len(waiting)} {run.name} ({seconds:.0f} s)")
                else:
                    failed[run.name] = reason
                    text = f"[red]failed[/red] {run.name}: {escape(reason)}"
                    console.print(text, soft_wrap=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    return failed


def _is_done(run: Run) -> bool:
    """Return whether the training and all evaluations are there, of these very settings."""
    record = run.folder / "cell.json"
    same = record.is_file() and json.loads(record.read_text())["digest"] == run.digest
    return same and all(step.is_done() for step in steps(run))


class _Runner:
    """Run the commands of a run, on one of the GPUs or some of the CPU cores."""

    def __init__(self, workers: int | None, keep_models: bool, progress: Progress) -> None:
        self.gpus = _visible_gpus()
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        self.workers = workers or len(self.gpus) or cores
        self.threads = max(1, cores // self.workers)
        self.keep_models = keep_models
        self.progress = progress
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.workers):
            self.slots.put(slot)
        self.lock = threading.Lock()
        self.stopped = False
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, run: Run) -> str | None:
        """Run all steps that are not done; returns what the log says where one failed."""
        slot = self.slots.get()
        iterations = None
        # The log of the training says what is wrong with its settings.
        with suppress(RuntimeError):
            iterations = sum(length.iterations for length in planned_lengths(run).values())
        bar = self.progress.add_task(run.name, total=iterations)
        try:
            return self._run_steps(run, slot, bar)
        finally:
            self.progress.remove_task(bar)
            self.slots.put(slot)

    def stop(self) -> None:
        """End all commands, and start none."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()

    def _run_steps(self, run: Run, slot: int, bar: TaskID) -> str | None:
        started = time.monotonic()
        check_writable(run.folder)
        trainings = [step for step in steps(run) if step.trains]
        # Models that were removed are needed once more where an evaluation has been added.
        if all(step.is_done() for step in trainings) and not any(
            (run.folder / "models").rglob("model.pt")
        ):
            shutil.rmtree(run.folder / "models", ignore_errors=True)
            for step in trainings:
                step.done.unlink()
        _write_record(run, None)
        for step in steps(run):
            if step.is_done():
                continue
            log = run.folder / f"{step.name}.log"
            self.progress.update(bar, description=f"{run.name}  {step.name}")
            status = self._call(step, log, slot, run, bar)
            if status != 0:
                return f"{_reason(log)} ({log})"
            write_text(step.done, step.settings)
        # Only a training that goes on reads checkpoints, three times as large as the models.
        for name in ("checkpoint.pt",) if self.keep_models else ("checkpoint.pt", "model.pt"):
            for path in (run.folder / "models").rglob(name):
                path.unlink()
        _write_record(run, time.monotonic() - started)
        return None

    def _call(self, step: Step, log: Path, slot: int, run: Run, bar: TaskID) -> int:
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        with log.open("ab") as output:
            output.write(f"$ {step.shell_line()}\n".encode())
            output.flush()
            with self.lock:
                if self.stopped:
                    return -signal.SIGTERM
                # It dies with the thread that starts it, and the pool's end only after it.
                process = subprocess.Popen(
                    [sys.executable, *step.arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - it takes no lock
                )
                self.processes.append(process)
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    self.progress.update(bar, completed=iterations_done(run.folder / "training"))


def _write_record(run: Run, seconds: float | None) -> None:
    keys = ("digest", "data", "network", "loss", "task", "fold", "seed")
    record = {key: getattr(run, key) for key in keys}
    record |= {"bundle": run.bundle.folder.name, "settings": run.settings, "seconds": seconds}
    write_json(run.folder / "cell.json", record)


def _visible_gpus() -> list[str]:
    """Return the GPUs to share out, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    chosen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return chosen[:count] or [str(index) for index in range(count)]


def _reason(log: Path) -> str:
    """Return what the log's last command ended with: its message, or a traceback's error."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text[text.rfind("$ python ") :].splitlines() if line.strip()]
    messages = [line for line in lines if line.startswith("error: ")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return [*messages, *errors[:1], lines[-1]][0]
