"""Watch a folder of studies."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from lib.store.series import OWN
from liverseg.io.paths import is_hidden

logger = logging.getLogger(__name__)

# Files are copied into the folder one by one.
SETTLE_SECONDS = 1.0
# On file systems that do not report changes, such as those of other machines.
POLL_SECONDS = 10
CHANGES = ("closed", "created", "deleted", "modified", "moved")


class FolderWatcher(FileSystemEventHandler):
    """Call `look_again` in another thread when scans have changed in a folder.

    Args:
        folder: to watch, with all folders in it.
        polls: look at the folder every `POLL_SECONDS`, as its file system reports no changes.
        look_again: what to call when nothing has changed for `SETTLE_SECONDS`.
    """

    def __init__(self, folder: str, polls: bool, look_again: Callable[[], Any]) -> None:
        self.folder, self.look_again = folder, look_again
        self._changed = threading.Event()
        observer: Any = PollingObserver(timeout=POLL_SECONDS) if polls else Observer()
        observer.schedule(self, folder, recursive=True)
        try:
            observer.start()
        except OSError as error:
            logger.warning(
                "%s: cannot be watched (%s), so new scans are found at the next start.",
                folder,
                error,
            )
            return
        threading.Thread(target=self._wait, daemon=True).start()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note a change of anything but hidden files and the datastore's own."""
        if event.event_type not in CHANGES or (
            event.is_directory and event.event_type == "modified"
        ):
            return
        for path in filter(None, (os.fsdecode(event.src_path), os.fsdecode(event.dest_path))):
            parts = Path(os.path.relpath(path, self.folder)).parts
            if not (any(map(is_hidden, parts)) or parts[0] in OWN):
                self._changed.set()

    def _wait(self) -> None:
        while self._changed.wait():
            while self._changed.is_set():
                self._changed.clear()
                time.sleep(SETTLE_SECONDS)
            try:
                self.look_again()
            # The cause may be gone the next time.
            except Exception:
                logger.exception("%s: was not looked through.", self.folder)
