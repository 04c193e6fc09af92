"""The studies on this machine's disk."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock
from monailabel.datastore import local
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException

from liverseg.files import atomic_write, check_writable
from liverseg.io.paths import is_hidden, nifti_suffix

logger = logging.getLogger(__name__)

READS = (
    "datalist",
    "get_label_info",
    "get_labeled_images",
    "get_labels_by_image_id",
    "get_unlabeled_images",
    "json",
    "list_images",
    "status",
)
CHANGES = ("refresh", "update_image_info", "update_label_info")


def _locked(method: Callable, changes: bool = True) -> Callable:
    @functools.wraps(method)
    def locked(self: LockedDatastore, *args: Any, **kwargs: Any) -> Any:
        # The list on the disk is replaced as a whole, so who only reads it waits for no other process.
        with self.lock, self.process_lock if changes else nullcontext():
            self._init_from_datastore_file()
            return method(self, *args, **kwargs)

    return locked


class LockedDatastore(LocalDatastore):
    """MONAI Label's, for several threads and processes: one reads or changes the list at a time, as it is on the disk.

    Of its own it is made for one thread, although its watcher of the folder is a second one, and a process that scores
    or segments many scans would write back the list as it was when it started. It also writes scans, labels and the
    list in place, so that a server that is killed leaves half of them; here, what was there stays whole until the new
    one is. A scan or a label may be a link: nothing that it points to is ever changed.

    Raises:
        InputError: for a folder that cannot be written.
    """

    def __init__(self, datastore_path: str, *args: Any, **kwargs: Any) -> None:
        check_writable(datastore_path)
        self.lock = threading.RLock()
        self.process_lock = FileLock(Path(datastore_path) / ".lock_of_processes")
        self._list_seen: tuple[int, int, int] | None = None
        with self.lock, self.process_lock:
            super().__init__(datastore_path, *args, **kwargs)
        if self._auto_reload:
            self._handler.on_moved = self._on_moved

    def _on_moved(self, event: Any) -> None:
        # As rsync ends each file; the list of the studies is replaced so too, and read when it is asked for.
        if event.dest_path != self._datastore_config_path:
            self._on_any_event(event)

    @functools.partial(_locked, changes=False)
    def get_image_uri(self, image_id: str) -> str:
        """The file of a scan, by the name that it has here though it be a link; "" for one that is not there."""
        image = self._datastore.objects.get(image_id)
        return self._file(self._datastore.image_path(), image_id, image.image.ext) if image else ""

    @functools.partial(_locked, changes=False)
    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of a scan, with its file as `path`."""
        image = self._datastore.objects.get(image_id)
        if image is None:
            return {}
        path = self._file(self._datastore.image_path(), image_id, image.image.ext)
        return {**copy.deepcopy(image.image.info), "path": path}

    @functools.partial(_locked, changes=False)
    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of a label, as that of a scan."""
        label = self._datastore.label(label_id, label_tag)
        return (
            self._file(self._datastore.label_path(label_tag), label_id, label.ext) if label else ""
        )

    @_locked
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Save a scan; returns its id."""
        name, suffix = self._to_id(os.path.basename(image_filename))
        file = Path(self._datastore.image_path(), f"{image_id or name}{suffix}")
        if file.is_symlink():
            file.unlink()
        return super().add_image(image_id, image_filename, image_info)

    @_locked
    def remove_image(self, image_id: str) -> None:
        """Remove a scan and all its labels.

        Raises:
            ImageNotFoundException: if there is none.
        """
        image = self._datastore.objects.get(image_id)
        if image is None:
            raise ImageNotFoundException(f"Image {image_id} not found")
        for label in self._labels(image_id):
            label.unlink()
        Path(self._datastore.image_path(), f"{image_id}{image.image.ext}").unlink(missing_ok=True)
        self._reconcile_datastore()

    @_locked
    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Save a label in the place of the one that the scan has, if any; returns its id, that of the scan.

        Raises:
            ImageNotFoundException: if there is no such scan.
        """
        label_id = super().save_label(image_id, label_filename, label_tag, label_info)
        # One of another suffix would be the label again when this one is removed.
        name = f"{label_id}{self._datastore.objects[label_id].labels[label_tag].ext}"
        for label in self._labels(label_id, label_tag):
            if label.name != name:
                label.unlink()
        return label_id

    @_locked
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove the label of a scan, if it has one."""
        for label in self._labels(label_id, label_tag):
            label.unlink()
        self._reconcile_datastore()

    def _labels(self, label_id: str, label_tag: str | None = None) -> list[Path]:
        """The files with a label of a scan, of all suffixes; without a tag those of all tags."""
        if label_id not in self._datastore.objects:
            return []
        folder = Path(self._datastore.label_path(None))
        tags = [
            path for path in folder.iterdir() if path.is_dir() and label_tag in (None, path.name)
        ]
        files = [
            file for tag in tags for file in tag.iterdir() if self._to_id(file.name)[0] == label_id
        ]
        return [file for file in files if file.is_symlink() or file.is_file()]

    def _file(self, folder: str, name: str, suffix: str) -> str:
        return os.path.abspath(os.path.join(folder, self._filename(name, suffix)))

    def _to_id(self, file: str) -> tuple[str, str]:
        suffix = nifti_suffix(file)
        return (file.removesuffix(suffix), suffix) if suffix else super()._to_id(file)

    def _list_files(self, path: str, patterns: Collection[str]) -> dict[str, str]:
        names = sorted(
            name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name))
        )
        found: dict[str, str] = {}
        for pattern in patterns:
            for name in names:
                if is_hidden(name) or not fnmatch(name.lower(), pattern):
                    continue
                other = found.setdefault(self._to_id(name)[0], name)
                if other != name:
                    logger.warning(
                        "%s: found %s and %s, expected one: the second is left out, rename it.",
                        path,
                        other,
                        name,
                    )
        return {name: name for name in found.values()}

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        # Its time alone may be that of the one before, where the file system's clock is coarse.
        seen = self._state_of_list()
        if seen != self._list_seen:
            self._config_ts = 0
            super()._init_from_datastore_file(throw_exception)
            self._list_seen = seen

    def _update_datastore_file(self, lock: bool = True) -> None:
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        with atomic_write(self._datastore_config_path) as file:
            file.write(text.encode())
        self._list_seen = self._state_of_list()

    def _state_of_list(self) -> tuple[int, int, int] | None:
        try:
            state = os.stat(self._datastore_config_path)
        except FileNotFoundError:
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size


for _name in READS + CHANGES:
    setattr(LockedDatastore, _name, _locked(getattr(LocalDatastore, _name), _name in CHANGES))


def _copy_atomically(source: str, target: str) -> None:
    with open(source, "rb") as file, atomic_write(target) as new:
        shutil.copyfileobj(file, new)


# All that `LocalDatastore` has of `shutil`.
local.shutil = SimpleNamespace(copy=_copy_atomically)
