"""Train a bundle on labels that another bundle made; write its weights and what made them."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from rich.console import Console

from liverseg.data.datalist_schema import read_datalist
from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable, write_json
from liverseg.networks.weights import read_state_dict
from liverseg.settings import nearest
from liverseg.versions import model_files
from liverseg.workbench.run import run_bundle

# Settings that `fine_tune.json` has and that are meant for the training before it.
OF_ITS_OWN = ("learning_rate", "max_epochs", "val_interval", "patience", "lr_scheduler")
TRAINED_ON = "trained_on.json"


def read_options(bundle: Path, arguments: Sequence[str]) -> dict[str, str]:
    """Read a bundle's settings from the arguments of a command, as `--max_epochs 200`.

    Raises:
        InputError: for arguments of another form, and settings that the bundle does not have.
    """
    if len(arguments) % 2 or not all(name.startswith("--") for name in arguments[::2]):
        raise InputError(
            f"{' '.join(arguments)}: expected settings of the training, as "
            "--max_epochs 200: correct it."
        )
    options = {name[2:]: value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}
    config = ConfigParser.load_config_file(bundle / "configs" / "train.json")
    for name in options:
        if name.partition("#")[0] not in {*config, "tracking"}:
            near = nearest(name, config)
            raise InputError(
                f"--{name}: found no such setting of {bundle.name}, expected one of its training"
                f"{f', perhaps --{near}' if near else ''}: correct it."
            )
    return options


def train(
    console: Console,
    bundle: Path,
    teacher: Path,
    datalist: Path,
    options: Mapping[str, Any],
    command: Sequence[str],
) -> Path:
    """Train a bundle on the data of `make_data`, or go on with it, and write its weights.

    Beside them is what made them.

    The training is followed by a fine-tuning: batch norms of a few scans as different as these and
    phantoms have statistics that swing from batch to batch and fit none of them, until they are
    frozen and the weights fit them. Where labels, teacher or folds are not those that a training
    was begun with, another is begun, and the one before stays under its time.

    Args:
        console: for what is going on.
        bundle: the bundle to train.
        teacher: the bundle whose masks are labels.
        datalist: what `make_data` returns.
        options: settings of the training by name.
        command: what is recorded as the command, without the paths of this machine.

    Returns:
        The folder `models` beside the datalist: the best weights in half precision, and with each
        file a `model.json` with figures, command, data and sha256.

    Raises:
        InputError: when the training fails.
    """
    out, config = datalist.parent, ConfigParser.load_config_file(bundle / "configs" / "train.json")
    trained_on = _describe(datalist, teacher)
    _begin(console, out / "training", trained_on)
    heavy = {"augmentation": "heavy"} if "augmentation" in config else {}
    settings = {"dataset_dir": out, "resume": True, **heavy, **options}
    first, second = out / "training" / "first", out / "training" / "fine_tuning"
    folders = {"output_dir": first, "ckpt_dir": first / "models"}
    run_bundle(console, bundle, "training", ["train"], {**settings, **folders})
    start = {"pretrain_dir": first / "models"} if "pretrain_dir" in config else {}
    start = start or {"load_pretrain": first / "models" / "model.pt"}
    # It has its own rate and length.
    others = {name: value for name, value in settings.items() if name not in OF_ITS_OWN}
    folders = {"output_dir": second, "ckpt_dir": second / "models"}
    run_bundle(console, bundle, "training", ["train", "fine_tune"], {**others, **folders, **start})
    facts = {
        "command": shlex.join(command),
        **{key: trained_on[key] for key in ("scans", "phantoms", "teacher")},
    }
    for file in model_files(second / "models"):
        if file.suffix == ".pt":
            _write_half(second / "models" / file, out / "models" / file, facts)
    return out / "models"


def _describe(datalist: Path, teacher: Path) -> dict[str, Any]:
    """Return what a training learns from, so that another one is known."""
    items = read_datalist(datalist).sections["training"]
    phantoms = [
        item for item in items if Path(item["image"]).parent == datalist.parent / "phantoms"
    ]
    return {
        "scans": len(items) - len(phantoms),
        "phantoms": len(phantoms),
        "teacher": {"name": teacher.name, "sha256": _sha256(teacher / "models" / "model.pt")},
        "labels": [[item["patient"], item["fold"], _sha256(Path(item["label"]))] for item in items],
    }


def _begin(console: Console, folder: Path, trained_on: Mapping[str, Any]) -> None:
    record = folder / TRAINED_ON
    if folder.exists() and (
        not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != trained_on
    ):
        earlier = folder.with_name(f"training_{datetime.now():%Y-%m-%dT%H-%M-%S}")
        folder.rename(earlier)
        console.print(
            f"The labels have changed: a new training begins, and {earlier} keeps the last one."
        )
    check_writable(folder)
    write_json(record, trained_on)


def _write_half(best: Path, path: Path, facts: Mapping[str, Any]) -> None:
    """Write weights in half precision, and beside them their training's record with more facts."""
    state = read_state_dict(best)
    buffer = io.BytesIO()
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        buffer,
    )
    weights = buffer.getvalue()
    check_writable(path.parent)
    with atomic_write(path) as file:
        file.write(weights)
    record = best.with_suffix(".json")
    # Weights of several networks together have no record.
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    write_json(
        path.with_suffix(".json"), {**known, "sha256": hashlib.sha256(weights).hexdigest(), **facts}
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
