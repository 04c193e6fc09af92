"""Whether retraining in MONAI Label helps, from a good and from a bad start, over several seeds.

python benchmarks/retraining.py --work build/retraining

Called again, it goes on with what is not in `retraining.json` yet.

The start is `deeplabv3_liver`, trained on synthetic CT of 3 mm as `make demo` does it. For each
seed there are other patients: labelled scans of the same kind, for which the start is good, or
synthetic MR scans, for which it is bad. The app retrains with its defaults on 2, 4 and 8 of them
and three that validate, and publishes or not. Dice is that of the liver in six test scans, the
mean over them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Bars of hundreds of small scans would hide the table.
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pandas as pd
from rich.console import Console

from liverseg.versions import Version, evaluate, find_version, version_in_use
from liverseg.workbench.demo import SETTINGS, train_on_phantoms
from liverseg.workbench.phantoms import write_phantoms
from liverseg.workbench.phantoms.files import LITS_LABELS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "monailabel_app"))

from monailabel.datastore.local import LocalDatastore  # noqa: E402

from lib.bundle import read_bundle  # noqa: E402
from lib.train.retrain import Retraining  # noqa: E402

BUNDLE = ROOT / "bundles" / "deeplabv3_liver"
STARTS = {"good": "ct", "bad": "mr"}
NAMES = [{"name": "liver", "idx": 1}, {"name": "lesion", "idx": 2}]
VALIDATION, HELD_OUT = 3, 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, nargs="+", default=(2, 4, 8), help="scans that train")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for scans, weights and the figures"
    )
    arguments = parser.parse_args()

    work = arguments.work.resolve()
    train_on_phantoms(Console(), work / "start", BUNDLE, first=1, steps=2)
    weights = work / "start" / BUNDLE.name / "models" / "model.pt"
    held_out = {
        start: write_scans(work / f"held_out_{start}", HELD_OUT, STARTS[start], 10**6)
        for start in STARTS
    }
    record = work / "retraining.json"
    rows: list[dict[str, Any]] = json.loads(record.read_text()) if record.is_file() else []
    done = {(row["start"], row["labels"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for labels in arguments.labels:
            for start in arguments.starts:
                if (start, labels, seed) in done:
                    continue
                scans = write_scans(
                    work / f"scans_{start}_{seed}",
                    VALIDATION + max(arguments.labels),
                    STARTS[start],
                    seed + 1,
                )
                folder = work / f"{start}_{seed}_{labels}"
                row = retrain(
                    folder,
                    weights,
                    STARTS[start],
                    scans[: VALIDATION + labels],
                    held_out[start],
                    seed,
                )
                rows.append({"start": start, "labels": labels, "seed": seed, **row})
                print(json.dumps(rows[-1]), flush=True)
                record.write_text(json.dumps(rows, indent=1) + "\n")
    report(pd.DataFrame(rows))


def write_scans(folder: Path, cases: int, modality: str, seed: int) -> list[dict[str, str]]:
    """Synthetic scans and their labels, as items with paths, written unless they are there."""
    file = folder / "items.json"
    if not file.is_file():
        grid: Mapping[str, Any] = {"shape": (128, 128, 48), "spacing": (3.0, 3.0, 5.0)}
        items = write_phantoms(
            folder, cases, seed=seed, modality=modality, labels=LITS_LABELS, **grid
        )
        paths = [{key: str(folder / item[key]) for key in ("image", "label")} for item in items]
        file.write_text(json.dumps(paths))
    return json.loads(file.read_text())


def retrain(
    folder: Path,
    weights: Path,
    modality: str,
    scans: Sequence[Mapping[str, str]],
    held_out: Sequence[Mapping[str, str]],
    seed: int,
) -> dict[str, Any]:
    """Retrain as the server does, with its defaults.

    Args:
        folder: made anew, for the studies and the bundle.
        weights: of the model in use.
        modality: of the scans.
        scans: those that validate, then those that train.
        held_out: scans for the Dice.
        seed: of the training.

    Returns:
        `before`, `after` (the training) and `in_use` (after the decision), each the Dice in the
        test scans, and the `reason` of the decision.
    """
    shutil.rmtree(folder, ignore_errors=True)
    bundle = folder / BUNDLE.name
    shutil.copytree(BUNDLE / "configs", bundle / "configs")
    own = {**SETTINGS, "modality": modality, "seed": seed}
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        # `max_epochs` and `val_interval` were those of the start.
        config.update(
            {
                key: own[key]
                for key in ("spacing", "spatial_size", "modality", "seed")
                if key in config
            }
        )
        file.write_text(json.dumps(config))
    (bundle / "models").mkdir()
    shutil.copy(weights, bundle / "models" / "model.pt")

    studies = folder / "studies"
    studies.mkdir()
    images = {f"scan{number:02}": item for number, item in enumerate(scans)}
    for name, item in images.items():
        shutil.copy(item["image"], studies / (name + "".join(Path(item["image"]).suffixes)))
    (studies / "validation.json").write_text(json.dumps({"images": list(images)[:VALIDATION]}))
    store = LocalDatastore(str(studies), extensions=["*.nii", "*.nii.gz"], auto_reload=False)
    for name, item in images.items():
        store.save_label(name, item["label"], "final", {"label_info": NAMES})

    stats = Retraining(read_bundle(bundle), studies / "validation.json")({}, store)
    version = find_version(bundle, stats["model_version"])
    test = folder / "held_out"
    test.mkdir()
    (test / "dataset.json").write_text(json.dumps({"validation": held_out}))
    settings = json.loads((version.folder / "settings.json").read_text())
    settings |= {
        "datalist": str(test / "dataset.json"),
        "classes": {"background": [0], "liver": [1, 2]},
    }
    (test / "settings.json").write_text(json.dumps(settings))
    dice = {}
    for name, model in {"before": find_version(bundle, stats["parent"]), "after": version}.items():
        found = evaluate(bundle, model.folder, Version(test, {}), test / name)
        dice[name] = found["liver"]
    published = version_in_use(bundle) == version.name
    return {**dice, "in_use": dice["after" if published else "before"], "reason": stats["reason"]}


def report(table: pd.DataFrame) -> None:
    """Print a row for each start and number of labels."""
    print(
        "| start | labels | seeds | Dice before | of the trained | in use then | published "
        "| worst change | best |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (start, labels), rows in table.groupby(["start", "labels"], sort=False):
        means = " | ".join(f"{rows[key].mean():.3f}" for key in ("before", "after", "in_use"))
        change = rows["in_use"] - rows["before"]
        published = np.count_nonzero(rows["reason"].str.startswith("published"))
        print(
            f"| {start} | {labels} | {len(rows)} | {means} | {published} of {len(rows)} "
            f"| {change.min():+.3f} | {change.max():+.3f} |"
        )


if __name__ == "__main__":
    main()
