"""Read a study's YAML file and say what is wrong in it, before anything runs."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from liverseg.errors import InputError
from liverseg.settings import check_name, read_setting

SHIPPED = Path(str(files(__package__) / "studies"))
PAPERS = Path(str(files(__package__) / "papers.yaml"))

STUDY_KEYS = {
    "data",
    "networks",
    "losses",
    "evaluations",
    "settings",
    "folds",
    "seeds",
    "keep_models",
    "tables",
}
DATA_KEYS = {"dataset_dir", "datalist", "phantoms", "labels", "settings"}
NETWORK_KEYS = {"bundle", "settings", "run"}
TABLE_KEYS = {"title", "where", "columns", "rows", "reference", "paper", "folds"}


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and the two configs that a study runs."""

    folder: Path
    train: dict[str, Any]
    evaluate: dict[str, Any]


@dataclass
class Study:
    """A study as its file has it, checked.

    Attributes:
        path: the file.
        data, networks, losses: sections of the file, by name.
        evaluations: settings of an evaluation alone, by name.
        settings: overrides of every training and evaluation.
        folds, seeds: each training is repeated for all of them.
        keep_models: keep each `model.pt` once it is evaluated.
        tables: by name, in full.
        bundles: by name.
    """

    path: Path
    data: dict[str, dict[str, Any]]
    networks: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, Any]]
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    folds: list[int] = field(default_factory=lambda: [0])
    seeds: list[int] = field(default_factory=lambda: [0])
    keep_models: bool = True
    bundles: dict[str, Bundle] = field(default_factory=dict)


def find_study(name: Path) -> Path:
    """The file `name`, or the study of this name that liverseg ships.

    Raises:
        InputError: when there is neither.
    """
    if name.is_file():
        return name
    if str(name.parent) in (".", "studies") and (SHIPPED / name.name).is_file():
        return SHIPPED / name.name
    shipped = ", ".join(sorted(path.name for path in SHIPPED.glob("*.yaml")))
    raise InputError(
        f"{name}: there is no such study: name a YAML file of yours, or one of {shipped}."
    )


def read_study(path: Path, bundles: Path) -> Study:
    """Read a study and check all that can be checked without running it.

    Args:
        path: the YAML file.
        bundles: the folder with the bundles.

    Raises:
        InputError: for the first thing that is wrong, with its key.
    """
    content = _load(path)
    _check_keys(path, "", content, STUDY_KEYS, required=("data", "networks", "tables"))
    for key in ("data", "networks", "losses", "evaluations", "settings"):
        content[key] = _mapping(path, key, content.get(key))
    for section, known in (("data", DATA_KEYS), ("networks", NETWORK_KEYS)):
        for name, entry in content[section].items():
            _check_keys(
                path,
                f"{section}: {name}",
                entry,
                known,
                required=("bundle",) * (section == "networks"),
            )
            entry["settings"] = _mapping(
                path, f"{section}: {name}: settings", entry.get("settings")
            )
    for section in ("losses", "evaluations"):
        for name, entry in content[section].items():
            if not isinstance(entry, dict) or not entry:
                raise InputError(
                    f'{path}: {section}: {name}: found {entry!r}, expected settings, as in {{loss: "@losses#iou_xy", '
                    "iou_xy_alpha: 0.6}: write it so."
                )
    for key in ("folds", "seeds"):
        _check_numbers(path, key, content.get(key, [0]))
    if not isinstance(content.get("keep_models", True), bool):
        raise InputError(
            f"{path}: keep_models: found {content['keep_models']!r}, expected true or false: write one."
        )
    study = Study(path=path, **{**content, "tables": _tables(path, content["tables"])})
    for name, entry in study.data.items():
        _check_data(path, name, entry)
    for name, entry in study.networks.items():
        study.bundles[entry["bundle"]] = bundle = _read_bundle(
            path, name, bundles / str(entry["bundle"])
        )
        run_ids = entry.get("run", ["training"])
        for run_id in run_ids if isinstance(run_ids, list) else [run_ids]:
            if (
                not isinstance(run_id, str)
                or run_id not in bundle.train
                or not isinstance(run_ids, list)
            ):
                raise InputError(
                    f"{path}: networks: {name}: run: found {run_ids!r}, expected ids of "
                    f"{bundle.folder}/configs/train.json, as in [training, iterate]: correct it."
                )
    _check_settings(study)
    return study


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: not readable as YAML ({reason}): fix it.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: found {type(content).__name__}, expected keys like data, networks, tables: add them."
        )
    return content


def _check_keys(
    path: Path, where: str, entry: Any, known: set[str], required: tuple[str, ...] = ()
) -> None:
    place = f"{path}: {where}".rstrip(": ")
    if not isinstance(entry, dict):
        raise InputError(
            f"{place}: found {entry!r}, expected keys out of {', '.join(sorted(known))}: add them."
        )
    unknown = [str(key) for key in entry if key not in known]
    if unknown:
        raise InputError(
            f"{place}: found the key {unknown[0]}, expected only {', '.join(sorted(known))}: correct it."
        )
    for key in required:
        if not entry.get(key):
            raise InputError(f"{place}: found no {key}, expected it: add it.")


def _mapping(path: Path, where: str, entry: Any) -> dict[str, Any]:
    """`entry`, or nothing for a key without a value, as YAML has `settings:` alone."""
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise InputError(
            f"{path}: {where}: found {entry!r}, expected names with values, as in {{name: …}}: write it so."
        )
    return entry


def _check_numbers(path: Path, key: str, values: Any) -> None:
    if (
        not isinstance(values, list)
        or not values
        or not all(type(value) is int for value in values)
    ):
        raise InputError(
            f"{path}: {key}: found {values!r}, expected whole numbers, as in [0, 1]: write them so."
        )


def _check_data(path: Path, name: str, entry: dict[str, Any]) -> None:
    from liverseg.workbench.datasets.cli import phantoms

    place = f"{path}: data: {name}"
    if len({"dataset_dir", "datalist", "phantoms"} & entry.keys()) != 1:
        raise InputError(
            f"{place}: expected one of dataset_dir, datalist and phantoms: give exactly one."
        )
    labels = entry.get("labels")
    if (
        not isinstance(labels, dict)
        or not labels
        or not all(isinstance(values, list) for values in labels.values())
    ):
        raise InputError(
            f"{place}: labels: found {labels!r}, expected the label values of each class, as in {{liver: [1, 2]}}: "
            "write them so."
        )
    if "phantoms" in entry:
        known = set(inspect.signature(phantoms).parameters) - {"out"}
        _check_keys(path, f"data: {name}: phantoms", entry["phantoms"], known)


def _read_bundle(path: Path, network: str, folder: Path) -> Bundle:
    configs = [folder / "configs" / f"{name}.json" for name in ("train", "evaluate")]
    for config in configs:
        if not config.is_file():
            found = sorted(
                other.parents[1].name for other in folder.parent.glob("*/configs/train.json")
            )
            raise InputError(
                f"{path}: networks: {network}: there is no bundle {folder}: "
                + (
                    f"name one of {', '.join(found)}."
                    if found
                    else "run from the project's root, or give --bundles."
                )
            )
    return Bundle(
        folder.resolve(), *(json.loads(config.read_text(encoding="utf-8")) for config in configs)
    )


def _check_settings(study: Study) -> None:
    """Every setting is a name of the configs of every bundle that gets it, every own loss an entry of theirs."""
    for network, entry in study.networks.items():
        bundle = study.bundles[entry["bundle"]]
        sections = {
            f"networks: {network}: settings": entry.get("settings"),
            "settings": study.settings,
        }
        sections |= {
            f"data: {name}: settings": data.get("settings") for name, data in study.data.items()
        }
        sections |= {f"losses: {name}": loss for name, loss in study.losses.items()}
        sections |= {
            f"evaluations: {name}": evaluation for name, evaluation in study.evaluations.items()
        }
        for place, settings in sections.items():
            for key, value in (settings or {}).items():
                check_setting(f"{study.path}: {place}", bundle, key, value)


def check_setting(place: str, bundle: Bundle, key: str, value: Any) -> None:
    """Check that the bundle's configs have the setting `key`, and that it can have `value`.

    Raises:
        InputError: when it is not so, beginning with `place`.
    """
    config = ConfigParser(copy.deepcopy(bundle.train), globals=False)
    config.update(copy.deepcopy(bundle.evaluate))
    try:
        check_name(key, config, config)
        if "#" not in key:
            read_setting(key, value, {**bundle.evaluate, **bundle.train}, config)
    except InputError as error:
        raise InputError(f"{place}: {bundle.folder.name}: {error}") from error


def _tables(path: Path, tables: Any) -> dict[str, dict[str, Any]]:
    """Each table in full: a name of a paper's table stands for its layout, with the study's own keys over it."""
    if isinstance(tables, list):
        tables = dict.fromkeys(tables)
    if not isinstance(tables, dict) or not tables:
        raise InputError(
            f"{path}: tables: found {tables!r}, expected names like A8, or tables of your own: add one."
        )
    papers = yaml.safe_load(PAPERS.read_text(encoding="utf-8"))
    full = {}
    for name, own in tables.items():
        place = f"tables: {name}"
        if own is None and name not in papers:
            raise InputError(
                f"{path}: {place}: there is no such table in the papers: choose one of {', '.join(papers)}, or give "
                "it columns and rows."
            )
        _check_keys(path, place, own or {}, TABLE_KEYS)
        table = {**papers.get(name, {}), **(own or {})}
        where = _mapping(path, f"{place}: where", (own or {}).get("where"))
        table["where"] = {**papers.get(name, {}).get("where", {}), **where}
        _check_keys(path, place, table, TABLE_KEYS, required=("rows", "columns"))
        _check_numbers(path, f"{place}: folds", table.get("folds", [0]))
        full[str(name)] = table
    return full
