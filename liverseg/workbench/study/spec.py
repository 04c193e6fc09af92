"""Read a study and check it against bundles, data and tables, before anything runs."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from monai.bundle import ConfigParser
from pydantic import create_model

from liverseg.errors import InputError
from liverseg.settings import check_name, nearest, read_setting
from liverseg.workbench.study.schema import (
    SHIPPED,
    STRICT,
    Data,
    Network,
    Spec,
    Table,
    read_spec,
    validate,
)

PAPERS = Path(str(files(__package__) / "papers.yaml"))


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and the two configs that a study runs."""

    folder: Path
    train: dict[str, Any]
    evaluate: dict[str, Any]

    @cached_property
    def config(self) -> ConfigParser:
        """Both configs, with their references unresolved."""
        config = ConfigParser(copy.deepcopy(self.train), globals=False)
        config.update(copy.deepcopy(self.evaluate))
        return config


class Study(Spec):
    """A study as its file has it, checked: its tables in full, and its bundles by name."""

    path: Path
    tables: dict[str, Table]  # type: ignore[assignment]
    bundles: dict[str, Bundle]


def find_study(name: Path) -> Path:
    """Return the file `name`, or the study of this name that liverseg ships.

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
    spec = read_spec(path)
    for name, data in spec.data.items():
        _check_data(f"{path}: data: {name}", data)
    content = dict(spec)
    content["tables"] = {
        name: _full(f"{path}: tables: {name}", name, table) for name, table in spec.tables.items()
    }
    content["bundles"] = {
        network.bundle: _read_bundle(f"{path}: networks: {name}", network, bundles)
        for name, network in spec.networks.items()
    }
    study = Study.model_construct(path=path, **content)
    sections = {"settings": study.settings}
    sections |= {f"data: {name}: settings": data.settings for name, data in study.data.items()}
    sections |= {f"losses: {name}": settings for name, settings in study.losses.items()}
    sections |= {f"evaluations: {name}": settings for name, settings in study.evaluations.items()}
    for name, network in study.networks.items():
        own = {f"networks: {name}: settings": network.settings}
        # Every bundle may get the settings of every other section.
        for place, settings in (own | sections).items():
            for key, value in settings.items():
                check_setting(f"{path}: {place}", study.bundles[network.bundle], key, value)
    return study


def check_setting(place: str, bundle: Bundle, key: str, value: Any) -> None:
    """Check that the bundle's configs have the setting `key`, and that it can have `value`.

    Raises:
        InputError: when it is not so, beginning with `place`.
    """
    try:
        check_name(key, bundle.config, bundle.config)
        if "#" not in key:
            read_setting(key, value, {**bundle.evaluate, **bundle.train}, bundle.config)
    except InputError as error:
        raise InputError(f"{place}: {bundle.folder.name}: {error}") from error


def _check_data(place: str, data: Data) -> None:
    from liverseg.workbench.datasets.cli import phantoms

    if sum(one is not None for one in (data.dataset_dir, data.datalist, data.phantoms)) != 1:
        raise InputError(
            f"{place}: expected one of dataset_dir, datalist and phantoms: give exactly one."
        )
    hints = get_type_hints(phantoms)
    options: Any = {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(phantoms).parameters.items()
        if name != "out"
    }
    # JSON, for it has lists where Python has tuples.
    model = create_model("Phantoms", __config__=STRICT, **options)
    validate(model, f"{place}: phantoms", json.dumps(data.phantoms or {}))


def _full(place: str, name: str, own: Table | None) -> Table:
    """Return a table in full: the layout of a paper's, with the study's own keys over it."""
    papers = yaml.safe_load(PAPERS.read_text(encoding="utf-8"))
    if own is None and name not in papers:
        near = nearest(name, papers)
        raise InputError(
            f"{place}: there is no such table in the papers: choose one of {', '.join(papers)}"
            f"{f', perhaps {near}' if near else ''}, or give it columns and rows."
        )
    paper = papers.get(name, {})
    given = own.model_dump(exclude_unset=True) if own else {}
    where = paper.get("where", {}) | given.get("where", {})
    table: Table = validate(Table, place, paper | given | {"where": where})
    for key in ("rows", "columns"):
        if not getattr(table, key):
            raise InputError(f"{place}: found no {key}, expected it: add it.")
    return table


def _read_bundle(place: str, network: Network, bundles: Path) -> Bundle:
    folder = bundles / network.bundle
    configs = [folder / "configs" / f"{config}.json" for config in ("train", "evaluate")]
    if not all(config.is_file() for config in configs):
        found = sorted(other.parents[1].name for other in bundles.glob("*/configs/train.json"))
        advice = (
            f"name one of {', '.join(found)}"
            if found
            else "run from the project's root, or give --bundles"
        )
        raise InputError(f"{place}: there is no bundle {folder}: {advice}.")
    train, evaluate = (json.loads(config.read_text(encoding="utf-8")) for config in configs)
    for run_id in network.run:
        if run_id not in train:
            raise InputError(
                f"{place}: run: found {network.run}, expected ids of {configs[0]}, as in "
                "[training, iterate]: correct it."
            )
    return Bundle(folder.resolve(), train, evaluate)
