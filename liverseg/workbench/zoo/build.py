"""Make the archive of a bundle that people download, with the part of liverseg that it runs."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, BinaryIO

import liverseg
from liverseg.bundle import is_version
from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.io.paths import absolute, is_hidden
from liverseg.networks.weights import read_state_dict
from liverseg.versions import model_files
from liverseg.workbench.zoo.json_lines import to_json

PACKAGE = Path(liverseg.__file__).parent
# What MONAI's schema of metadata.json requires.
REQUIRED_FIELDS = [
    *(
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
    ),
    *("task", "description", "authors", "copyright", "network_data_format"),
]
# The version of liverseg that a config is made for. In the repository a config imports the liverseg
# that is installed. That of an archive lies beside its folder `configs`, wherever the process was
# started and whether or not it was given `bundle_root`.
REQUIRE = "$from liverseg.bundle import require"
IMPORTS = ("$import inspect", "$import sys", "$from pkgutil import resolve_name")
FIND_LIVERSEG = (
    "$sys.path.extend(os.path.abspath(str(folder)) for folder in [@bundle_root] + "
    "[call.frame.f_locals['self'].config_root_path.parent for call in inspect.stack(0) "
    "if call.function == '_run_expr']) or resolve_name('liverseg.bundle').require('{version}')"
)
REQUIRED_VERSION = re.compile(r"(?<=\brequire\(['\"])[\d.]+(?=['\"]\))")


def build_archive(bundle: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write `<out>/<bundle>_v<version>.zip`, with everything in it under the folder `<bundle>/`.

    Its configs accept this version of liverseg alone, which is in the archive: of two archives in
    one process, both run the code of the first. The same files give the same bytes, whenever and
    wherever they are packed: entries are sorted, carry no time, and are stored, because two
    releases of zlib compress the same file differently.

    Args:
        bundle: the bundle's folder.
        out: the folder for the archive, made where it is missing; an archive of the same
            version is replaced.

    Returns:
        The archive's path, as `python -m monai.bundle download --url` and the model zoo name it.

    Raises:
        InputError: when the bundle is not whole, a config names what liverseg does not have
            or is made for another version of it, weights are damaged or not finite, or
            `out` cannot be written.
    """
    bundle = absolute(bundle)
    version = _read_metadata(bundle)["version"]
    files = _files(bundle)
    for name, path in sorted(files.items()):
        if re.fullmatch(r"configs/[^/]+\.json", name):
            _check_config(path)
        elif name.endswith(".pt"):
            # Refuses what is damaged or not finite.
            read_state_dict(path)
    archive = check_writable(out) / f"{bundle.name}_v{version}.zip"
    with atomic_write(archive) as file:
        _write_zip(file, bundle.name, files)
    return archive


def _files(bundle: Path) -> dict[str, Path]:
    """Return each file's path in the bundle's folder of the archive, and where it is now."""
    code = {path.relative_to(PACKAGE.parent): path for path in PACKAGE.rglob("*.py")}
    code = {name: path for name, path in code.items() if name.parts[1] != "workbench"}
    models = [bundle / "models" / name for name in model_files(bundle / "models")]
    own = [*(bundle / "configs").rglob("*"), *(bundle / "docs").rglob("*"), *models]
    own += [
        bundle / name for name in ("LICENSE", "large_files.yml", "models/LICENSE", "models/NOTICE")
    ]
    files = {**code, **{path.relative_to(bundle): path for path in own if path.is_file()}}
    # What systems and editors leave there: `.DS_Store`, `._train.json`,
    # `.ipynb_checkpoints/`, `__pycache__/`.
    return {
        name.as_posix(): path
        for name, path in files.items()
        if not any(is_hidden(part) or part == "__pycache__" for part in name.parts)
    }


def _content(name: str, path: Path) -> bytes:
    if not (name.startswith("configs/") and name.endswith(".json")):
        return path.read_bytes()
    config = _read_json(path)
    if "liverseg" in config:
        config["imports"] = sorted({*IMPORTS, *config["imports"]} - {REQUIRE})
        config["liverseg"] = FIND_LIVERSEG.format(version=liverseg.__version__)
    return to_json(config).encode()


def _write_zip(file: BinaryIO, folder: str, files: dict[str, Path]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on whichever system this runs.
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, _content(name, files[name]))


def _read_metadata(bundle: Path) -> dict[str, Any]:
    path = bundle / "configs" / "metadata.json"
    if not path.is_file():
        known = sorted(
            other.parents[1].name for other in bundle.parent.glob("*/configs/metadata.json")
        )
        raise InputError(
            f"{bundle}: no bundle there, expected a folder with configs/metadata.json: "
            + (
                f"name one of {', '.join(known)}."
                if known
                else "call this from the folder that holds bundles/."
            )
        )
    metadata = _read_json(path)
    missing = [field for field in REQUIRED_FIELDS if field not in metadata]
    if missing:
        raise InputError(
            f"{path}: found no {', '.join(missing)}, expected all that MONAI's "
            "schema requires: add them."
        )
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(metadata["version"])):
        raise InputError(
            f'{path}: found version {metadata["version"]!r}, expected one like "0.1.0": change it.'
        )
    return metadata


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a JSON file ({error}), expected a config: fix it."
        ) from error


def _check_config(path: Path) -> None:
    for text in _texts(_read_json(path)):
        for version in REQUIRED_VERSION.findall(text):
            if not is_version(version):
                raise InputError(
                    f"{path}: made for liverseg {version}, found {liverseg.__version__} "
                    f"in {PACKAGE}: build with liverseg {version}, or bring the config up "
                    f"to {liverseg.__version__}."
                )
        # A component's target, or a function inside an expression:
        # "$@liverseg.data.load_datalist(…)".
        for name in re.findall(r"(?:^|@)(liverseg(?:\.\w+)+)", text):
            _check_name(path, name)


def _check_name(path: Path, name: str) -> None:
    if name.startswith("liverseg.workbench"):
        raise InputError(
            f"{path}: found {name}, but archives hold no workbench: move "
            "what bundles run out of it."
        )
    try:
        resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path}: found {name}, expected a name that liverseg {liverseg.__version__} "
            f"has ({error}): correct it."
        ) from error


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
