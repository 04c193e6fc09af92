"""Find the bundle that a name, folder or archive stands for, ready to segment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import liverseg
from liverseg.bundle import is_version
from liverseg.errors import InputError
from liverseg.io.paths import absolute
from liverseg.versions import model_files

DEFAULT = "unet3d_liver"
# Of a repository, where the package lies in it, and of the folder that a command is started in.
FOLDERS = (Path("bundles"), Path(liverseg.__file__).parents[1] / "bundles")


def find_bundle(name: str | os.PathLike[str] = DEFAULT) -> Path:
    """Return the folder of a bundle with weights.

    The weights of `unet3d_liver` are fetched where there are none.

    Args:
        name: of a bundle of this project, its folder, or an archive of `liverseg zoo build`, which
            is unpacked once into the user's cache.

    Raises:
        InputError: for a bundle that is not there, has no weights or needs another liverseg.
    """
    folder = _folder(os.fspath(name))
    if not (folder / "configs" / "inference.json").is_file():
        raise InputError(
            f"{folder}: found no configs/inference.json, expected a bundle: name another."
        )
    if not model_files(folder / "models"):
        if folder.name != DEFAULT:
            raise InputError(
                f"{folder}: found no weights in models, expected some to segment with: train the "
                "bundle, or copy them there."
            )
        from liverseg.workbench.zoo.fetch import fetch_starting_model

        fetch_starting_model(folder)
    return folder


def weights_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file with weights, by its path in the bundle's `models`."""
    models = folder / "models"
    found = {}
    for path in model_files(models):
        with (models / path).open("rb") as file:
            found[path.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def names_of(folders: Iterable[Path]) -> str:
    """Return the names of bundles, for messages and records."""
    return ", ".join(folder.name for folder in folders)


def metadata_of(folder: Path) -> dict[str, Any]:
    """Return the content of a bundle's `metadata.json`."""
    content = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return dict(content)


def _folder(name: str) -> Path:
    path = absolute(name)
    if path.is_dir():
        return path
    if path.is_file():
        return _unpack(path)
    if Path(name).name == name:
        for folder in map(absolute, FOLDERS):
            if (folder / name).is_dir():
                return folder / name
    found = (path.parent.name for folder in FOLDERS for path in folder.glob("[!._]*/configs"))
    known = ", ".join(sorted(set(found))) or "none is here"
    raise InputError(
        f"--bundle: found {name!r}, expected the name of a bundle ({known}), a bundle's "
        "folder or its archive: correct it."
    )


def _unpack(archive: Path) -> Path:
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(archive) as packed:
            (config,) = (
                Path(name) for name in packed.namelist() if name.endswith("configs/inference.json")
            )
            cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
            folder = cache / "liverseg" / "bundles" / digest[:16]
            if not folder.is_dir():
                part = folder.with_name(f"{folder.name}.{os.getpid()}")
                packed.extractall(part)
                try:
                    part.replace(folder)
                except OSError:
                    # Another process was first.
                    if not folder.is_dir():
                        raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{archive}: not readable as the archive of a bundle ({error}), expected one of "
            "`liverseg zoo build`: download or build it again."
        ) from error
    bundle = folder / config.parent.parent
    needed = json.loads((bundle / "configs" / "inference.json").read_text())["liverseg"]
    version = re.search(r"require\('([\d.]+)'\)", needed)
    if version and not is_version(version[1]):
        raise InputError(
            f"{archive}: found a bundle of liverseg {version[1]}, expected one of "
            f"{liverseg.__version__}: install that liverseg, or build the archive again."
        )
    return bundle
