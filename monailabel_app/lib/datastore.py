"""The studies on this machine's disk."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from monailabel.datastore.local import LocalDatastore

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
    """MONAI Label's, for requests that are answered by several threads: one reads or changes the list at a time.

    Of its own it is made for one thread, although its watcher of the folder is a second one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lock = threading.RLock()
        super().__init__(*args, **kwargs)


def _locked(name: str) -> Callable:
    method = getattr(LocalDatastore, name)

    @functools.wraps(method)
    def locked(self: LockedDatastore, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


for _name in METHODS:
    setattr(LockedDatastore, _name, _locked(_name))
