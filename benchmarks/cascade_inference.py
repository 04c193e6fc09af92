"""Time of segmenting one CT with cascade_lits, against the forward passes of its networks.

python benchmarks/cascade_inference.py --shape 512 512 128

Both sides run one after the other in the same process: the bundle's own preprocessing and inferer,
and then nothing but the forward passes of its networks, on random slices of the same sizes, as many
and as large at a time. The weights are random, which changes no time; where they look is given by
the phantom's own labels, in place of what they would find.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from liverseg.inferers import bf16_autocast
from liverseg.io.nifti import write_nifti
from liverseg.workbench.phantoms import make_phantom

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "cascade_lits"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 128))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.75, 0.75, 2.5), help="mm")
    parser.add_argument(
        "--work", type=Path, default=Path("."), help="folder for the scan while it runs"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    phantom = make_phantom(0, arguments.shape, arguments.spacing, num_lesions=3)
    scan = arguments.work / "cascade_benchmark.nii.gz"
    write_nifti(scan, phantom.image.astype(np.int16), phantom.affine)
    try:
        seconds, sizes, network = segment(scan, phantom.labels)
    finally:
        scan.unlink()
    forward = {name: forward_seconds(network[name], counts) for name, counts in sizes.items()}
    tuning = sum(value for name, value in forward.items() if not name.endswith("localise"))
    total = sum(seconds.values())
    for name, value in seconds.items():
        print(f"{name:22} {value:7.1f} s")
    for name, value in forward.items():
        shapes = ", ".join(
            f"{count} x {'x'.join(map(str, shape))}" for shape, count in sizes[name].items()
        )
        print(f"forward {name:14} {value:7.1f} s   batches: {shapes}")
    print(
        f"{total:.1f} s in all; {total / tuning:.2f} x the tuning networks' forward passes, "
        f"{tuning:.1f} s"
    )
    print(
        f"{total / sum(forward.values()):.2f} x the forward passes of all networks, "
        f"{sum(forward.values()):.1f} s"
    )
    if arguments.out:
        figures = {"shape": list(arguments.shape), "seconds": seconds, "forward_seconds": forward}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def segment(scan: Path, labels: np.ndarray) -> tuple[dict[str, float], dict[str, Counter], Any]:
    """Seconds of each step, and of each network how many batches of which shape it got."""
    config = ConfigParser()
    config.read_config(BUNDLE / "configs" / "inference.json")
    config["bundle_root"] = str(BUNDLE)
    torch.manual_seed(0)
    network = config.get_parsed_content("network").eval()
    sizes: dict[str, Counter] = {name: Counter() for name in network}
    hooks = [
        part.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes[name].update([tuple(inputs[0].shape)])
        )
        for name, part in network.items()
    ]
    # The second look, at a mirror image, is no part of the cascade.
    slices = config["slice_inferers"]
    config["slice_inferers"] = {name: {**part, "progress": False} for name, part in slices.items()}
    inferer = config.get_parsed_content("inferer#inferer")
    seconds = {}

    def found(target: int, item: dict[str, Any], key: str) -> MetaTensor:
        """The phantom's own labels on the grid of the item."""
        region = tuple(
            slice(a, a + n)
            for a, n in zip(offset(item[key].affine), item[key].shape[1:], strict=True)
        )
        mask = torch.from_numpy((labels[region] >= target).astype(np.uint8))[None]
        return MetaTensor(mask).copy_meta_from(item[key])

    affine = torch.from_numpy(nib.load(scan).affine)

    def offset(corner: torch.Tensor) -> list[int]:
        return torch.linalg.solve(affine, corner.double())[:3, 3].round().int().tolist()

    for number, make in enumerate(inferer.localise.values(), start=1):
        postprocessing = make.keywords["postprocessing"]
        make.keywords["postprocessing"] = (
            lambda item, target=number, postprocessing=postprocessing: postprocessing(
                {**item, "localised": found(target, item, "image")}
            )
        )
    inferer.liver_postprocessing = lambda mask: found(1, {"mask": mask}, "mask")

    started = time.perf_counter()
    image = config.get_parsed_content("preprocessing")({"image": str(scan)})["image"]
    seconds["load and preprocess"] = time.perf_counter() - started
    started = time.perf_counter()
    inferer(image[None], network)
    seconds["localise and tune"] = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    return seconds, sizes, network


def forward_seconds(network: torch.nn.Module, sizes: Counter) -> float:
    """Of the forward passes alone."""
    total = 0.0
    for shape, count in sizes.items():
        x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), bf16_autocast("cpu"):
            network(x)
            started = time.perf_counter()
            for _ in range(count):
                network(x)
            total += time.perf_counter() - started
    return total


if __name__ == "__main__":
    main()
