"""Time of algorithms 1 and 2 on a large noisy mask: literal scipy against the shipped versions.

python benchmarks/postprocessing.py --shape 512 512 200 --repeats 3 --out postprocessing.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from liverseg.transforms import CleanSlices, ErodeKeepLargestDilate

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from helpers import literal_postprocessing as literal


def noisy_liver(shape: tuple[int, int, int]) -> np.ndarray:
    """A liver-sized ellipsoid with an uneven surface, and specks of error around it."""
    generator = np.random.default_rng(0)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    distance = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, (0.35, 0.28, 0.6), strict=True)))
    uneven = ndimage.zoom(generator.normal(size=[max(2, n // 16) for n in shape]), 16, order=1)
    uneven = np.pad(
        uneven, [(0, max(0, n - m)) for n, m in zip(shape, uneven.shape, strict=True)], mode="edge"
    )
    mask = distance + 0.15 * uneven[tuple(slice(n) for n in shape)] < 1
    return mask ^ (generator.random(shape) < 0.002)


def seconds(function: Callable[[Any], Any], argument: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function(argument)
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 200))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    mask = noisy_liver(tuple(arguments.shape))
    labels = torch.tensor(mask[None].astype(np.uint8))
    pairs = {
        "erode – keep largest – dilate": (literal.algorithm_1, ErodeKeepLargestDilate()),
        "clean slices": (literal.algorithm_2, CleanSlices()),
    }
    rows = []
    for name, (reference, shipped) in pairs.items():
        times: dict[str, list[float]] = {"literal": [], "shipped": []}
        for _ in range(arguments.repeats):
            spent, expected = seconds(reference, mask)
            times["literal"].append(spent)
            spent, found = seconds(shipped, labels)
            times["shipped"].append(spent)
            assert np.array_equal(found.numpy()[0].astype(bool), expected), name
        medians = {side: float(np.median(values)) for side, values in times.items()}
        rows.append(
            {"algorithm": name, **{f"{side}_s": round(value, 3) for side, value in medians.items()}}
        )
        rows[-1]["ratio"] = round(medians["literal"] / medians["shipped"], 1)
        print(
            f"{name:30} literal {medians['literal']:8.3f} s   "
            f"shipped {medians['shipped']:7.3f} s   {rows[-1]['ratio']:6.1f}×"
        )
    if arguments.out:
        machine = {"processor": platform.processor(), "threads": torch.get_num_threads()}
        arguments.out.write_text(
            json.dumps({"shape": arguments.shape, "machine": machine, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
