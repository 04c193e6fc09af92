"""Read the form of a study's YAML file: which keys it has, and of which types."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from liverseg.errors import InputError
from liverseg.settings import nearest

# What pydantic expects, in words that help more than its own.
EXPECTED = {
    "dict_type": "names with values, as in {name: …}",
    "model_type": "keys with values, as in {name: …}",
    "list_type": "a list, as in [0, 1]",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "missing": "a value more",
}
SHIPPED = Path(str(files(__package__) / "studies"))
STRICT = ConfigDict(extra="forbid", strict=True)


def _each_once(entries: list[Any]) -> list[Any]:
    """Refuse a fold, seed or table that is there twice: it would be the same one."""
    if len(set(entries)) < len(entries):
        raise PydanticCustomError("repeated", "each one once")
    return entries


Settings = dict[str, Any]
NamedSettings = dict[str, Annotated[Settings, Field(min_length=1)]]
Numbers = Annotated[list[int], Field(min_length=1)]
UniqueNumbers = Annotated[Numbers, AfterValidator(_each_once)]
Names = Annotated[list[str], Field(min_length=1)]


class Protocol(BaseModel):
    """The training of a paper, in its own units, which a study's is compared with.

    Attributes:
        epochs: passes over all samples.
        samples: of an epoch, slices or crops; by stage, where a training has several.
        batch_size: samples in a step.
        learning_rate: at the start; it is multiplied by `drop_factor` every `drop_epochs`.
    """

    model_config = STRICT
    epochs: PositiveInt
    samples: PositiveInt | dict[str, PositiveInt]
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    drop_factor: PositiveFloat = 1.0
    drop_epochs: PositiveInt = 1

    def samples_of(self, stage: str) -> int:
        """Return the samples of an epoch of a stage."""
        return self.samples if isinstance(self.samples, int) else self.samples[stage]

    def iterations_per_epoch(self, stage: str) -> float:
        """Return the steps of an epoch of a stage; the papers do not say what a rest becomes."""
        return self.samples_of(stage) / self.batch_size


class Data(BaseModel):
    """A data set: where it is, the label values of each class, and how the paper trains on it.

    Attributes:
        dataset_dir, datalist, phantoms: one of them says where it is.
        labels: the values of each class.
        num_folds: how many folds the data set must have; None takes any.
        num_scans: how many scans it must have, those for testing included; None takes any.
        protocol: the paper's training.
        settings: of all trainings on it.
    """

    model_config = STRICT
    dataset_dir: str | None = None
    datalist: str | None = None
    phantoms: dict[str, Any] | None = None
    labels: Annotated[dict[str, Numbers], Field(min_length=1)]
    num_folds: PositiveInt | None = None
    num_scans: PositiveInt | None = None
    protocol: Protocol | None = None
    settings: Settings = {}


class Network(BaseModel):
    """A bundle, its own settings, and the ids of its config that train it, in this order.

    `protocol` has keys over those of the data set's.
    """

    model_config = STRICT
    bundle: str
    protocol: dict[str, Any] = {}
    settings: Settings = {}
    run: Names = ["training"]


class Place(BaseModel):
    """What `where`, a row or a column adds to the places of a table."""

    model_config = STRICT
    data: str | None = None
    network: str | None = None
    task: str | None = None
    loss: str | None = None
    postprocessing: str | None = None
    metric: str | None = None
    evaluation: str | None = None
    section: str | None = None
    column: str | None = None
    reference: str | None = None
    average: Literal[True] | None = None
    max: Literal[True] | None = None
    min: Literal[True] | None = None
    rank: Literal[True] | None = None
    best: Literal[True] | None = None
    difference: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None


class Table(BaseModel):
    """A table: the labels of its rows and columns, and what each adds to `where`.

    `surfaces` draws the organs of a case for each of its rows or columns.
    """

    model_config = STRICT
    title: str | None = None
    where: Place = Place()
    columns: dict[str, Place] = {}
    rows: dict[str, Place] = {}
    reference: str | None = None
    surfaces: Literal["rows", "columns"] | None = None
    paper: dict[str, list[int | float | None]] = {}
    folds: UniqueNumbers | None = None


def _by_name(tables: Any) -> Any:
    if isinstance(tables, list) and all(isinstance(name, str) for name in tables):
        _each_once(tables)
        return dict.fromkeys(tables)
    return {str(k): v for k, v in tables.items()} if isinstance(tables, dict) else tables


class Spec(BaseModel):
    """The study's file.

    Attributes:
        data, networks: by name.
        losses, evaluations: settings of a training, and of an evaluation alone, by name.
        settings: of every training and evaluation.
        folds, seeds: each training is repeated for all of them.
        keep_models: keep each `model.pt` once it is evaluated.
        differences: in which other ways than in length the study differs from the paper, for the
            top of its page.
        tables: by name; None stands for a paper's.
    """

    model_config = STRICT
    data: Annotated[dict[str, Data], Field(min_length=1)]
    networks: Annotated[dict[str, Network], Field(min_length=1)]
    losses: NamedSettings = {}
    evaluations: NamedSettings = {}
    settings: Settings = {}
    folds: UniqueNumbers = [0]
    seeds: UniqueNumbers = [0]
    keep_models: bool = True
    differences: list[str] = []
    tables: Annotated[dict[str, Table | None], Field(min_length=1), BeforeValidator(_by_name)]


def read_spec(path: Path) -> Spec:
    """Read a study's file and check its keys and their types.

    Raises:
        InputError: for the first thing that is wrong, with its key.
    """
    spec: Spec = validate(Spec, str(path), _load(path))
    return spec


def check_choice(place: str, found: str, known: Collection[str], what: str = "") -> None:
    """Check that `found` is one of `known`, which are `what`.

    Raises:
        InputError: when it is not, beginning with `place`.
    """
    if found not in known:
        names = ", ".join(known) or "none"
        raise InputError(
            f"{place}: found {found}, expected {what}one of {names}: {_advice(found, known)}."
        )


def _advice(word: Any, known: Iterable[str]) -> str:
    near = nearest(str(word), known)
    return f"correct it, perhaps to {near}" if near else "correct it"


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse a key that is there twice; YAML itself takes the last."""
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key.value in [other.value for other in keys[:index]]:
                raise yaml.MarkedYAMLError(
                    problem=f"found the key {key.value} twice", problem_mark=key.start_mark
                )
        return node


def _load(path: Path, above: tuple[Path, ...] = ()) -> Any:
    content = _load_file(path)
    name = content.pop("base", None)
    if name is None:
        return content
    # A copy of a shipped study finds the base that is shipped.
    beside = path.parent / str(name)
    base = beside if beside.is_file() else SHIPPED / str(name)
    if not base.is_file() or base.resolve() in (path.resolve(), *above):
        raise InputError(
            f"{path}: base: found {name}, expected another study beside it or a shipped one, "
            "which is not based on this one: correct it."
        )
    return _merge(_load(base, (*above, path.resolve())), content)


def _merge(base: Any, own: Any) -> Any:
    """Return `base` with the keys of `own` over it, at every depth; lists are replaced."""
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    return base | {key: _merge(base.get(key), value) for key, value in own.items()}


def _load_file(path: Path) -> Any:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: not readable as YAML ({reason}): fix it.") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise InputError(
            f"{path}: found {found}, expected keys like data, networks, tables: add them."
        )
    return content


def validate(model: type[BaseModel], place: str, content: Any) -> Any:
    """Return the model of `content`, which is JSON or what YAML has read.

    Raises:
        InputError: for the first thing that is wrong, with its key after `place`.
    """
    try:
        if isinstance(content, str):
            return model.model_validate_json(content)
        return model.model_validate(content)
    except ValidationError as error:
        # A misspelt key is why another is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise InputError(_message(model, place, first)) from error


def _message(model: type[BaseModel], place: str, error: Any) -> str:
    *above, key = (str(key) for key in error["loc"] if key != "[key]")
    section = ": ".join([place, *above])
    if error["type"] == "extra_forbidden":
        if above:
            sections: Any = {"data": Data, "networks": Network, "tables": Table}
            model = Place if len(above) > 2 else sections.get(above[0], model)
        known = sorted(model.model_fields)
        return (
            f"{section}: found the key {key}, expected only {', '.join(known)}: "
            f"{_advice(key, known)}."
        )
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"{section}: found no {key}, expected it: add it."
    expected = EXPECTED.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    if error["type"] == "too_short":
        expected = f"entries, {error['ctx']['min_length']} or more"
    # YAML reads a key with nothing after it as None.
    found = "nothing" if error["input"] is None else repr(error["input"])
    return f"{section}: {key}: found {found}, expected {expected}: write it so."
