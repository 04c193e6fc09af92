"""Tables as files and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from liverseg.files import atomic_write, check_writable
from liverseg.workbench.study.metrics import is_share
from liverseg.workbench.study.tables import StudyTable, Value, compute_table, read_plan

PLACE = (
    "In each place: our mean ± sd over folds and seeds; the difference to the reference in percentage points (pp) and, "
    "where cases can be paired, p of a two-sided Wilcoxon signed-rank test over them, not corrected for the number of "
    "tests; the paper's number, and in brackets ours less the paper's."
)


def write_tables(out: Path) -> list[StudyTable]:
    """Write `tables/NAME.csv` and `tables/NAME.md` of every table of the study.

    Raises:
        InputError: when `out` holds no study or cannot be written.
    """
    folder = check_writable(out / "tables")
    tables = [compute_table(out, name, plan) for name, plan in read_plan(out)["tables"].items()]
    for table in tables:
        stem = table.name.replace(" ", "_")
        with atomic_write(folder / f"{stem}.csv") as file:
            file.write(to_csv(table).encode())
        with atomic_write(folder / f"{stem}.md") as file:
            file.write(to_markdown(table).encode())
    return tables


def to_csv(table: StudyTable) -> str:
    """A line for each row; for each column our mean and sd, the paper's number, the differences, and the test."""
    lines = []
    for row in table.rows:
        line: dict[str, Any] = {"": row}
        for column in table.columns:
            value = table.values.get((row, column))
            line |= {
                column: None if value is None else value.mean,
                f"{column}, sd": value and value.sd,
                f"{column}, paper": value and value.paper,
                f"{column}, ours − paper (pp)": value and value.difference_to_paper_pp,
                f"{column}, to the reference (pp)": value and value.difference_pp,
                f"{column}, p": value and value.p_value,
                f"{column}, pairs": value.pairs if value and value.p_value is not None else None,
            }
        lines.append(line)
    return pd.DataFrame(lines).dropna(axis=1, how="all").to_csv(index=False, float_format="%.6g")


def to_markdown(table: StudyTable) -> str:
    """The table as the paper lays it out; below our number the comparison with the reference, and the paper's."""
    lines = [f"# {table.title}", ""]
    lines.append("| | " + " | ".join(table.columns) + " |")
    lines.append("|---" * (len(table.columns) + 1) + "|")
    for row in table.rows:
        cells = [
            "<br>".join(cell_lines(table.values.get((row, column)))) for column in table.columns
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{PLACE}\n", *(f"{text}\n" for text in remarks(table))])


def cell_lines(value: Value | None) -> list[str]:
    """What a place says: our mean ± sd, its difference to the reference with the test, the paper's number."""
    if value is None:
        return [""]
    digits = _digits(value.mean, value.metric)
    sign = "+" if value.metric == "pp" else ""
    mean = "–" if np.isnan(value.mean) else f"{value.mean:{sign}.{digits}f}".replace("-", "−")
    sd = "" if value.sd is None else f" ± {value.sd:.{digits}f}"
    lines = [mean + sd + (" pp" if value.metric == "pp" else "")]
    if value.difference_pp is not None:
        lines.append(
            _signed(value.difference_pp)
            + ("" if value.p_value is None else f", p {_p_text(value.p_value)}")
        )
    if value.paper is not None:
        to_paper = value.difference_to_paper_pp
        printed = (
            f"{value.paper:.2f}"
            if is_share(value.metric) and round(value.paper, 2) == value.paper
            else value.paper
        )
        lines.append(f"paper {printed}" + ("" if to_paper is None else f" ({_signed(to_paper)})"))
    return lines


def remarks(table: StudyTable) -> list[str]:
    """Which cases are named by number, and what is missing."""
    cases = ["The cases: " + "; ".join(table.notes) + "."] if table.notes else []
    return cases + [f"Missing: {line}." for line in table.missing]


def _digits(value: float, metric: str) -> int:
    """Digits after the point: as many as the metric deserves, or three that count for seconds and minutes."""
    if metric == "pp":
        return 1
    if is_share(metric):
        return 3
    if (
        metric in ("epochs", "iterations", "memory_mb", "rank")
        or not np.isfinite(value)
        or value == 0
    ):
        return 0
    return max(0, 2 - int(np.floor(np.log10(abs(value)))))


def _signed(pp: float) -> str:
    """A difference in percentage points."""
    return f"{pp:+.1f} pp".replace("-", "−")


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
