"""How far a training is, as MONAI Label's clients read it."""

from __future__ import annotations

import csv
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from liverseg.versions import RUNNING, list_versions

METRIC = "val_mean_dice"


def progress(bundle: Path) -> dict[str, Any]:
    """How far the newest training of a bundle is; nothing before the first.

    Args:
        bundle: the bundle's folder.
    """
    version = next((one for one in list_versions(bundle) if "epochs" in one.record), None)
    if version is None:
        return {}
    record, state = version.record, version.state
    histories = sorted(
        (version.folder / "training").rglob("history.csv"), key=lambda file: file.stat().st_mtime
    )
    rows = [list(csv.DictReader(file.read_text().splitlines())) for file in histories]
    # A stage with `metrics.json` is at its end, if patience ended it before the last epoch too.
    ended = [file.with_name("metrics.json").is_file() for file in histories]
    last = [int(some[-1]["epoch"]) if some else 0 for some in rows]
    epoch = sum(
        record["epochs"] if end else reached for end, reached in zip(ended, last, strict=True)
    )
    total = record["epochs"] * record["stages"]
    validated = [float(row[METRIC]) for row in (rows[-1] if rows else []) if row[METRIC]]
    running = state in RUNNING
    # One that was stopped could not write down when.
    stopped = max((file.stat().st_mtime for file in histories), default=record["start_ts"])
    seconds = int(record.get("end_ts", time.time() if running else stopped) - record["start_ts"])
    duration = str(timedelta(seconds=seconds))
    # 3D Slicer's bar takes `total_time` for the end.
    times = {"current_time": duration} if running else {"total_time": duration}
    if running and epoch:
        times["time_left"] = str(timedelta(seconds=int(seconds * (total - epoch) / epoch)))
    return {
        "epoch": epoch,
        "total_epochs": total,
        "start_ts": record["start_ts"],
        **times,
        "best_metric": max(validated, default=0),
        "train": {"metrics": {"loss": float(rows[-1][-1]["loss"])} if rows and rows[-1] else {}},
        "eval": {
            "metrics": {METRIC: validated[-1]} if validated else {},
            "key_metric_name": METRIC,
        },
        "model_version": version.name,
        "state": state,
        **{
            key: record.get(key)
            for key in (
                "reason",
                "parent",
                "mean_dice",
                "mean_dice_in_use",
                "training",
                "validation",
                "left_out",
            )
        },
    }
