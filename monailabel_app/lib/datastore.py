"""The studies on this machine's disk."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock
from monailabel.datastore import local
from monailabel.datastore.local import LocalDatastore

from liverseg.files import write_atomically

# What reads or changes the list of studies.
METHODS = (
    "add_image",
    "datalist",
    "get_labeled_images",
    "get_unlabeled_images",
    "json",
    "list_images",
    "refresh",
    "remove_image",
    "remove_label",
    "save_label",
    "status",
    "update_image_info",
    "update_label_info",
)


class LockedDatastore(LocalDatastore):
    """MONAI Label's, for several threads and processes: one reads or changes the list at a time, as it is on the disk.

    Of its own it is made for one thread, although its watcher of the folder is a second one, and a process that scores
    or segments many scans would write back the list as it was when it started. It also writes scans, labels and the
    list in place, so that a server that is killed leaves half of them; here, what was there stays whole until the new
    one is.
    """

    def __init__(self, datastore_path: str, *args: Any, **kwargs: Any) -> None:
        self.lock = threading.RLock()
        self.process_lock = FileLock(Path(datastore_path) / ".lock_of_processes")
        super().__init__(datastore_path, *args, **kwargs)

    def _update_datastore_file(self, lock: bool = True) -> None:
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        write_atomically(self._datastore_config_path, lambda file: file.write(text.encode()))
        self._config_ts = os.stat(self._datastore_config_path).st_mtime


def _locked(name: str) -> Callable:
    method = getattr(LocalDatastore, name)

    @functools.wraps(method)
    def locked(self: LockedDatastore, *args: Any, **kwargs: Any) -> Any:
        with self.lock, self.process_lock:
            self._init_from_datastore_file()
            return method(self, *args, **kwargs)

    return locked


for _name in METHODS:
    setattr(LockedDatastore, _name, _locked(_name))


def _copy_atomically(source: str, target: str) -> None:
    with open(source, "rb") as file:
        write_atomically(target, lambda new: shutil.copyfileobj(file, new))


# All that `LocalDatastore` has of `shutil`.
local.shutil = SimpleNamespace(copy=_copy_atomically)
