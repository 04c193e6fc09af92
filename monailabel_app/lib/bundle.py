"""Find the bundles of a folder, and get one of their inference workflows ready to run."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monailabel.utils.others.generic import device_map, name_to_device

from liverseg.devices import select_device
from liverseg.errors import InputError, message
from liverseg.io.masks import class_names
from liverseg.settings import reference
from liverseg.versions import list_versions, model_files, version_in_use, weights_in_use

# What MONAI asks of an inference config, and the folder for its masks.
NEEDED = ("dataset", "evaluator", "output_dir", "run")
IN_USE = "in use"

_resolving = threading.Lock()


@dataclass(frozen=True)
class Bundle:
    """The configs of one bundle.

    Args:
        folder: the bundle's folder; its name is the model's name.
        config: `configs/inference.json`, unresolved.
        metadata: `configs/metadata.json`.
        labels: value in the mask by segment name, without the background.
        choices: of each setting: the config's value by the text that a client shows, the default
            first.
    """

    folder: Path
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    labels: Mapping[str, int]
    choices: Mapping[str, Mapping[str, Any]]
    # To resolve a config takes longer than to list its files, and clients ask often.
    _places: dict[tuple[Path, ...], list[Path]] = field(default_factory=dict, init=False)

    @property
    def name(self) -> str:
        """The model's name for clients."""
        return self.folder.name

    def versions(self) -> list[str]:
        """The model in use, then all versions that have weights, the newest first."""
        kept = (version.name for version in list_versions(self.folder) if version.files())
        return [IN_USE, *kept]

    def weights(self) -> list[Path]:
        """The files with the weights in use, read each time; none where one is missing."""
        return self._needed() if model_files(self.folder / "models") and not self._missing() else []

    def state(self) -> str:
        """Whether there are weights, as text for `/info`."""
        if not model_files(self.folder / "models"):
            return "no weights yet: train it, or copy them there"
        missing = [str(path.relative_to(self.folder)) for path in self._missing()]
        if not missing:
            return "ready"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"weights missing ({missing[0]}{more}): train it to its end, or copy them there"

    def _missing(self) -> list[Path]:
        return [path for path in self._needed() if not path.is_file()]

    def _needed(self) -> list[Path]:
        """Return the paths of the weights of each network, which may depend on the files there."""
        there = tuple(model_files(self.folder / "models"))
        if there not in self._places:
            with self.workflow({}) as parser:
                self._places[there] = self.weights_of(parser)
        return self._places[there]

    def weights_of(self, parser: ConfigParser) -> list[Path]:
        """The files that a config of `workflow` reads the weights of each network from."""
        paths: Any = "models/model.pt"
        if "ckpt_path" in parser:
            paths = parser.get_parsed_content("ckpt_path")
        some = paths.values() if isinstance(paths, Mapping) else [paths]
        return [self.folder / path for path in some]

    def fingerprint(self) -> str:
        """Text that changes when the weights in use do."""
        files = [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.weights()
        ]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the config for what a client chose.

        Args:
            params: of a request; what is not among the choices is left alone.

        Raises:
            InputError: for a value that is no choice.
        """
        chosen = {}
        for key, choices in self.choices.items():
            if key in params:
                chosen[key] = choices[choose(self.name, key, params[key], choices)]
        version = choose(self.name, "version", params.get("version", IN_USE), self.versions())
        if version != IN_USE:
            chosen["ckpt_dir"] = str(self.folder / "models" / "versions" / version)
        elif version_in_use(self.folder):
            # All its files, also where another is published while they are read.
            chosen["ckpt_dir"] = str(weights_in_use(self.folder))
        return chosen

    def device(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Return the setting `device` for what a client chose; nothing, if it chose none.

        Raises:
            InputError: for one that the server does not have.
        """
        asked = params.get("device")
        if not asked:
            return {}
        name = asked[0] if isinstance(asked, list) else asked
        # "cuda" is the default of clients that do not know the server, on a machine without a GPU
        # too.
        known = dict.fromkeys([*device_map(), *device_map().values(), "cpu", "cuda"])
        if not isinstance(name, str) or (name not in known and not re.fullmatch(r"cuda:\d+", name)):
            raise InputError(
                f"model {self.name}, option device: found {name!r}, expected one of "
                f"{', '.join(known)}: choose one."
            )
        if name not in known:
            try:
                select_device(name)
            except InputError as error:
                raise InputError(f"model {self.name}, option {error}") from error
        return {"device": name_to_device(name)}

    @contextmanager
    def workflow(self, settings: Mapping[str, Any]) -> Iterator[ConfigParser]:
        """Yield the config with `settings`, initialised, to resolve parts of it.

        One at a time: configs add folders to `sys.path`, from which the next one must not import.
        """
        with _resolving:
            path = sys.path[:]
            try:
                # The parser resolves macros in place.
                parser = ConfigParser(copy.deepcopy(dict(self.config)))
                parser.update(
                    {"bundle_root": str(self.folder), "_meta_": dict(self.metadata), **settings}
                )
                parser.parse()
                if "initialize" in parser:
                    parser.get_parsed_content("initialize")
                yield parser
            finally:
                sys.path[:] = path


def find_bundles(
    folders: Sequence[Path], names: Collection[str] = ()
) -> tuple[dict[str, Bundle], dict[str, str]]:
    """Read every bundle in `folders`.

    Args:
        folders: where bundles are folders; one that is missing holds none.
        names: the only ones to take; all, if there are none.

    Returns:
        The bundles by name, and for each folder that was not taken the reason.

    Raises:
        InputError: for a name that is not there.
    """
    taken: dict[str, Bundle] = {}
    refused: dict[str, str] = {}
    found = [
        path for folder in folders if folder.is_dir() for path in sorted(folder.glob("[!._]*/"))
    ]
    unknown = sorted(set(names) - {path.name for path in found})
    if unknown:
        known = ", ".join(sorted({path.name for path in found})) or "none"
        raise InputError(
            f"models: found {', '.join(unknown)}, expected names among {known}: fix --conf models."
        )
    for path in found:
        where = f"{path.parent.name}/{path.name}"
        if names and path.name not in names:
            refused[where] = "not among those that --conf models names"
        elif path.name in taken:
            refused[where] = (
                f"the name is that of {taken[path.name].folder}: rename one of the folders"
            )
        else:
            try:
                bundle = read_bundle(path)
                # Which weights it needs, the config may say wrongly too.
                bundle.state()
                taken[path.name] = bundle
            # A config may run anything, and the other bundles must not suffer.
            except Exception as error:
                refused[where] = (
                    message(error) or f"{type(error).__name__}: {error}".splitlines()[0]
                )
    return taken, refused


def read_bundle(folder: Path) -> Bundle:
    """Read the configs of one bundle, and initialise it once.

    Raises:
        InputError: for a folder that holds no bundle of a segmentation, and one with Python code.
    """
    config_file = next(iter(sorted((folder / "configs").glob("inference.*"))), None)
    metadata_file = folder / "configs" / "metadata.json"
    if config_file is None or not metadata_file.is_file():
        raise InputError(
            f"{folder}: found no configs/inference.json and metadata.json, expected both: not a "
            "bundle."
        )
    # A package such as `scripts` of one bundle would run in the place of that of another.
    code = [
        path
        for pattern in ("*.py", "*/*.py")
        for path in folder.glob(pattern)
        if path.parent.name != "liverseg"
    ]
    if code:
        raise InputError(
            f"{folder}: found code of its own ({code[0].relative_to(folder)}), expected none but "
            "liverseg, because bundles would run each other's: give it a server of its own."
        )
    try:
        config = ConfigParser.load_config_file(config_file)
        metadata = json.loads(metadata_file.read_text())
    except ValueError as error:
        raise InputError(f"{folder}: found a config that is no JSON ({error}): fix it.") from error
    needed = (*NEEDED, *config.get("retrain_configs", ()))
    missing = [key for key in needed if key not in config]
    if missing:
        raise InputError(
            f"{config_file}: found no {', '.join(missing)}, expected them: add them to the config."
        )
    bundle = Bundle(
        folder, config, metadata, _labels(metadata_file, metadata), _choices(config_file, config)
    )
    with bundle.workflow({}):
        return bundle


def _labels(file: Path, metadata: Mapping[str, Any]) -> dict[str, int]:
    labels = {
        name.lower(): value
        for value, name in class_names(metadata).items()
        if name.lower() != "background"
    }
    if not labels:
        raise InputError(
            f"{file}: found no labels, expected channel_def in network_data_format#outputs: add it."
        )
    return labels


def _choices(file: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    choices = {}
    for key, values in config.get("displayable_configs", {}).items():
        if key not in config or not isinstance(values, list):
            raise InputError(
                f"{file}: displayable_configs#{key}: found {values!r}, expected a list of values "
                f"of {key}: correct it."
            )
        default, refers = config[key], reference(config[key])
        first = refers[1] if refers else as_text(default)
        known = {as_text(one): f"@{refers[0]}#{one}" if refers else one for one in values}
        if first not in known:
            raise InputError(
                f"{file}: displayable_configs#{key} lacks the default {default!r}: add it."
            )
        choices[key] = {first: known.pop(first), **known}
    return choices


def choose(model: str, key: str, value: Any, choices: Collection[str]) -> str:
    """Return the choice that a client asks for.

    Raises:
        InputError: for a value that is no choice.
    """
    # A client that shows no options sends the whole list back, whose first is the default.
    text = next(iter(choices)) if value == list(choices) else as_text(value)
    if text not in choices:
        known = ", ".join(map(repr, choices))
        raise InputError(
            f"model {model}, option {key}: found {text!r}, expected one of {known}: choose one."
        )
    return text


def as_text(value: Any) -> str:
    """Return `value` as clients show it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
