"""Real scans with drawn lesions, whose places are known, to evaluate bundles on as on any data set.

python benchmarks/draw_lesions.py ct/dataset.json --out drawn --seed 1

The datalist names scans under "test", each with its `label`, in which the liver is above 0.
`drawn/` gets the scans with lesions of 4 to 20 mm radius, 25 to 120 HU darker or brighter than the
liver around them, labels with 1 liver and 2 lesion, and a dataset.json. Drawn lesions are no real
ones, which are less round and less even.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.transforms import Compose, Orientationd

from liverseg.data import load_datalist
from liverseg.io.nifti import write_nifti
from liverseg.io.paths import stem_of
from liverseg.transforms import LoadVolumed, RandSyntheticLesionsd
from liverseg.workbench.phantoms.files import LITS_LABELS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datalist", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    items = []
    for number, item in enumerate(load_datalist(arguments.datalist, "test")):
        # A label may lie in its file along other axes than the scan.
        load = Compose(
            [LoadVolumed(["image", "label"]), Orientationd(["image", "label"], "RAS", labels=None)]
        )
        volumes = load({key: item[key] for key in ("image", "label")})
        affine = volumes["image"].affine.numpy()
        # Without its affine, the transform would take a MetaTensor's history along with every
        # lesion.
        data = {
            "image": volumes["image"].as_tensor(),
            "label": (volumes["label"].as_tensor() > 0).byte(),
        }
        draw = RandSyntheticLesionsd(
            *("image", "label", nib.affines.voxel_sizes(affine)),
            prob=1,
            radius_mm=(4, 20),
            contrast=(25, 120),
            lesion=2,
        )
        draw.set_random_state(arguments.seed * 1000 + number)
        drawn = draw(data)
        name = stem_of(item["image"])
        write_nifti(
            arguments.out / f"{name}.nii.gz",
            drawn["image"][0].numpy().round().astype(np.int16),
            affine,
        )
        write_nifti(arguments.out / f"{name}_label.nii.gz", drawn["label"][0].numpy(), affine)
        items.append({"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz", "patient": name})
    content = {"name": "drawn lesions", "labels": LITS_LABELS, "test": items}
    (arguments.out / "dataset.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
