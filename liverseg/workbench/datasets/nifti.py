"""Find the cases of data sets that are NIfTI: LiTS, Task03 of the Decathlon, and BTCV."""

from __future__ import annotations

import re
from pathlib import Path

from liverseg.data.classes import check_label_names
from liverseg.data.datalist_schema import read_datalist
from liverseg.errors import InputError
from liverseg.io.paths import nifti_suffix, stem_of
from liverseg.workbench.datasets.layout import (
    LIVER_AND_LESION,
    Case,
    Layout,
    first_folder,
    not_empty,
)

BTCV_LABELS = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)


def find_lits(root: Path) -> list[Case]:
    """List `volume-N.nii` with `segmentation-N.nii` in any folder below `root`.

    `test-volume-N` has no label.
    """
    volumes, segmentations = _numbered(root, "volume-"), _numbered(root, "segmentation-")
    cases = [
        # A segmentation that is not there is named with the case.
        Case(
            f"lits-{number}",
            f"lits-{number}",
            image,
            segmentations.get(number, image.with_name(f"segmentation-{number}.nii")),
        )
        for number, image in volumes.items()
    ]
    return not_empty(cases, root, "volume-0.nii, segmentation-0.nii, …")


def find_msd(root: Path) -> list[Case]:
    """List what `dataset.json` names under "training"; the test scans have no label."""
    folder = root if (root / "dataset.json").is_file() else root / "Task03_Liver"
    path = folder / "dataset.json"
    if not path.is_file():
        raise InputError(
            f"{root}: no dataset.json in it, expected Task03_Liver as it is unpacked: "
            "name the folder that holds it."
        )
    known = read_datalist(path)
    check_label_names(
        str(path), known.labels, {name: [int(value)] for value, name in LIVER_AND_LESION.items()}
    )
    cases = [
        Case(stem_of(item["image"]), item["patient"], Path(item["image"]), Path(item["label"]))
        for item in known.sections.get("training", ())
    ]
    return not_empty(cases, path, 'images and labels under "training"')


def find_btcv(root: Path) -> list[Case]:
    """List `img/imgN` with `label/labelN` of RawData/Training, or `imagesTr` with `labelsTr`.

    Testing has no label.
    """
    folder = first_folder(root, "RawData/Training", "Training", "Abdomen/RawData/Training", ".")
    images, labels = ("img", "label") if (folder / "img").is_dir() else ("imagesTr", "labelsTr")
    targets = _numbered(folder / labels, "label")
    cases = [
        Case(
            f"btcv-{number}",
            f"btcv-{number}",
            image,
            targets.get(number, folder / labels / f"label{number}.nii.gz"),
        )
        for number, image in _numbered(folder / images, "img").items()
    ]
    return not_empty(cases, folder, "img/img0001.nii.gz, label/label0001.nii.gz, …")


def _numbered(folder: Path, prefix: str) -> dict[str, Path]:
    """Return the NIfTI files `prefix`N below `folder`, by N."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"{prefix}*")):
        match = re.fullmatch(rf"{prefix}(\d+)", stem_of(path))
        # Some programs unpack volume-0.nii.gz into a folder volume-0.nii.
        if (
            match
            and nifti_suffix(path)
            and not path.is_dir()
            and found.setdefault(match[1], path) != path
        ):
            raise InputError(
                f"{path}: {found[match[1]]} is there as well, expected one "
                "of them: remove the other."
            )
    return found


LITS = Layout("lits", "ct", LIVER_AND_LESION, find_lits)
MSD = Layout("msd", "ct", LIVER_AND_LESION, find_msd)
BTCV = Layout("btcv", "ct", {str(value): name for value, name in enumerate(BTCV_LABELS)}, find_btcv)
