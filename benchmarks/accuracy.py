r"""What bundles with weights reach on scans with a label of the liver: docs/reference/accuracy.md.

python benchmarks/accuracy.py ct/dataset.json
python benchmarks/accuracy.py mr/dataset.json --bundles unet3d_liver --modality mr
python benchmarks/accuracy.py ct/dataset.json --picture docs/pictures/accuracy.png

The datalist names scans under "test", each with its `label`, in which the liver with its lesions is
above 0. Each scan is segmented by the bundle's own command in a process of its own; seconds and
memory are of all of it.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process, SimpleQueue
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from liverseg.data import load_datalist
from liverseg.io.masks import find_mask
from liverseg.io.paths import stem_of
from liverseg.metrics import case_metrics
from liverseg.outputs.overlays import Scan, load_scan, plane_png

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
CLASSES = ("background", "liver")


def segment(bundle: Path, scan: str, folder: Path, modality: str, queue: SimpleQueue) -> None:
    """Run the bundle's command, and put seconds and peak memory in GB into the queue."""
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
    command += [
        "--config_file",
        str(bundle / "configs" / "inference.json"),
        "--bundle_root",
        str(bundle),
    ]
    command += ["--dataset_dir", scan, "--output_dir", str(folder)]
    command += ["--modality", modality] if "modality" in config else []
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    queue.put((time.monotonic() - started, peak_kb * 1024 / 1e9))


def evaluate(bundle: Path, item: dict[str, Any], modality: str) -> tuple[dict[str, float], Scan]:
    """The figures of one scan, and the scan with mask and label."""
    with tempfile.TemporaryDirectory() as folder:
        queue: SimpleQueue = SimpleQueue()
        # The peak of a process's children is that of all it ever had.
        process = Process(
            target=segment, args=(bundle, item["image"], Path(folder), modality, queue)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{bundle.name}: failed on {item['image']}.")
        seconds, peak_gb = queue.get()
        mask = find_mask(Path(folder), item["image"])
        assert mask is not None
        scan = load_scan(item["image"], mask, item["label"])
    assert scan.reference is not None
    found = case_metrics(
        scan.mask.astype(np.uint8), scan.reference.astype(np.uint8), scan.spacing_mm, CLASSES
    )["liver"]
    return {**found, "seconds": seconds, "peak_gb": peak_gb}, scan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datalist", type=Path)
    parser.add_argument(
        "--bundles", nargs="+", default=["unet3d_liver", "deeplabv3_liver", "deepedit_liver"]
    )
    parser.add_argument("--modality", default="ct")
    parser.add_argument(
        "--picture", type=Path, help="a PNG to write: a row for each scan, a column for each bundle"
    )
    arguments = parser.parse_args()
    items = load_datalist(arguments.datalist, "test")
    print(
        "| scan | bundle | Dice | HD95, mm | ASSD, mm | volume, ml | label, ml | error "
        "| seconds | GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    pictures: dict[tuple[int, int], bytes] = {}
    for row, item in enumerate(items):
        for column, name in enumerate(arguments.bundles):
            f, scan = evaluate(BUNDLES / name, item, arguments.modality)
            print(
                f"| {stem_of(item['image'])} | `{name}` | {f['dice']:.3f} "
                f"| {f['hd95_mm']:.1f} | {f['assd_mm']:.1f} | {f['volume_ml']:.0f} "
                f"| {f['reference_volume_ml']:.0f} | {f['volume_error_percent']:+.1f} % "
                f"| {f['seconds']:.0f} | {f['peak_gb']:.1f} |".replace("-", "−"),
                flush=True,
            )
            pictures[row, column] = plane_png(scan, "coronal")
    if arguments.picture:
        write_picture(
            arguments.picture,
            pictures,
            [stem_of(item["image"]) for item in items],
            arguments.bundles,
        )


def write_picture(
    path: Path, pictures: dict[tuple[int, int], bytes], rows: list[str], columns: list[str]
) -> None:
    figure = Figure((4 * len(columns), 3.2 * len(rows)), dpi=80, facecolor="black", layout="tight")
    for (row, column), png in pictures.items():
        axes = figure.add_subplot(len(rows), len(columns), 1 + row * len(columns) + column)
        axes.imshow(matplotlib.image.imread(io.BytesIO(png)))
        axes.set_axis_off()
        axes.set_title(f"{rows[row]}: {columns[column]}", color="white", fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    main()
