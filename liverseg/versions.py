"""Manage the versions of a bundle's model: trained, evaluated, and one of them in use.

A version is a folder `models/versions/<id>` with the files that a training writes into `models/`,
and `version.json`, which says what it was made from and what it reached. `models/versions/in_use`
links to the version in use, and each file of weights in `models/` is a link through that one: to
publish is to replace one link, however many networks a bundle has, and whoever has loaded the
weights before keeps what they loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from liverseg.errors import InputError
from liverseg.files import check_writable, write_text

RECORD = "version.json"
# Files of a model; whatever else is there belongs to its training.
FILES = ("model.pt", "model.json")
RUNNING = ("training", "evaluating")


@dataclass(frozen=True)
class Version:
    """One version.

    Args:
        folder: where its files are; its name is the version's.
        record: `version.json`: `state` ("training", "evaluating", "candidate", "published",
            "stopped", "failed"), `reason`, `parent`, `start_ts` (seconds since 1970), `training`
            and `validation` (names of scans), `mean_dice` and `mean_dice_in_use` (of the model that
            was in use, on the same validation scans), `replaced` (the versions that were in use
            before it, the last one first).
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its id: the time at which it was begun."""
        return self.folder.name

    @property
    def state(self) -> str:
        """The state; a version whose process has ended before its end is `stopped`."""
        state = self.record.get("state", "candidate")
        return "stopped" if state in RUNNING and not _is_locked(self.folder / ".lock") else state

    def files(self) -> list[Path]:
        """Return the files of its model, by their paths in it."""
        return model_files(self.folder)

    def update(self, **facts: Any) -> Version:
        """Change facts in `version.json`, and return the version with them; all others stay."""
        # It may have been published since it was read.
        record = {**_read(self.folder).record, **facts}
        write_text(self.folder / RECORD, json.dumps(record, indent=1))
        return Version(self.folder, record)


def model_files(folder: Path) -> list[Path]:
    """Return the files of the model in `folder`, by their paths in it.

    Those of versions and of rounds do not count.
    """
    found = (path.relative_to(folder) for name in FILES for path in folder.rglob(name))
    return sorted(path for path in found if not {"versions", "rounds"} & set(path.parts))


def list_versions(bundle: Path) -> list[Version]:
    """Return all versions of a bundle, the newest first."""
    folders = (path for path in _versions(bundle).glob("[!.]*/") if not path.is_symlink())
    return [_read(folder) for folder in sorted(folders, reverse=True)]


def find_version(bundle: Path, name: str) -> Version:
    """Return the version called `name`.

    Raises:
        InputError: where there is none.
    """
    versions = {version.name: version for version in list_versions(bundle)}
    if name not in versions:
        known = ", ".join(versions)
        expected = (
            f"expected one of {known}: choose one"
            if known
            else "for there are none yet: train the model first"
        )
        raise InputError(f"{bundle}: found no version {name!r}, {expected}.")
    return versions[name]


def new_version(bundle: Path, **facts: Any) -> Version:
    """Make the folder of a new version, with these facts."""
    versions = check_writable(_versions(bundle))
    begun = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    for number in count(1):
        folder = versions / (begun if number == 1 else f"{begun}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return Version(folder, {}).update(start_ts=int(time.time()), **facts)


def version_in_use(bundle: Path) -> str | None:
    """Return the name of the version in use.

    `None` where there are no weights, or where no version made them.
    """
    link = _versions(bundle) / "in_use"
    files = model_files(bundle / "models")
    # A training in `models/` replaces links by files, and `DELETE /model/NAME` takes them away.
    if (
        not link.is_symlink()
        or not _has_weights(files)
        or not all(_is_linked(bundle, file) for file in files)
    ):
        return None
    return os.readlink(link)


def weights_in_use(bundle: Path) -> Path:
    """Return the folder to load the weights in use from, which no publication changes."""
    name = version_in_use(bundle)
    return _versions(bundle) / name if name else bundle / "models"


def publish(bundle: Path, name: str, instead_of: Collection[str | None] | None = None) -> bool:
    """Put a version into use, all its files at once; the one before stays as a version.

    Args:
        bundle: the bundle's folder.
        name: the version.
        instead_of: the versions it may replace, `None` for no weights at all; without this
            argument, any.

    Returns:
        Whether it is in use now.

    Raises:
        InputError: for a version that is not there, still trains, has no weights, or lacks files of
            the one in use.
    """
    version = with_weights(find_version(bundle, name))
    files = version.files()
    if version.state == "training":
        raise InputError(
            f"{version.folder}: found it still training, expected one that "
            "is ready: wait or stop it."
        )
    check_writable(_versions(bundle))
    with FileLock(_versions(bundle) / ".lock"):
        _keep_model_in_use(bundle)
        before = version_in_use(bundle)
        if instead_of is not None and before not in {*instead_of, name}:
            return False
        in_use = find_version(bundle, before) if before else None
        needed = in_use.files() if in_use else []
        missing = [str(file) for file in needed if file.name == "model.pt" and file not in files]
        if missing:
            raise InputError(
                f"{version.folder}: found no {', '.join(missing)}, expected all that the version "
                "in use has: train the version to its end, or choose another."
            )
        _link_files(bundle, files)
        _point_to(bundle, name)
        if before != name:
            replaced = [in_use.name, *in_use.record.get("replaced", ())] if in_use else []
            version.update(state="published", reason=None, replaced=replaced)
            _forget_missing(bundle)
    return True


def with_weights(version: Version) -> Version:
    """Return this version if it has weights.

    Raises:
        InputError: where it has no weights.
    """
    if not _has_weights(version.files()):
        raise InputError(
            f"{version.folder}: found no model.pt, expected weights: choose another version."
        )
    return version


def keep_model_in_use(bundle: Path) -> None:
    """Make a version of weights that came into `models/` in another way."""
    check_writable(_versions(bundle))
    with FileLock(_versions(bundle) / ".lock"):
        _keep_model_in_use(bundle)


def rollback(bundle: Path) -> str:
    """Publish the version that was in use before the one in use.

    Returns:
        Its name.

    Raises:
        InputError: where there is none.
    """
    name = version_in_use(bundle)
    replaced = find_version(bundle, name).record.get("replaced") if name else None
    if not replaced:
        raise InputError(
            f"{bundle}: found no version before the one in use, expected one: publish another."
        )
    publish(bundle, replaced[0])
    # Twice back goes to what was before that one, and not forth again.
    find_version(bundle, replaced[0]).update(replaced=replaced[1:])
    return replaced[0]


def evaluate(bundle: Path, weights: Path, version: Version, output_dir: Path) -> dict[str, float]:
    """Evaluate weights on the validation scans of a version, with the bundle's own evaluate.json.

    The postprocessing is that of inference.json, so that the masks are those that people get.

    Args:
        bundle: the bundle's folder.
        weights: the folder that training wrote, `ckpt_dir`.
        version: whose `settings.json` names the scans.
        output_dir: the folder for `cases.csv` and `summary.json`.

    Returns:
        By class, the mean Dice over the scans in whose labels it occurs: the same scans and classes
        for any weights.

    Raises:
        InputError: as the evaluation, among others for weights that do not fit.
    """
    import pandas as pd
    from monai.bundle import ConfigParser, create_workflow

    own = [bundle / "configs" / name for name in ("train.json", "evaluate.json")]
    inference = ConfigParser.load_config_file(bundle / "configs" / "inference.json")
    cleaning = {
        key: value for key, value in inference.items() if str(value).startswith("@postprocessings#")
    }
    paths = {"bundle_root": str(bundle), "ckpt_dir": str(weights), "output_dir": str(output_dir)}
    workflow = create_workflow(
        config_file=[str(path) for path in (*own, version.folder / "settings.json")],
        workflow_type="train",
        logging_file=False,
        section="validation",
        **cleaning,
        **paths,
    )
    workflow.run()
    workflow.finalize()
    cases = pd.read_csv(output_dir / "cases.csv")
    # In another scan, Dice would only be there for the weights that find the class, and 0 for any
    # number of voxels.
    dice = cases[cases["reference_volume_ml"] > 0].groupby("class", sort=False)["dice"].mean()
    return {str(name): float(value) for name, value in dice.items()}


def _is_locked(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        # filelock's shared lock is an SQLite database that no fork survives; so who looks waits a
        # little, and two who look do not see each other.
        with FileLock(path).acquire(timeout=0.1, poll_interval=0.01):
            return False
    except Timeout:
        return True


def _versions(bundle: Path) -> Path:
    return bundle / "models" / "versions"


def _read(folder: Path) -> Version:
    file = folder / RECORD
    return Version(folder, json.loads(file.read_text()) if file.is_file() else {})


def _has_weights(files: list[Path]) -> bool:
    return any(file.name == "model.pt" for file in files)


def _keep_model_in_use(bundle: Path) -> None:
    models = bundle / "models"
    files = model_files(models)
    if version_in_use(bundle) is not None or not _has_weights(files):
        return
    version = new_version(bundle, state="training", reason="found in models/", parent=None)
    for file in files:
        (version.folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(models / file, version.folder / file)
    version.update(state="published")
    _point_to(bundle, version.name)
    _link_files(bundle, files)


def _link_files(bundle: Path, files: list[Path]) -> None:
    for file in files:
        if not _is_linked(bundle, file):
            path = bundle / "models" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace_link(path, _target(file))


def _is_linked(bundle: Path, file: Path) -> bool:
    path = bundle / "models" / file
    return path.is_symlink() and Path(os.readlink(path)) == _target(file)


def _target(file: Path) -> Path:
    return Path(*[".."] * (len(file.parts) - 1), "versions", "in_use", file)


def _point_to(bundle: Path, name: str) -> None:
    _replace_link(_versions(bundle) / "in_use", Path(name))


def _replace_link(path: Path, target: Path) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, path)


def _forget_missing(bundle: Path) -> None:
    """Remove links to files that the version in use does not have."""
    models = bundle / "models"
    for file in model_files(models):
        if not (models / file).exists():
            (models / file).unlink()
