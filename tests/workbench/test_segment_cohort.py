"""Many cases: side by side, stopped and gone on with, with bad ones among them."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from helpers.cohorts import (
    masks,
    records,
    segment,
    start,
    write_bundle,
    write_scans,
    written_ns,
)
from helpers.waiting import SECONDS, wait_until

from liverseg.files import hold

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, bundle) -> tuple[Path, Path]:
    """Five scans, and the results of a run in one process."""
    folder = tmp_path_factory.mktemp("cohort")
    scans = write_scans(folder / "scans", 5)
    segment(scans, folder / "out", bundle, "--statistics")
    return scans, folder / "out"


def workers(process) -> list[psutil.Process]:
    """The processes that segment for a command."""
    found = []
    for child in psutil.Process(process.pid).children():
        # One that has just ended has no command line.
        with contextlib.suppress(psutil.Error):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def leftovers(output: Path) -> list[Path]:
    """Files that were begun; a lock is none."""
    return [path for path in output.rglob(".*") if path.is_file() and "lock" not in path.name]


def test_two_at_once_give_the_bytes_of_one_at_a_time(cohort, bundle, tmp_path):
    scans, out = cohort
    segment(scans, tmp_path / "out", bundle, "--statistics", "--jobs", "2")
    assert len(masks(out)) == 5
    assert masks(tmp_path / "out") == masks(out)
    assert len({*masks(out).values()}) == 5


def test_the_tables_say_what_is_in_the_masks(cohort):
    _, out = cohort
    with (out / "cases.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    with (out / "organs.csv").open(newline="") as file:
        organs = list(csv.DictReader(file))
    assert [*rows] == [f"case{number}" for number in range(5)]
    assert len(organs) == 5
    # The bundle does not look for lesions.
    assert not (out / "lesions.csv").exists()
    for path in out.glob("*/*.nii.gz"):
        image = nib.load(path)
        voxels = int((np.asarray(image.dataobj) == 1).sum())
        assert voxels > 0
        ml = voxels * np.prod(image.header.get_zooms()) / 1000
        assert float(rows[path.parent.name]["liver_ml"]) == pytest.approx(ml, abs=1e-3)
        assert rows[path.parent.name]["error"] == ""


def test_bad_cases_are_recorded_and_end_no_others(cohort, bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 4)
    whole = (scans / "case1.nii").read_bytes()
    (scans / "case1.nii").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    out.mkdir()
    # A folder that nobody can write, not even root.
    (out / "case2").symlink_to("/proc")
    message = segment(scans, out, bundle, "--jobs", "2", status=1)
    assert "2 of 4 scans failed" in message
    assert "Traceback" not in message
    found = records(out)
    assert {name for name, record in found.items() if "error" in record} == {"case1", "case2"}
    assert "case1.nii" in found["case1"]["error"]
    assert "cannot be written" in found["case2"]["error"]
    _, expected = cohort
    assert masks(out) == {name: masks(expected)[name] for name in ("case0", "case3")}
    (scans / "case1.nii").write_bytes(whole)
    (out / "case2").unlink()
    before = written_ns(out)
    segment(scans, out, bundle)
    assert {name: written_ns(out)[name] for name in ("case0", "case3")} == {
        name: before[name] for name in ("case0", "case3")
    }
    assert not any("error" in record for record in records(out).values())


def test_a_killed_worker_ends_no_case_but_one_that_is_killed_again(cohort, bundle, tmp_path):
    scans, expected = cohort
    process = start(scans, tmp_path / "out", bundle, "--jobs", "2")
    wait_until(lambda: written_ns(tmp_path / "out"))
    first = workers(process)
    first[0].kill()
    wait_until(lambda: {*workers(process)} - {*first})
    for worker in {*workers(process)} - {*first}:
        worker.kill()
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, out + err
    found = records(tmp_path / "out")
    failed = [name for name, record in found.items() if "error" in record]
    assert len(found) == 5
    assert len(failed) == 1
    assert "was killed" in found[failed[0]]["error"]
    others = {name: mask for name, mask in masks(expected).items() if name not in failed}
    assert {**masks(tmp_path / "out"), **others} == masks(tmp_path / "out")


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGKILL, "2"), (signal.SIGINT, "2")])
def test_a_run_that_was_ended_goes_on(bundle, tmp_path, number, jobs):
    # So many that it is not over when the first is done.
    scans = write_scans(tmp_path / "scans", 40)
    out = tmp_path / "out"
    process = start(scans, out, bundle, "--statistics", "--jobs", jobs)
    wait_until(lambda: written_ns(out), interval_s=0.01)
    children = workers(process)
    # Ctrl-C reaches all processes of a terminal.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert "Traceback" not in err
    wait_until(lambda: not any(child.is_running() for child in children))
    before = written_ns(out)
    assert 0 < len(before) < 40
    again = segment(scans, out, bundle, "--statistics", "--jobs", jobs)
    assert again.count("done before") == len(before)
    assert {name: written_ns(out)[name] for name in before} == before
    assert len(records(out)) == len(masks(out)) == 40
    segment(scans, tmp_path / "expected", bundle)
    assert masks(out) == masks(tmp_path / "expected")
    assert not leftovers(out)


def test_two_runs_do_not_share_a_folder(cohort, bundle, tmp_path):
    scans, _ = cohort
    # The lock of a run that goes on, whose process this is.
    with hold(tmp_path / "out", "`liverseg segment`"):
        shown = segment(scans, tmp_path / "out", bundle, status=1)
    assert f"another `liverseg segment` runs in this folder (process {os.getpid()})" in shown
    segment(scans, tmp_path / "out", bundle)


def test_another_option_weight_or_scan_does_a_case_again(bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 2)
    out = tmp_path / "out"
    segment(scans, out, bundle)
    first, before = masks(out), written_ns(out)
    assert segment(scans, out, bundle).count("done before") == 2
    assert "done before" not in segment(scans, out, bundle, "--fast")
    assert "done before" not in segment(scans, out, bundle)
    os.utime(scans / "case0.nii", (0, 0))
    assert segment(scans, out, bundle).count("done before") == 1
    assert masks(out) == first
    other = write_bundle(tmp_path / "other" / "tiny", seed=1)
    assert "done before" not in segment(scans, out, other)
    assert masks(out) != first
    assert all(written_ns(out)[name] > before[name] for name in before)
