"""The strategies with an oracle in place of the annotator, as the benchmark has it."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import pytest
from bundle_runs import ROOT

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')

GRID = ((32, 32, 6), (12.0, 12.0, 25.0))


@pytest.fixture(scope="module")
def benchmark():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "active_learning.py")))


@pytest.fixture(scope="module")
def learnt(benchmark, tmp_path_factory):
    """Curves and choices of every strategy, for two seeds."""
    work = tmp_path_factory.mktemp("oracle")
    held_out = [benchmark.write_phantom(work, 10**6, "portal", *GRID)]
    pool = [benchmark.write_phantom(work, patient, "portal", *GRID) for patient in range(4)]
    return {
        (name, seed): benchmark.learn(work / f"{name}{seed}", name, seed, pool, held_out, 3, 60)
        for name in benchmark.STRATEGIES
        for seed in range(2)
    }


def test_each_strategy_labels_other_scans_one_by_one(learnt):
    for dice, chosen in learnt.values():
        assert len(dice) == len(set(chosen)) == 3
        assert all(0 <= value <= 1 for value in dice)
    assert len({tuple(chosen) for _, chosen in learnt.values()}) > 2


def test_all_begin_alike_and_learn(learnt):
    """The same first scan and the same training give the same; with more labels it gets better."""
    for seed in range(2):
        assert len({(chosen[0], dice[0]) for (_, own), (dice, chosen) in learnt.items() if own == seed}) == 1
    assert sum(dice[-1] for dice, _ in learnt.values()) > sum(dice[0] for dice, _ in learnt.values())


def test_the_table_compares_with_random(benchmark, capsys):
    curves = {"random": [[0.5, 0.6], [0.5, 0.7]], "uncertain": [[0.5, 0.7], [0.5, 0.6]]}
    benchmark.report(curves)
    row = capsys.readouterr().out.splitlines()[-1]
    assert "| 0.650 ± 0.050 |" in row
    assert row.endswith("| +0.000 ± 0.100 | 1 of 2 |")
