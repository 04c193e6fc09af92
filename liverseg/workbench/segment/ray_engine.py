"""Segment cases on the machines of a Ray cluster, which share the folders of scans and results."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from liverseg.errors import InputError
from liverseg.workbench.segment.bundles import weights_sha256
from liverseg.workbench.segment.cases import Case
from liverseg.workbench.segment.cohort import Task, killed, prepare_worker
from liverseg.workbench.segment.request import Request, segment_unless_done

# So many cases wait in the cluster: enough to keep it busy, and for its autoscaler to see the need.
AHEAD = 1000
# A case runs elsewhere where its machine or process is gone, at most this often.
RETRIES = 3
ANSWER_SECONDS = 30


def segment_on_ray(
    tasks: Sequence[Task], request: Request, jobs: int, address: str
) -> Iterator[dict[str, Any]]:
    """Yield the record of each case as it is done.

    The paths of scans, bundle and results must be the same on all machines, in storage that they
    share, and liverseg installed on each.

    Args:
        tasks: the cases, each with its folder.
        request: what is asked for.
        jobs: cases at once on the machine with the fewest cores; each takes the same cores.
        address: of the cluster, as `ray.init` takes it; "auto" is the one of this machine.

    Raises:
        InputError: where no cluster answers, it has no cores, or a machine has another bundle.
        OSError, RuntimeError: as `segment_case`.
    """
    # Ray's own default repeats a scan that is too large for its machine for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    import ray
    from ray.exceptions import (
        LocalRayletDiedError,
        NodeDiedError,
        OutOfMemoryError,
        RayTaskError,
        WorkerCrashedError,
    )

    gone = (LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)

    try:
        # Ray waits for minutes where nobody answers.
        host, colon, port = address.rpartition("/")[2].rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        ray.init(address=address, configure_logging=False, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--address: found no Ray cluster at {address} ({reason}), expected one: start it with "
            "`ray start --head`, or correct the address."
        ) from error
    try:
        share = _share(ray.nodes(), request, jobs)
        segment = ray.remote(_segment).options(max_retries=RETRIES, **share)
        waiting = list(reversed(tasks))
        running: dict[Any, Task] = {}
        while waiting or running:
            while waiting and len(running) < AHEAD:
                task = waiting.pop()
                running[segment.remote(*task, request, int(share["num_cpus"]))] = task
            (reference,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(reference)
            try:
                yield ray.get(reference)
            except gone:
                yield killed(*task, request)
            except RayTaskError as error:
                raise error.cause from error
    finally:
        ray.shutdown()


def _share(nodes: Sequence[dict[str, Any]], request: Request, jobs: int) -> dict[str, float]:
    """Return what a case takes of a machine."""
    alive = [node["Resources"] for node in nodes if node["Alive"] and "CPU" in node["Resources"]]
    if not alive:
        raise InputError(
            "--address: found no machine with cores in the Ray cluster, expected one at least: "
            "start it with `ray start`."
        )
    share = {"num_cpus": max(1, min(each["CPU"] for each in alive) // jobs)}
    has_gpu = any("GPU" in each for each in alive)
    return share | ({"num_gpus": 1 / jobs} if has_gpu and request.options.device != "cpu" else {})


def _segment(case: Case, folder: Path, request: Request, threads: int) -> dict[str, Any]:
    prepare_worker(threads)
    here = Request(
        request.bundle, request.options, request.wanted, request.modality, _weights(request.bundle)
    )
    if here.digest != request.digest:
        raise InputError(
            f"{request.bundle}: found another version of it, or of liverseg, on "
            f"{socket.gethostname()}, expected that of the machine that runs the command: install "
            "the same on all."
        )
    # Its first machine may have gone after it had written all.
    return segment_unless_done(case, folder, request)


@functools.cache
def _weights(bundle: Path) -> dict[str, str]:
    return weights_sha256(bundle)
