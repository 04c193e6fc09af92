"""Write the tables of a study as CSV, Markdown and, with its pictures, as one page."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from liverseg.files import atomic_write, check_writable
from liverseg.outputs.overlays import MASK_COLOUR, REFERENCE_COLOUR
from liverseg.workbench.study.folder import StudyFolder, file_name
from liverseg.workbench.study.length import LENGTHS, NEARLY_ALL, shorter_line
from liverseg.workbench.study.plots import bars_png, curves_png, overlays, roc_png, rounds_png
from liverseg.workbench.study.results import is_share, read_results
from liverseg.workbench.study.surfaces import surfaces
from liverseg.workbench.study.tables import StudyTable, Value, compute_table

PLACE = (
    "In each place: our mean ± sd over folds and seeds; the difference to the reference in "
    "percentage points (pp) and, where cases can be paired, p of a two-sided Wilcoxon "
    "signed-rank test over them, not corrected for the number of tests; the paper's number, and "
    "in brackets ours less the paper's."
)
# Columns of the CSV by what they show of a place.
SUFFIXES = {
    "mean": "",
    "sd": ", sd",
    "paper": ", paper",
    "difference_to_paper_pp": ", ours − paper (pp)",
    "difference_pp": ", to the reference (pp)",
    "p_value": ", p",
    "pairs": ", pairs",
}


def write_report(folder: StudyFolder) -> Path:
    """Write a study's tables, its plots and `index.html` from what its runs have reached so far.

    Returns:
        The page's path.

    Raises:
        InputError: when the folder holds no study or cannot be written.
    """
    plan = folder.read_plan()
    results = read_results(folder, plan["cells"])
    check_writable(folder.tables)
    check_writable(folder.plots)
    tables = [compute_table(results, name, table) for name, table in plan["tables"].items()]
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files(__package__) / "page.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=f"Study {folder.path.name}",
        tables=[_write_table(folder, table) for table in tables],
        curves=[
            {"title": title, "src": _write_plot(folder, f"{title}_curves", png)}
            for title, png in curves_png(folder, plan["cells"])
        ],
        rocs=[
            {"title": title, "src": _write_plot(folder, f"{title}_roc", png)}
            for title, png in roc_png(folder, plan["cells"])
        ],
        scans=[
            {"caption": caption, "src": _write_plot(folder, name, png)}
            for name, caption, png in overlays(folder, plan["cells"], results)
        ],
        surfaces=[
            {"caption": caption, "src": _write_plot(folder, name, png)}
            for name, caption, png in surfaces(folder, plan, results)
        ],
        place=PLACE,
        lengths=plan.get("lengths", []),
        length_names=LENGTHS,
        nearly_all=NEARLY_ALL,
        shorter=shorter_line(plan.get("lengths", [])),
        differences=plan.get("differences", []),
        phantoms=plan["phantoms"],
        mask_colour=MASK_COLOUR,
        reference_colour=REFERENCE_COLOUR,
    )
    with atomic_write(folder.page) as file:
        file.write(page.encode())
    return folder.page


def to_csv(table: StudyTable) -> str:
    """Return a line for each row, and for each column mean, sd, the paper's number and tests."""
    wide = pd.DataFrame(
        {
            f"{column}{suffix}": [
                getattr(table.values.get((row, column)), name, None) for row in table.rows
            ]
            for column in table.columns
            for name, suffix in SUFFIXES.items()
        },
        index=table.rows,
    )
    return wide.dropna(axis=1, how="all").to_csv(index_label="", float_format="%.6g")


def to_markdown(table: StudyTable) -> str:
    """Return the table as the paper lays it out, with the lines of each place."""
    texts = _texts(table).map("<br>".join)
    lines = [f"# {table.title}", ""]
    lines.append("| | " + " | ".join(table.columns) + " |")
    lines.append("|---" * (len(table.columns) + 1) + "|")
    lines += [f"| {row} | " + " | ".join(places) + " |" for row, *places in texts.itertuples()]
    return "\n".join([*lines, "", f"{PLACE}\n", *(f"{text}\n" for text in remarks(table))])


def _texts(table: StudyTable) -> pd.DataFrame:
    places = {
        column: [place_lines(table.values.get((row, column))) for row in table.rows]
        for column in table.columns
    }
    return pd.DataFrame(places, index=table.rows)


def place_lines(value: Value | None) -> list[str]:
    """Return a place as text: mean ± sd; difference and test; the paper's number."""
    if value is None:
        return [""]
    digits = _digits(value.mean, value.metric)
    sign = "+" if value.metric == "pp" else ""
    mean = "–" if np.isnan(value.mean) else f"{value.mean:{sign}.{digits}f}".replace("-", "−")
    sd = "" if value.sd is None else f" ± {value.sd:.{digits}f}"
    lines = [mean + sd + (" pp" if value.metric == "pp" else "")]
    if value.difference_pp is not None:
        p = "" if value.p_value is None else f", p {_p_text(value.p_value)}"
        lines.append(_signed(value.difference_pp) + p)
    if value.paper is not None:
        two_digits = is_share(value.metric) and round(value.paper, 2) == value.paper
        printed = f"{value.paper:.2f}" if two_digits else value.paper
        to_paper = value.difference_to_paper_pp
        lines.append(f"paper {printed}" + ("" if to_paper is None else f" ({_signed(to_paper)})"))
    return lines


def remarks(table: StudyTable) -> list[str]:
    """Return which cases are named by number, what was chosen, and what is missing."""
    cases = ["The cases: " + "; ".join(table.notes) + "."] if table.notes else []
    return cases + table.choices + [f"Missing: {line}." for line in table.missing]


def _write_table(folder: StudyFolder, table: StudyTable) -> dict[str, Any]:
    """Write a table's files; returns what the page shows of it."""
    paths = []
    for suffix, text in ((".csv", to_csv(table)), (".md", to_markdown(table))):
        paths.append(folder.tables / f"{file_name(table.name)}{suffix}")
        with atomic_write(paths[-1]) as file:
            file.write(text.encode())
    kind, png = "rounds", rounds_png(table)
    if png is None:
        kind, png = "bars", bars_png(table)
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": [(row, places) for row, *places in _texts(table).itertuples()],
        "texts": remarks(table),
        "files": [path.relative_to(folder.path).as_posix() for path in paths],
        "bars": png and _write_plot(folder, f"{table.name}_{kind}", png),
    }


def _write_plot(folder: StudyFolder, name: str, png: bytes) -> str:
    path = folder.plots / f"{file_name(name)}.png"
    with atomic_write(path) as file:
        file.write(png)
    return path.relative_to(folder.path).as_posix()


def _digits(value: float, metric: str) -> int:
    """Return the digits after the point: three that count for seconds and minutes."""
    if metric == "pp":
        return 1
    if is_share(metric):
        return 3
    whole = metric in ("epochs", "iterations", "memory_mb", "rank")
    if whole or not np.isfinite(value) or value == 0:
        return 0
    return max(0, 2 - int(np.floor(np.log10(abs(value)))))


def _signed(pp: float) -> str:
    """Return a difference in percentage points."""
    return f"{pp:+.1f} pp".replace("-", "−")


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
