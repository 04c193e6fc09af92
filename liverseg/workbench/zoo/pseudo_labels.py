"""Label scans with a trained bundle's masks, which people look at, correct or leave out."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from rich.console import Console

from liverseg.data import find_scans, split_by_patient
from liverseg.data.classes import check_label_names
from liverseg.data.datalist import relative
from liverseg.data.datalist_schema import read_datalist
from liverseg.errors import InputError
from liverseg.files import check_writable, write_json
from liverseg.io.dicom import series_at
from liverseg.io.dicom_slices import SERIES
from liverseg.io.masks import (
    SUMMARY,
    class_names,
    find_mask,
    recorded_flags,
    recorded_masks,
    recorded_scans,
    scan_names,
)
from liverseg.io.paths import absolute, is_hidden, volume_suffix
from liverseg.transforms.quality import STRANGE
from liverseg.workbench.datasets.convert import check_datalist
from liverseg.workbench.datasets.layout import check_own
from liverseg.workbench.phantoms import write_phantoms
from liverseg.workbench.phantoms.files import LITS_LABELS
from liverseg.workbench.run import run_bundle

CLASSES = [*LITS_LABELS.values()]

Item = dict[str, Any]


def make_data(
    console: Console,
    bundle: Path,
    teacher: Path,
    scans: Path,
    out: Path,
    leave_out: Collection[str] = (),
    num_phantoms: int = 12,
) -> Path:
    """Write `dataset.json` with given labels, the teacher's masks for other scans, and phantoms.

    A mask in `out/labels` that is there already is taken as it is, so that it can be corrected by
    hand. Labels that are given validate in fold 0: those of "validation", or by the folds of
    "training", or split by patient. Masks validate only where no label is given; phantoms never.

    Args:
        console: for what is going on.
        bundle: the bundle to train, of the liver, with or without lesions.
        teacher: the bundle that segments the scans.
        scans: a folder of scans, or with a `dataset.json`: what it lists under "test"
            without a label gets a mask; "training" and "validation" have their own labels,
            1 liver and 2 lesion.
        out: the folder to write.
        leave_out: names of scans that are not to be used, as `check.html` names them.
        num_phantoms: phantoms to add.

    Returns:
        The datalist.

    Raises:
        InputError: for bundles of other classes, an `out` that is another's, scans that are not
            there or too few, a name to leave out that no scan has, labels of other values, and
            masks that cannot be labels, once `check.html` shows them.
    """
    targets = _targets(bundle, teacher)
    name, path = f"{bundle.name} from {teacher.name}", out / "dataset.json"
    if out.resolve() == scans.resolve():
        raise InputError(
            f"--out: found {out}, the folder of the scans, expected another one: name it."
        )
    if not scans.exists():
        raise InputError(
            f"--scans: found {scans}, which is not there, expected a folder of scans: correct it."
        )
    check_own(path, name)
    given, bare = _read(scans)
    every = [*given["training"], *given["validation"], *bare]
    for item, scan_name in zip(every, scan_names([item["image"] for item in every]), strict=True):
        item["name"] = scan_name
    _name_patients(every)
    known = sorted(item["name"] for item in every)
    if unknown := sorted(set(leave_out) - set(known)):
        raise InputError(
            f"--leave-out: found {', '.join(map(repr, unknown))}, expected names out of "
            f"{', '.join(map(repr, known))}: correct it."
        )
    given = {section: _without(items, leave_out) for section, items in given.items()}
    bare = _without(bare, leave_out)
    _check_number(scans, given, bare)
    masks = check_writable(out) / "labels"
    _check_masks(masks)
    if missing := [
        {"image": item["image"]} for item in bare if find_mask(masks, item["image"]) is None
    ]:
        write_json(out / "unlabelled" / "dataset.json", {"test": missing})
        options = {"dataset_dir": out / "unlabelled", "output_dir": masks, **targets}
        run_bundle(console, teacher, "inference", ["inference"], options)
    pseudo = [{**item, "label": str(find_mask(masks, item["image"]))} for item in bare]
    strange = [item for item in pseudo if STRANGE & recorded_flags(item["label"]).keys()]
    for item in strange:
        console.print(
            f"Left out {item['name']}: {'; '.join(recorded_flags(item['label']).values())}",
            markup=False,
        )
    pseudo = [item for item in pseudo if item not in strange]
    _check_number(scans, given, pseudo)
    phantoms = [
        {**item, **{key: str(out / "phantoms" / item[key]) for key in ("image", "label")}}
        for item in write_phantoms(out / "phantoms", num_phantoms)
    ]
    items = [_entry(item, out) for item in _with_folds(given, pseudo, phantoms)]
    write_json(path, {"name": name, "labels": LITS_LABELS, "training": items})
    _check_labels(
        path, [item["name"] for item in (*given["training"], *given["validation"], *pseudo)]
    )
    console.print(f"Look at the labels: [bold]{out / 'check.html'}[/bold]")
    for item in pseudo:
        if flags := recorded_flags(item["label"]):
            console.print(f"Above all at {item['name']}: {'; '.join(flags.values())}", markup=False)
    return path


def _targets(bundle: Path, teacher: Path) -> dict[str, list[str]]:
    """Return the teacher's setting that chooses the classes to find, where it has one."""
    wanted, found = _classes(bundle), _classes(teacher)
    if wanted not in (CLASSES, CLASSES[:2]):
        raise InputError(
            f"{bundle}: found a bundle of {', '.join(wanted[1:])}, expected one of the liver, with "
            "or without lesions: choose another."
        )
    if not set(wanted) <= set(found):
        raise InputError(
            f"{teacher}: found a bundle of {', '.join(found[1:])}, expected one that finds "
            f"{', '.join(wanted[1:])} as {bundle.name} does: choose another with --from."
        )
    choosable = "segmented_targets" in ConfigParser.load_config_file(
        teacher / "configs" / "inference.json"
    )
    return {"segmented_targets": wanted[1:]} if choosable else {}


def _classes(bundle: Path) -> list[str]:
    file = bundle / "configs" / "metadata.json"
    if not file.is_file():
        raise InputError(
            f"{bundle}: there is no bundle, expected configs/metadata.json in it: name its folder."
        )
    return [*class_names(json.loads(file.read_text(encoding="utf-8"))).values()]


def _read(scans: Path) -> tuple[dict[str, list[Item]], list[Item]]:
    """Return the scans with a label by their section, and those without."""
    sections = ("training", "validation")
    file = scans / "dataset.json"
    if not file.is_file():
        return {section: [] for section in sections}, find_scans(scans)
    datalist = read_datalist(file)
    check_label_names(
        str(file), datalist.labels, {name: [int(value)] for value, name in LITS_LABELS.items()}
    )
    # A label under "test" is there to test with.
    bare = [item for item in datalist.sections.get("test", []) if "label" not in item]
    return {section: datalist.sections.get(section, []) for section in sections}, bare


def _name_patients(items: Sequence[Item]) -> None:
    """Name the patient of each scan where its datalist does not.

    It is whom its DICOM names, whose copy it is, or a patient's only.

    So a patient does not train and validate.
    """
    owner: dict[str, str] = {}
    for item in items:
        path = Path(item["image"])
        if volume_suffix(path):
            try:
                with path.open("rb") as file:
                    known_by, patient = hashlib.file_digest(file, "sha256").hexdigest(), ""
            except OSError as error:
                raise InputError(
                    f"{path}: cannot be read ({error.strerror}), expected a scan: "
                    "correct its path or leave it out."
                ) from error
        else:
            first = series_at(path).slices[0].series
            known_by, patient = " ".join(first), first[SERIES.index("PatientID")]
        item.setdefault("patient", owner.get(known_by) or patient or item["name"])
        owner.setdefault(known_by, item["patient"])


def _without(items: Sequence[Item], names: Collection[str]) -> list[Item]:
    return [item for item in items if item["name"] not in names]


def _check_number(scans: Path, given: Mapping[str, Sequence[Item]], bare: Sequence[Item]) -> None:
    validating = given["validation"] or given["training"] or bare
    others = [item for item in (*given["training"], *bare) if item not in validating]
    patients = len({item["patient"] for item in validating})
    if not validating or (patients < 2 and not others):
        raise InputError(
            f"{scans}: found {patients} patient with a scan to use, expected 2 or more, one "
            "of whom validates: add scans, or name the `patient` of each in a dataset.json "
            "where DICOM calls all the same."
        )


def _check_masks(masks: Path) -> None:
    """Refuse a file beside the masks under a name that nobody would read."""
    there = [path.name for path in masks.iterdir() if not is_hidden(path)] if masks.is_dir() else []
    recorded_scans(masks)
    known = recorded_masks(masks) | {SUMMARY}
    if others := sorted(set(there) - known):
        raise InputError(
            f"{masks / others[0]}: found a file that is no mask of a scan here, expected corrected "
            "masks under the names that are there, as "
            f"{min(recorded_masks(masks), default='scan_liver.nii.gz')}: rename or remove it."
        )


def _with_folds(
    given: Mapping[str, list[Item]], pseudo: list[Item], phantoms: list[Item]
) -> list[Item]:
    """Return all items, each with a fold; fold 0 validates."""
    training, validation = given["training"], given["validation"]
    if validation:
        return [
            {**item, "fold": int(item not in validation)}
            for item in (*training, *validation, *pseudo, *phantoms)
        ]
    split, others = (training, [*pseudo, *phantoms]) if training else (pseudo, phantoms)
    patients = len({item["patient"] for item in split})
    if not all("fold" in item for item in split):
        split = (
            [{**item, "fold": 0} for item in split]
            if patients < 2
            else split_by_patient(split, min(5, patients))
        )
    last = 1 + max(item["fold"] for item in split)
    return [*split, *({**item, "fold": last} for item in others)]


def _check_labels(path: Path, names: Sequence[str]) -> None:
    try:
        check_datalist(path)
    except InputError as error:
        cases = json.loads((path.parent / "check.json").read_text(encoding="utf-8"))["cases"]
        broken = [
            (name, "; ".join(case["reasons"]))
            for name, case in zip(names, cases, strict=False)
            if case["verdict"] == "broken"
        ]
        if not broken:
            raise
        listed = "; ".join(f"{name}: {reasons}" for name, reasons in broken)
        options = " ".join(f"--leave-out {shlex.quote(name)}" for name, _ in broken)
        raise InputError(
            f"{path.parent}: found {len(broken)} labels that cannot be used ({listed}), expected a "
            f"liver in each: correct them in labels/, or leave them out with {options}."
        ) from error


def _entry(item: Mapping[str, Any], folder: Path) -> Item:
    files = {key: relative(absolute(item[key]), folder) for key in ("image", "label")}
    return {**files, "patient": item["patient"], "fold": item["fold"]}
