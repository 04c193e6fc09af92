"""The strategies with an oracle in place of the annotator, as the benchmark has it."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import pytest
from helpers.bundle_runs import ROOT

pytestmark = pytest.mark.slow

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')

# By chance, the scan that is unlike the others would come last.
SEED = 7
GRID = ((32, 32, 6), (12.0, 12.0, 25.0))


@pytest.fixture(scope="module")
def benchmark():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "active_learning.py")))


@pytest.fixture(scope="module")
def learnt(benchmark, tmp_path_factory):
    """Curve and choices of every strategy, from a pool in which one scan is of another phase."""
    work = tmp_path_factory.mktemp("oracle")
    held_out = [benchmark.write_phantom(work, 10**6, "portal", *GRID)]
    phases = ["portal", "portal", "portal", "native"]
    pool = [
        benchmark.write_phantom(work, patient, phase, *GRID) for patient, phase in enumerate(phases)
    ]
    return {
        name: benchmark.learn(work / name, name, SEED, pool, held_out, 2, 40, {})
        for name in benchmark.STRATEGIES
    }


def test_all_begin_alike_and_learn_from_different_scans(learnt):
    assert len({(chosen[0], dice[0]) for dice, chosen in learnt.values()}) == 1
    for dice, chosen in learnt.values():
        assert len(dice) == len(set(chosen)) == 2
        assert dice[0] > 0.5


def test_uncertain_finds_the_scan_that_is_unlike_the_labelled(learnt):
    assert [learnt[name][1][1] for name in ("first", "random", "uncertain")] == [
        "1_portal",
        "2_portal",
        "3_native",
    ]


def test_the_table_compares_with_random(benchmark, capsys):
    curves = {"random": [[0.5, 0.6], [0.5, 0.7]], "uncertain": [[0.5, 0.7], [0.5, 0.6]]}
    benchmark.report(curves)
    row = capsys.readouterr().out.splitlines()[-1]
    assert "| 0.650 ± 0.050 |" in row
    assert row.endswith("| +0.000 ± 0.100 | 1 of 2 |")
