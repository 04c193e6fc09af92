"""Train a bundle on scans without labels: another bundle's masks are the labels."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from rich.console import Console

from liverseg.data import find_scans, split_by_patient, write_phantoms
from liverseg.data.datalist import relative
from liverseg.data.datalist_schema import patient_of, read_datalist
from liverseg.data.phantom_io import LITS_LABELS
from liverseg.errors import InputError
from liverseg.files import check_writable, write_atomically
from liverseg.io.masks import class_names, find_mask
from liverseg.io.paths import absolute, stem_of
from liverseg.networks.weights import read_state_dict
from liverseg.versions import model_files
from liverseg.workbench.datasets.convert import check_datalist
from liverseg.workbench.run import run_bundle

CLASSES = [*LITS_LABELS.values()]
# Settings that `fine_tune.json` has and that are meant for the training before it.
OF_ITS_OWN = ("learning_rate", "max_epochs", "val_interval", "patience", "lr_scheduler")
# A fold that never validates, beyond the five of the scans.
PHANTOM_FOLD = 5


def make_data(
    console: Console,
    bundle: Path,
    teacher: Path,
    scans: Path,
    out: Path,
    leave_out: Collection[str] = (),
    num_phantoms: int = 12,
) -> Path:
    """Write `dataset.json` with the labels that are given, the teacher's for all other scans, and phantoms.

    A mask in `out/labels` that is there already is taken as it is, so that it can be corrected by hand.

    Args:
        console: for what is going on.
        bundle: the bundle to train, of the liver, with or without lesions.
        teacher: the bundle that segments the scans.
        scans: a folder of scans, or with a `dataset.json`: what it lists under "test" gets the teacher's labels;
            "training" and "validation" have labels of their own, 1 liver and 2 lesion.
        out: the folder to write.
        leave_out: names of scans, without the suffix, that are not to be used.
        num_phantoms: phantoms to add, which train and never validate.

    Returns:
        The datalist. Without a "validation" of their own the scans are split into folds by patient.

    Raises:
        InputError: for a bundle of other classes, scans that are not there, a name to leave out that no scan has, or
            masks that cannot be labels, once `check.html` shows them.
    """
    targets = _targets(bundle, teacher)
    given = read_datalist(scans / "dataset.json").sections if (scans / "dataset.json").is_file() else {}
    labelled = {name: given.get(name, []) for name in ("training", "validation")}
    bare = given.get("test", []) if given else find_scans(scans)
    every = [item for items in (*labelled.values(), bare) for item in items]
    names = {stem_of(item["image"]) for item in every}
    if unknown := sorted(set(leave_out) - names):
        raise InputError(
            f"--leave-out: found {', '.join(unknown)}, expected names out of {', '.join(sorted(names))}: correct it."
        )
    labelled = {
        section: [item for item in items if stem_of(item["image"]) not in leave_out]
        for section, items in labelled.items()
    }
    bare = [item for item in bare if stem_of(item["image"]) not in leave_out]
    masks = check_writable(out) / "labels"
    if any(find_mask(masks, item["image"]) is None for item in bare):
        todo = {"test": [{"image": item["image"]} for item in bare if find_mask(masks, item["image"]) is None]}
        _write_json(out / "unlabelled" / "dataset.json", todo)
        options = {"dataset_dir": out / "unlabelled", "output_dir": masks, **targets}
        run_bundle(console, teacher, "inference", ["inference"], options)
    pseudo = [{**item, "label": str(find_mask(masks, item["image"]))} for item in bare]
    training, validation = [*labelled["training"], *pseudo], labelled["validation"]
    if not validation:
        folds = len({patient_of(item) for item in training})
        training = split_by_patient(training, min(PHANTOM_FOLD, folds))
    phantoms: list[dict[str, Any]] = [
        {**item, **{key: str(out / "phantoms" / item[key]) for key in ("image", "label")}}
        for item in write_phantoms(out / "phantoms", num_phantoms)
    ]
    if not validation:
        phantoms = [{**item, "fold": PHANTOM_FOLD} for item in phantoms]
    content = {
        "name": f"{bundle.name} from {teacher.name}",
        "labels": LITS_LABELS,
        "training": [_entry(item, out) for item in [*training, *phantoms]],
        **({"validation": [_entry(item, out) for item in validation]} if validation else {}),
    }
    path = out / "dataset.json"
    _write_json(path, content)
    page = check_datalist(path)
    console.print(f"Look at the labels: [bold]{page}[/bold]")
    return path


def train(console: Console, bundle: Path, teacher: Path, datalist: Path, options: Mapping[str, Any]) -> Path:
    """Train a bundle on what `make_data` has written, or go on with it, and write its weights with what made them.

    The training is followed by a fine-tuning: batch norms of a few scans as different as these and phantoms have
    statistics that swing from batch to batch and fit none of them, until they are frozen and the weights fit them.

    Args:
        console: for what is going on.
        bundle: the bundle to train.
        teacher: the bundle whose masks are labels.
        datalist: what `make_data` returns.
        options: settings of the training by name.

    Returns:
        The folder `models` beside the datalist: the best weights in half precision, and with each file a `model.json`
        with figures, command, data and sha256.

    Raises:
        InputError: when the training fails.
    """
    out, config = datalist.parent, ConfigParser.load_config_file(bundle / "configs" / "train.json")
    heavy = {"augmentation": "heavy"} if "augmentation" in config else {}
    settings = {"dataset_dir": out, "resume": True, **heavy, **options}
    first, best = out / "training", out / "fine_tuning" / "models"
    folders = {"output_dir": first, "ckpt_dir": first / "models"}
    run_bundle(console, bundle, "training", ["train"], {**settings, **folders})
    start = {"pretrain_dir": first / "models"} if "pretrain_dir" in config else {}
    start = start or {"load_pretrain": first / "models" / "model.pt"}
    # It has a rate and a length of its own.
    kept = {name: value for name, value in settings.items() if name not in OF_ITS_OWN}
    folders = {"output_dir": best.parent, "ckpt_dir": best}
    run_bundle(console, bundle, "training", ["train", "fine_tune"], {**kept, **folders, **start})
    content = json.loads(datalist.read_text(encoding="utf-8"))
    phantoms = sum("phantoms" in Path(item["image"]).parts for item in content["training"])
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = ["liverseg", "zoo", "distill", bundle.name, "--from", teacher.name, "--scans", "DIR", *given]
    facts = {
        "command": shlex.join(command),
        "teacher_sha256": hashlib.sha256((teacher / "models" / "model.pt").read_bytes()).hexdigest(),
        "scans": len(content["training"]) - phantoms,
        "phantoms": phantoms,
    }
    models = out / "models"
    for file in model_files(best):
        if file.suffix == ".pt":
            _write_half(best / file, models / file, facts)
    return models


def _write_half(best: Path, path: Path, facts: Mapping[str, Any]) -> None:
    """Write weights in half precision, and beside them what their training recorded with more facts."""
    state = read_state_dict(best)
    buffer = io.BytesIO()
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, buffer)
    weights = buffer.getvalue()
    check_writable(path.parent)
    write_atomically(path, lambda file: file.write(weights))
    record = best.with_suffix(".json")
    # Weights that are several networks' together have none of their own.
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    _write_json(path.with_suffix(".json"), {**known, "sha256": hashlib.sha256(weights).hexdigest(), **facts})


def _targets(bundle: Path, teacher: Path) -> dict[str, list[str]]:
    """The setting of the teacher by which it finds the classes of the bundle, where it has one.

    Raises:
        InputError: for bundles of other classes, and a teacher without lesions for a bundle with some.
    """
    wanted, found = _classes(bundle), _classes(teacher)
    if wanted not in (CLASSES, CLASSES[:2]):
        raise InputError(
            f"{bundle}: found a bundle of {', '.join(wanted[1:])}, expected one of the liver, with or without lesions: "
            "choose another."
        )
    if not set(wanted) <= set(found):
        raise InputError(
            f"{teacher}: found a bundle of {', '.join(found[1:])}, expected one that finds {', '.join(wanted[1:])} as "
            f"{bundle.name} does: choose another with --from."
        )
    choosable = "segmented_targets" in ConfigParser.load_config_file(teacher / "configs" / "inference.json")
    return {"segmented_targets": wanted[1:]} if choosable else {}


def _classes(bundle: Path) -> list[str]:
    file = bundle / "configs" / "metadata.json"
    if not file.is_file():
        raise InputError(f"{bundle}: there is no bundle, expected configs/metadata.json in it: name its folder.")
    return [*class_names(json.loads(file.read_text(encoding="utf-8"))).values()]


def _entry(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    files = {key: relative(absolute(item[key]), folder) for key in ("image", "label")}
    return {**files, "patient": patient_of(item), **({"fold": item["fold"]} if "fold" in item else {})}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    check_writable(path.parent)
    text = json.dumps(content, indent=1)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))
