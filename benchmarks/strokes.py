r"""Time from a stroke to the corrected mask, by each prior, on one large scan.

python benchmarks/strokes.py --shape 512 512 128
python benchmarks/strokes.py --shape 512 512 128 --set "stage_network#first_filters" 16

Synthetic CT with a mask of the liver that leaks, and a stroke in the leak, or strokes far from each
other. The bundle's weights are random, so its probabilities fill the scan and are as large to keep
as they get. CPU seconds are those of all threads together.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from liverseg.io.nifti import read_nifti, write_nifti
from liverseg.workbench.phantoms import make_phantom

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "monailabel_app"))

from lib.bundle import Bundle, read_bundle  # noqa: E402
from lib.infer.correct import Scribbles  # noqa: E402
from lib.infer.probabilities import ProbabilityStore  # noqa: E402
from lib.infer.segment import Segmentation  # noqa: E402

SPACING_MM = (0.75, 0.75, 2.5)
LIVER, BACKGROUND = 1, 2
# Where further strokes begin, along all axes alike.
SPREAD = {
    "three strokes across the liver": (0.2, 0.45, 0.7),
    "strokes in two corners": (0.0, 0.95),
    "strokes from corner to corner": (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.93),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "mixed_unet_lits")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 128))
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a setting"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, tuple[float, float]] = {}

    def measure(name: str, run: Callable[[], Any], repeats: int = 1) -> None:
        times = sorted(timed(run) for _ in range(repeats))
        figures[name] = times[repeats // 2]
        print(f"{name:45} {figures[name][0]:6.2f} CPU s {figures[name][1]:6.2f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        request = write_scan(Path(folder), tuple(arguments.shape))
        bundle = write_bundle(arguments.bundle, Path(folder), dict(arguments.set))
        store = ProbabilityStore(Path(folder) / "kept")
        segmentation = Segmentation(bundle, store)
        scribbles = Scribbles({bundle.name: segmentation})
        scan = {"image": request["image"], "postprocessing": "none"}
        measure("segmentation", lambda: Segmentation(bundle)(scan))
        measure("segmentation, probabilities kept", lambda: segmentation(scan))
        measure(
            f"stroke, {bundle.name}",
            lambda: scribbles({**request, "prior": bundle.name}),
            arguments.repeats,
        )
        measure("stroke, label", lambda: scribbles(request), arguments.repeats)
        measure("stroke, none", lambda: scribbles({**request, "prior": "none"}), arguments.repeats)
        for name, fractions in SPREAD.items():
            spread = write_strokes(request, Path(folder), fractions)
            measure(f"{name}, label", lambda request=spread: scribbles(request), arguments.repeats)
        kept_mb = sum(file.stat().st_size for file in store.folder.iterdir()) / 1e6
        shutil.rmtree(store.folder)
        measure(
            f"stroke, {bundle.name}, nothing kept",
            lambda: scribbles({**request, "prior": bundle.name}),
        )
    print(f"kept: {kept_mb:.1f} MB; {torch.get_num_threads()} threads")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"kept_mb": kept_mb, "cpu_s_and_s": figures}, indent=1) + "\n"
        )


def write_scan(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """A request with the scan and its labelmap."""
    phantom = make_phantom(0, shape, SPACING_MM, num_lesions=3)
    labels = (phantom.labels > 0).astype(np.uint8)
    x, y, z = np.argwhere(labels)[-1]
    labels[x : x + 20, y - 20 : y + 20, z - 4 : z + 4] = LIVER
    labels[x + 8 : x + 12, y - 10 : y + 10, z] = BACKGROUND
    for name, volume in (("image", phantom.image.astype(np.int16)), ("label", labels)):
        write_nifti(folder / f"{name}.nii.gz", volume, phantom.affine)
    info = [{"name": "liver", "id": LIVER}, {"name": "background_scribbles", "id": BACKGROUND}]
    paths = {name: str(folder / f"{name}.nii.gz") for name in ("image", "label")}
    return {**paths, "label_info": info, "selected_label_name": "liver"}


def write_strokes(
    request: Mapping[str, Any], folder: Path, fractions: Sequence[float]
) -> dict[str, Any]:
    """The request with strokes of 4×20×1 voxels instead of its own."""
    held = read_nifti(request["label"])
    labels = np.array(held.array)
    labels[labels == BACKGROUND] = LIVER
    for fraction in fractions:
        x, y, z = (int(fraction * length) for length in labels.shape)
        labels[x : x + 4, y : y + 20, z] = BACKGROUND
    path = str(folder / f"strokes_{len(fractions)}.nii.gz")
    write_nifti(path, labels, held.affine)
    return {**request, "label": path}


def write_bundle(source: Path, folder: Path, settings: Mapping[str, str]) -> Bundle:
    """The bundle with other settings and random weights."""
    copy = folder / source.name
    shutil.copytree(source / "configs", copy / "configs")
    file = copy / "configs" / "inference.json"
    config = ConfigParser(json.loads(file.read_text()))
    for name, value in settings.items():
        config[name] = ast.literal_eval(value)
    file.write_text(
        json.dumps({key: value for key, value in config.get().items() if key != "_meta_"})
    )
    config["bundle_root"] = str(copy)
    torch.manual_seed(0)
    (copy / "models").mkdir()
    torch.save(config.get_parsed_content("network").state_dict(), copy / "models" / "model.pt")
    return read_bundle(copy)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds and seconds."""
    cpu_s, seconds = time.process_time(), time.monotonic()
    path, _ = run()
    Path(path).unlink()
    return round(time.process_time() - cpu_s, 2), round(time.monotonic() - seconds, 2)


if __name__ == "__main__":
    main()
