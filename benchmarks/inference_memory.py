r"""Peak memory and time of segmenting one large scan with a bundle, by the bundle's own command.

python benchmarks/inference_memory.py --shape 512 512 1000
python benchmarks/inference_memory.py --bundle bundles/unet3d_liver --shape 512 512 400 \
    --scan ct.nii.gz --trained
python benchmarks/inference_memory.py --bundle bundles/unet3d_abdomen --shape 512 512 600
python benchmarks/inference_memory.py --bundle bundles/unet3d_abdomen --shape 512 512 600 \
    --set spacing "[-1, -1, -1]" --set "networks#paper#width" 2 --set overlap 0.25
"""

from __future__ import annotations

import argparse
import ast
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from liverseg.io.nifti import write_nifti

ROOT = Path(__file__).resolve().parents[1]


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a noisy block as large as a body, stored as CT is: int16 with slope and intercept."""
    generator = np.random.default_rng(0)
    volume = np.full(shape, -1000, np.int16)
    inner = tuple(slice(n // 6, -n // 6) for n in shape[:2])
    for index in range(shape[2]):
        volume[(*inner, index)] = generator.integers(-50, 150, volume[(*inner, index)].shape)
    write_nifti(path, volume, np.diag([0.75, 0.75, 1.0, 1.0]))


def resample_scan(scan: Path, path: Path, shape: tuple[int, int, int]) -> None:
    """The same part of the body in so many voxels, each with the intensity of the nearest one."""
    image = nib.load(scan)
    volume = np.asarray(image.dataobj, np.int16)
    for axis, length in enumerate(shape):
        volume = volume.take(np.arange(length) * volume.shape[axis] // length, axis)
    write_nifti(path, volume, image.affine @ np.diag([*np.divide(image.shape, shape), 1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "deeplabv3_liver")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 1000))
    parser.add_argument(
        "--scan", type=Path, help="a NIfTI file to resample to the shape, in place of noise"
    )
    parser.add_argument(
        "--trained", action="store_true", help="the bundle's own weights, in place of random ones"
    )
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a setting"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan, weights = Path(folder) / "scan.nii.gz", Path(folder) / "model.pt"
        shape = tuple(arguments.shape)
        resample_scan(arguments.scan, scan, shape) if arguments.scan else write_scan(scan, shape)
        torch.manual_seed(0)
        config = ConfigParser()
        config.read_config(arguments.bundle / "configs" / "inference.json")
        config["bundle_root"] = str(arguments.bundle)
        for name, value in arguments.set:
            config[name] = ast.literal_eval(value)
        torch.save(config.get_parsed_content("network_def").state_dict(), weights)
        command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
        options = {
            "config_file": arguments.bundle / "configs" / "inference.json",
            "bundle_root": arguments.bundle,
            "dataset_dir": scan,
            "output_dir": folder,
        }
        if not arguments.trained:
            options["ckpt_path"] = weights
        options |= dict(arguments.set)
        started = time.monotonic()
        subprocess.run(
            [*command, *(str(x) for k, v in options.items() for x in (f"--{k}", v))], check=True
        )
        figures = {
            "shape": list(arguments.shape),
            "settings": dict(arguments.set),
            "seconds": round(time.monotonic() - started, 1),
            "peak_memory_gb": round(
                resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, 2
            ),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    size = "×".join(map(str, figures["shape"]))
    print(f"{size}: {figures['peak_memory_gb']} GB, {figures['seconds']} s")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
