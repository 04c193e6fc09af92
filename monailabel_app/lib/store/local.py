"""The studies on this machine's disk, for several threads and processes."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException

from liverseg.files import atomic_write, check_writable
from liverseg.io.paths import is_hidden, volume_suffix

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
        # The list on the disk is replaced as a whole, so who only reads it waits for no other
        # process.
        with self.lock, self.process_lock if changes else nullcontext():
            self._init_from_datastore_file()
            return method(self, *args, **kwargs)

    return locked


class LockedDatastore(LocalDatastore):
    """MONAI Label's, whose list one thread or process at a time reads or changes on the disk.

    MONAI Label's is made for one thread, although its watcher of the folder is a second one, and a
    process that scores or segments many scans would write back the list as it was when it started.
    It also writes scans, labels and the list in place, so that a server that is killed leaves half
    of them; here, what was there stays whole until the new one is. A scan or a label may be a link:
    nothing that it points to is ever changed.
    https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/datastore/local.py

    Attributes:
        folder: with the list.

    Raises:
        InputError: for a folder that cannot be written.
    """

    def __init__(self, datastore_path: str, *args: Any, **kwargs: Any) -> None:
        check_writable(datastore_path)
        self.folder = Path(datastore_path)
        self.lock = threading.RLock()
        self.process_lock = FileLock(self.folder / ".lock_of_processes")
        self._list_seen: tuple[int, int, int] | None = None
        with self.lock, self.process_lock:
            super().__init__(datastore_path, *args, **kwargs)
        if self._auto_reload:
            self._handler.on_moved = self._on_moved

    def _on_moved(self, event: Any) -> None:
        # As rsync ends each file; the list of the studies is replaced so too, and read when it is
        # asked for.
        if event.dest_path != self._datastore_config_path:
            self._on_any_event(event)

    @functools.partial(_locked, changes=False)
    def get_image_uri(self, image_id: str) -> str:
        """The file of a scan, by its name here if it is a link; "" for one that is not there."""
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
        image_id = image_id or name
        data = self._save(
            self._datastore.image_path(), image_id, suffix, image_filename, image_info
        )
        self._datastore.objects[image_id] = ImageLabelModel(image=data)
        self._update_datastore_file()
        return image_id

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
        """Save a label in the place of the one that the scan has; returns its id, that of the scan.

        Raises:
            ImageNotFoundException: if there is no such scan.
        """
        scan = self._datastore.objects.get(image_id)
        if scan is None:
            raise ImageNotFoundException(f"Image {image_id} not found")
        suffix = self._to_id(os.path.basename(label_filename))[1]
        folder = self._datastore.label_path(label_tag)
        os.makedirs(folder, exist_ok=True)
        data = self._save(folder, image_id, suffix, label_filename, label_info)
        scan.labels[label_tag] = data
        self._update_datastore_file()
        # One of another suffix would be the label again when this one is removed.
        for label in self._labels(image_id, label_tag):
            if label.name != data.info["name"]:
                label.unlink()
        return image_id

    @_locked
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove the label of a scan, if it has one."""
        for label in self._labels(label_id, label_tag):
            label.unlink()
        self._reconcile_datastore()

    def _save(
        self, folder: str, name: str, suffix: str, source: str, info: Mapping[str, Any] | None
    ) -> DataModel:
        """Copy a file into a folder; returns what the list says of it."""
        file = self._filename(name, suffix)
        with open(source, "rb") as read, atomic_write(Path(folder, file)) as new:
            shutil.copyfileobj(read, new)
        return DataModel(info={**(info or {}), "ts": int(time.time()), "name": file}, ext=suffix)

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
        suffix = volume_suffix(file)
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
