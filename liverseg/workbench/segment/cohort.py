"""Segment many cases side by side; each is done once, whatever ends on the way."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import pandas as pd

from liverseg.chain import die_with_parent
from liverseg.errors import InputError
from liverseg.files import check_writable, write_json, write_text
from liverseg.handlers.provenance import package_versions
from liverseg.workbench.segment.cases import Case
from liverseg.workbench.segment.request import (
    Request,
    recorded,
    segment_case,
    segment_unless_done,
    write_record,
)

# A case, and the folder for its results.
Task = tuple[Case, Path]
Done = Callable[[dict[str, Any], bool], None]


def run_cases(
    cases: Sequence[Case],
    output: Path,
    request: Request,
    jobs: int,
    done: Done,
    address: str | None = None,
) -> list[dict[str, Any]]:
    """Segment cases, and write `run.json` and the tables.

    What an earlier run with the same request has done is not done again. A case that fails, also
    one whose process is killed, is recorded with its `error` and ends no others.

    Args:
        cases: with names of their own.
        output: the folder for the results: of a single case its own, of several with one for each.
        request: what is asked for.
        jobs: cases at once on a machine; without a cluster, 1 takes this process.
        done: is called with the record of each case, and whether it was done before.
        address: of a Ray cluster, as of `segment_on_ray`; None takes this machine.

    Returns:
        The records in the order of the cases.

    Raises:
        InputError: for a folder that cannot be written, and as `segment_on_ray`.
        OSError, RuntimeError: as `segment_case`.
    """
    check_writable(output)
    started = datetime.now().astimezone()
    folders = [output] if len(cases) == 1 else [output / case.name for case in cases]
    tasks = list(zip(cases, folders, strict=True))
    records: dict[str, dict[str, Any]] = {}
    waiting = []
    for case, folder in tasks:
        record = recorded(case, folder, request)
        if record is None:
            waiting.append((case, folder))
        else:
            records[case.name] = record
            done(record, True)
    if address is not None and waiting:
        from liverseg.workbench.segment.ray_engine import segment_on_ray

        finished = segment_on_ray(waiting, request, jobs, address)
    else:
        finished = _here(waiting, request) if jobs == 1 else _side_by_side(waiting, request, jobs)
    for record in finished:
        records[record["name"]] = record
        done(record, False)
    in_order = [records[case.name] for case in cases]
    write_run(output, request, in_order, started)
    return in_order


def _here(tasks: Sequence[Task], request: Request) -> Iterator[dict[str, Any]]:
    for case, folder in tasks:
        yield segment_case(case, folder, request)


def _side_by_side(tasks: Sequence[Task], request: Request, jobs: int) -> Iterator[dict[str, Any]]:
    waiting, alone = list(tasks), list[Task]()
    while waiting or alone:
        # After a process was killed, those that ran at that time run one by one, so that the one
        # that is to blame ends no others.
        batch, count = (alone, 1) if alone else (waiting, jobs)
        running: dict[Future[dict[str, Any]], Task] = {}
        try:
            begin = (cores() // jobs, os.getpid())
            with ProcessPoolExecutor(count, get_context("spawn"), _begin, begin) as pool:
                while batch or running:
                    while batch and len(running) < count:
                        case, folder = batch[0]
                        with _without_ctrl_c():
                            future = pool.submit(segment_unless_done, case, folder, request)
                        running[future] = batch.pop(0)
                    # Those that have ended well first: after a process was killed, all others fail.
                    ended = wait(running, return_when=FIRST_COMPLETED).done
                    for future in sorted(ended, key=lambda one: one.exception() is not None):
                        yield future.result()
                        del running[future]
        except BrokenProcessPool:
            if count == 1:
                for case, folder in running.values():
                    yield killed(case, folder, request)
            else:
                alone += list(running.values())
        except (KeyboardInterrupt, GeneratorExit):
            # What they have begun is done anew by the next run.
            for process in active_children():
                process.kill()
            raise


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Let the processes that the block starts not see Ctrl-C, on which this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Return how many cores this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def prepare_worker(threads: int) -> None:
    """Make this process one of several that segment, with its share of the cores."""
    import torch

    torch.set_num_threads(max(1, threads))
    quieten()
    os.environ["TQDM_DISABLE"] = "1"


def quieten() -> None:
    """Leave warnings of the scans alone to the log."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    # What ends a scan is in its record.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


def _begin(threads: int, parent: int) -> None:
    die_with_parent(parent)
    prepare_worker(threads)


def killed(case: Case, folder: Path, request: Request) -> dict[str, Any]:
    """Record a case whose process was killed."""
    error = "its process was killed, perhaps because the memory did not suffice"
    record = {"name": case.name, "scan": case.scan, "request": request.digest, "error": error}
    return write_record(folder, record)


def write_run(
    output: Path, request: Request, records: Sequence[dict[str, Any]], started: datetime
) -> None:
    """Write `run.json`, `cases.csv`, and with statistics `organs.csv` and `lesions.csv`."""
    ended = datetime.now().astimezone()
    options = request.options
    write_json(
        output / "run.json",
        {
            "started": started.isoformat(timespec="seconds"),
            "ended": ended.isoformat(timespec="seconds"),
            "bundle": request.name,
            "weights_sha256": dict(request.weights),
            "options": json.loads(json.dumps(options.__dict__, default=list)),
            "modality": request.modality,
            "versions": package_versions(),
            "cases": [
                {key: value for key, value in record.items() if key not in ("state", "statistics")}
                for record in records
            ],
        },
    )
    table = pd.DataFrame(
        {
            "name": record["name"],
            "scan": record["scan"],
            **{f"{name}_ml": ml for name, ml in record.get("volume_ml", {}).items()},
            "flags": " ".join(record.get("flags", {})),
            "seconds": record.get("seconds"),
            "error": record.get("error", ""),
        }
        for record in records
    )
    write_text(output / "cases.csv", table.to_csv(index=False))
    figures = [record["statistics"] for record in records if "statistics" in record]
    # Of an earlier run, which asked for something else.
    for name in ("organs", "lesions"):
        (output / f"{name}.csv").unlink(missing_ok=True)
    if figures:
        from liverseg.outputs.statistics import statistics_tables

        organs, lesions = statistics_tables(figures)
        write_text(output / "organs.csv", organs.to_csv(index=False))
        if any("lesions" in each for each in figures):
            write_text(output / "lesions.csv", lesions.to_csv(index=False))


def failed(records: Sequence[dict[str, Any]]) -> None:
    """Raise for the cases that failed.

    Raises:
        InputError: with the names of those that did.
    """
    errors = [record for record in records if "error" in record]
    if errors:
        listed = "; ".join(
            f"{record['name']}: {record['error'].rstrip('.')}" for record in errors[:10]
        )
        more = f"; and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise InputError(
            f"{len(errors)} of {len(records)} scans failed, expected none; the others are done, "
            f"and run.json lists all: {listed}{more}."
        )
