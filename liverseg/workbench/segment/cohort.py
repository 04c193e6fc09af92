"""Segment many cases side by side; each is done once, whatever ends on the way."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from liverseg.errors import InputError
from liverseg.files import check_writable, write_json, write_text
from liverseg.handlers.provenance import package_versions
from liverseg.workbench.segment.cases import Case
from liverseg.workbench.segment.request import Request, recorded, segment_case

# A case, and the folder for its results.
Task = tuple[Case, Path]
Done = Callable[[dict[str, Any], bool], None]


def run_cases(
    cases: Sequence[Case], output: Path, request: Request, jobs: int, done: Done
) -> list[dict[str, Any]]:
    """Segment cases in processes of this machine, and write `run.json` and the tables.

    What an earlier run with the same request has done is not done again. A case that fails, also
    one whose process is killed, is recorded with its `error` and ends no others.

    Args:
        cases: with names of their own.
        output: the folder for the results: of a single case its own, of several with one for each.
        request: what is asked for.
        jobs: processes; 1 takes this one.
        done: is called with the record of each case, and whether it was done before.

    Returns:
        The records in the order of the cases.

    Raises:
        InputError: for a folder that cannot be written.
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
            with ProcessPoolExecutor(count, get_context("spawn"), _begin, (jobs,)) as pool:
                while batch or running:
                    while batch and len(running) < count:
                        case, folder = batch.pop(0)
                        future = pool.submit(segment_case, case, folder, request)
                        running[future] = (case, folder)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield future.result()
                        del running[future]
        except BrokenProcessPool:
            if count == 1:
                ((case, folder),) = running.values()
                yield _killed(case, folder, request)
            else:
                alone += list(running.values())


def _begin(jobs: int) -> None:
    import torch

    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // jobs))
    quieten()
    os.environ["TQDM_DISABLE"] = "1"


def quieten() -> None:
    """Leave warnings of the scans alone to the log."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    # What ends a scan is in its record.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


def _killed(case: Case, folder: Path, request: Request) -> dict[str, Any]:
    error = "its process was killed, perhaps because the memory did not suffice"
    record = {"name": case.name, "scan": case.scan, "request": request.digest, "error": error}
    write_json(check_writable(folder) / "case.json", record)
    return record


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
