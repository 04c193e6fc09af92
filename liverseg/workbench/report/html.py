"""Write one HTML file with all results of a demo run."""

from __future__ import annotations

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from liverseg.errors import InputError
from liverseg.files import write_text
from liverseg.io.masks import recorded_flags
from liverseg.outputs.overlays import (
    MASK_COLOUR,
    PLANES,
    REFERENCE_COLOUR,
    axial_pngs,
    load_scan,
    plane_png,
)
from liverseg.outputs.surface import surface_png
from liverseg.workbench.report.curves import curves_png

CLASS = "liver"
NO_VALUE = "–"

# metrics.json speaks to scripts.
FACT_NAMES = {
    "best_val_mean_dice": "Best validation Dice",
    "best_epoch": "Best epoch",
    "seconds": "Training time, seconds",
    "peak_memory_gb": "Peak memory, GB",
    "peak_gpu_memory_gb": "Peak GPU memory, GB",
}


@dataclass(frozen=True)
class ShownScan:
    """A scan of the report.

    Attributes:
        name: heading of its section.
        image: as for `load_scan`, like the next two.
        mask: of the liver; its flags are in the `summary.json` beside it.
        reference: of the liver; None without one.
        note: what it is, what segmented it, and who made the reference.
    """

    name: str
    image: Path
    mask: Path
    reference: Path | None
    note: str


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    history: str | os.PathLike[str],
    evaluations: Mapping[str, str | os.PathLike[str]],
    scans: Sequence[ShownScan],
    facts: Mapping[str, Any],
) -> None:
    """Write one HTML file: overlays, volumes, curves, postprocessing compared, training facts.

    Args:
        path: the file to write; what is there is replaced when the new one is whole.
        title: heading of the page.
        history: `history.csv` of the training.
        evaluations: what was done to the masks → folder with the `summary.json` and `cases.csv` of
            `liverseg.handlers.SegmentationReport`; the others are compared with the first.
        scans: what is shown first.
        facts: the content of the training's `metrics.json`.

    Raises:
        InputError: for a file that is missing or not what it should be, or a `path` that cannot be
            written.
    """
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files(__package__) / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        curves=_picture(curves_png(history)),
        comparison=_comparison(evaluations),
        cases=_cases(evaluations),
        evaluations=list(evaluations),
        facts=_facts(facts),
        scans=[_scan(scan) for scan in scans],
        mask_colour=MASK_COLOUR,
        reference_colour=REFERENCE_COLOUR,
    )
    write_text(path, page)


def _scan(shown: ShownScan) -> dict[str, Any]:
    scan = load_scan(shown.image, shown.mask, shown.reference)
    return {
        "name": shown.name,
        "note": shown.note,
        "volume_ml": _number(scan.mask_ml, ".0f"),
        "reference_ml": _number(scan.reference_ml, ".0f"),
        "dice": _number(scan.dice, ".3f"),
        "has_reference": shown.reference is not None,
        "empty": not scan.mask.any(),
        "flags": list(recorded_flags(shown.mask).values()),
        "planes": {plane: _picture(plane_png(scan, plane)) for plane in PLANES},
        "surface": _picture(surface_png(scan)) if scan.mask.any() else None,
        "slices": [_picture(png) for png in axial_pngs(scan)],
    }


def _picture(png: bytes) -> dict[str, Any]:
    # The header of a PNG file has its size at this place.
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return {
        "src": f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "width": width,
        "height": height,
    }


def _comparison(evaluations: Mapping[str, str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Return a row per evaluation.

    Shares come with their difference to the first row in percentage points (pp).
    """
    rows: list[dict[str, Any]] = []
    baseline: list[float | None] = []
    for name, folder in evaluations.items():
        path = Path(folder) / "summary.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            metrics, pooled = summary["cases"][CLASS], summary["pooled"]
            shares = [
                metrics["dice"]["mean"],
                pooled["classes"][CLASS]["iou"],
                pooled["mean_bf_score"],
            ]
            texts = [
                _mean_and_sd(metrics["dice"], ".3f"),
                _number(shares[1], ".3f"),
                _number(shares[2], ".3f"),
            ]
            baseline = baseline or shares
            differences = [
                _difference_pp(*pair) if rows else "" for pair in zip(shares, baseline, strict=True)
            ]
            rows.append(
                {
                    "name": name,
                    "number_of_cases": summary["number_of_cases"],
                    "empty_predictions": metrics["empty_predictions"],
                    "failed": len(summary.get("failures", [])),
                    "shares": list(zip(texts, differences, strict=True)),
                    "hd95_mm": _mean_and_sd(metrics["hd95_mm"], ".1f"),
                    "assd_mm": _mean_and_sd(metrics["assd_mm"], ".2f"),
                    "volume_error_percent": _mean_and_sd(metrics["volume_error_percent"], "+.1f"),
                }
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(
                path, error, f"the summary of an evaluation with the class {CLASS}"
            ) from error
    return rows


def _cases(evaluations: Mapping[str, str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Return a row per case: its reference volume, and the Dice that each evaluation came to."""
    tables: list[dict[str, dict[str, float]]] = []
    for folder in evaluations.values():
        path = Path(folder) / "cases.csv"
        try:
            table = pd.read_csv(path)
            table = table[table["class"] == CLASS].set_index("case")[
                ["reference_volume_ml", "dice"]
            ]
            tables.append(table.to_dict("index"))
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(path, error, "the cases of an evaluation") from error
    known = Counter(Path(case).name for case in (tables[0] if tables else {}))
    return [
        {
            # Where all are called ct.nii.gz, the folder says which.
            "name": Path(case).name if known[Path(case).name] == 1 else case,
            "reference_ml": _number(values["reference_volume_ml"], ".0f"),
            "dice": [_number(table.get(case, {}).get("dice"), ".3f") for table in tables],
        }
        for case, values in (tables[0] if tables else {}).items()
    ]


def _unreadable(path: Path, error: Exception, expected: str) -> InputError:
    reason = (
        f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
    )
    return InputError(
        f"{path}: not readable ({reason}), expected {expected}: run the evaluation again."
    )


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of the training, as text.

    A fact without a value (no GPU, no validation) is left out.
    """
    return [
        (
            FACT_NAMES.get(name, name.replace("_", " ").capitalize()),
            ", ".join(f"{key} {inner}" for key, inner in value.items())
            if isinstance(value, Mapping)
            else f"{value:.4g}"
            if isinstance(value, float)
            else str(value),
        )
        for name, value in facts.items()
        if value is not None
    ]


def _number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None or math.isnan(value) else format(value, form).replace("-", "−")


def _mean_and_sd(metric: Mapping[str, float | None], form: str) -> str:
    mean, sd = _number(metric["mean"], form), metric["sd"]
    return mean if sd is None else f"{mean} ± {_number(sd, form.lstrip('+'))}"


def _difference_pp(share: float | None, baseline: float | None) -> str:
    if share is None or baseline is None:
        return ""
    return f"{_number(100 * (share - baseline), '+.1f')} pp"
