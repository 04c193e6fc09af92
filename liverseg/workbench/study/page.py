"""`index.html`: the tables and pictures of a study on one page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from liverseg.files import atomic_write, check_writable
from liverseg.workbench.report.overlays import MASK_COLOUR, REFERENCE_COLOUR
from liverseg.workbench.study.plots import bars_png, curves_png, overlays
from liverseg.workbench.study.render import PLACE, cell_lines, remarks, write_tables
from liverseg.workbench.study.tables import StudyTable, read_plan


def write_page(out: Path) -> Path:
    """Write a study's tables, its plots and `index.html` from what its cells have reached so far.

    Args:
        out: the study's folder.

    Returns:
        The page's path.

    Raises:
        InputError: when `out` holds no study or cannot be written.
    """
    plan = read_plan(out)
    tables = write_tables(out)
    check_writable(out / "plots")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files(__package__) / "page.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=f"Study {out.name}",
        tables=[_table(out, table) for table in tables],
        curves=list(_curves(out, plan)),
        scans=[_scan(out, scan) for scan in overlays(out, plan)],
        place=PLACE,
        phantoms=plan["phantoms"],
        mask_colour=MASK_COLOUR,
        reference_colour=REFERENCE_COLOUR,
    )
    path = out / "index.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _table(out: Path, table: StudyTable) -> dict[str, Any]:
    rows = [
        (row, [cell_lines(table.values.get((row, column))) for column in table.columns])
        for row in table.rows
    ]
    png = bars_png(table)
    stem = table.name.replace(" ", "_")
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": rows,
        "texts": remarks(table),
        "files": [f"tables/{stem}.csv", f"tables/{stem}.md"],
        "bars": png and _write(out, f"{stem}_bars", png),
    }


def _curves(out: Path, plan: dict[str, Any]) -> Iterator[dict[str, str]]:
    for name, png in curves_png(out, plan):
        yield {"title": name, "src": _write(out, f"{name}_curves", png)}


def _scan(out: Path, scan: dict[str, Any]) -> dict[str, Any]:
    return {**scan, "src": _write(out, scan["file"], scan["png"])}


def _write(out: Path, name: str, png: bytes) -> str:
    path = Path("plots") / f"{name.replace(' ', '_')}.png"
    with atomic_write(out / path) as file:
        file.write(png)
    return path.as_posix()
