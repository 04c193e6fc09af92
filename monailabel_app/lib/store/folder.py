"""A folder of studies: which files in it are scans, and what they are called."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.store.local import LockedDatastore
from lib.store.series import name_series, read_record, record_file, state_of
from lib.store.watcher import FolderWatcher
from liverseg.errors import InputError
from liverseg.files import NotSavedError, check_writable, write_json
from liverseg.io.dicom import describe
from liverseg.io.nifti import open_nifti
from liverseg.io.paths import LeftOut, is_hidden, nifti_suffix, volume_suffix
from liverseg.io.volumes import read_volume_grid, save_as_nifti
from liverseg.transforms import LoadVolumed

logger = logging.getLogger(__name__)

LABELS = ["*.nii.gz", "*.nii", "*.nrrd"]


class FolderDatastore(LockedDatastore):
    """MONAI Label's, with all scans that can be read; its status names what else is in the folder.

    Scans are the NIfTI files directly in the folder, and the DICOM series in it and below. NIfTI
    files below are no scans, as labels and masks are among them. The name of a scan is its path in
    the folder without the suffix, with `_` between folders: the series in `s0001/CT` is
    `s0001_CT`. Clients get it as NIfTI, which every client opens. That file is made of the series
    once, and again when the series' files change, in the hidden folder `.series`. The patient is
    read from the headers and stored in the scan's info, as for a series of a DICOM server.

    Each scan is read once before a client gets it. The status names what then is no volume, and no
    client is offered it.

    MONAI Label's own offers every file with the suffix of an image, even an empty one, and does not
    mention the rest.

    Args:
        folder: of the studies.
        watch: look again when something changes in the folder.
        read_only: take the list of scans as it is on the disk.

    Raises:
        InputError: for a folder that cannot be written.
    """

    def __init__(self, folder: str, watch: bool, read_only: bool) -> None:
        self.left_out = ""
        self.read_only = read_only
        self.converting = FileLock(Path(folder) / ".lock_of_series")
        # The name of each series and whose it is, by its path in the folder, and what is no scan.
        self._series: dict[str, str] = {}
        self._whose: dict[str, dict[str, str]] = {}
        self._no_series = LeftOut(list)
        # What was found in a state of the files of a scan, by scan.
        self._problems: dict[str, tuple[str, str]] = {}
        check_writable(folder)
        if not read_only:
            self._find_series(Path(folder))
        super().__init__(folder, extensions=LABELS, read_only=read_only)
        if watch:
            FolderWatcher(folder, self._is_on_mount(folder), self._look_again)

    def get_image_uri(self, image_id: str) -> str:
        """The scan as NIfTI; "" for one that is not in the folder.

        Raises:
            InputError: for a file or a series that is no volume.
            NotSavedError: where the disk has no space for the NIfTI file of a series.
        """
        scan = super().get_image_uri(image_id)
        if not scan:
            return ""
        copy = self._copy_of(image_id, scan)
        state = state_of(scan)
        seen, problem = self._problems.get(image_id, (None, ""))
        if seen != state or not (problem or copy.exists()):
            problem = self._read(scan, copy, state)
            self._problems[image_id] = state, problem
        if problem:
            raise InputError(problem)
        return str(copy)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of a scan; `name` and `path` are those of the NIfTI file."""
        info = super().get_image_info(image_id)
        if not info:
            return {}
        copy = self._copy_of(image_id, info["path"])
        if str(copy) != info["path"]:
            info["warnings"] = read_record(copy).get("warnings", [])
        return {**info, "name": copy.name, "path": str(copy)}

    def get_unlabeled_images(self, *_: Any) -> list[str]:
        """The scans without a final label, but for those that could not be read."""
        unreadable = self._unreadable()
        return [image for image in super().get_unlabeled_images() if image not in unreadable]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """The scans that can be read and have a final label.

        Raises:
            NotSavedError: as `get_image_uri`.
        """
        found = []
        for name in sorted(self.get_labeled_images()):
            try:
                image = self.get_image_uri(name)
            except NotSavedError:
                raise
            # The status names it.
            except InputError:
                continue
            found.append({"image": image, "label": self.get_label_uri(name, DefaultLabelTag.FINAL)})
        return found

    def status(self) -> dict[str, Any]:
        """How many scans there are and have a label, what is unreadable, and what is no scan."""
        return {
            **super().status(),
            "unreadable_scans": self._unreadable(),
            "left_out": self.left_out,
        }

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Save a scan; returns its id.

        Raises:
            InputError: where a file of that name is no scan.
        """
        name, suffix = self._to_id(os.path.basename(image_filename))
        file = self._place(f"{image_id or name}{suffix}")
        if os.path.exists(file):
            raise InputError(
                f"{file}: found a file that is no scan, expected none: remove it, or choose "
                "another name."
            )
        return super().add_image(image_id, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        """Remove a scan and all its labels.

        Raises:
            ImageNotFoundException: if there is none.
            InputError: for a DICOM series.
        """
        if super().get_image_uri(image_id) in map(self._place, self._series):
            raise InputError(
                f"image {image_id}: found a DICOM series, expected a NIfTI file: remove the "
                "series' folder by hand."
            )
        super().remove_image(image_id)

    def _place(self, name: str) -> str:
        return os.path.abspath(os.path.join(self._datastore_path, name))

    def _copy_of(self, image_id: str, scan: str) -> Path:
        """Where a scan lies as NIfTI."""
        if nifti_suffix(scan) and not os.path.isdir(scan):
            return Path(scan)
        return Path(self._datastore_path, ".series", f"{image_id}.nii.gz")

    def _read(self, scan: str, copy: Path, state: str) -> str:
        """Read a scan in a state, and write it as NIfTI if it is none; returns what is wrong."""
        try:
            if str(copy) == scan:
                LoadVolumed("image")({"image": scan})
                return ""
            with self.converting:
                if not copy.is_file() or read_record(copy).get("state") != state:
                    check_writable(copy.parent)
                    # The state is the one before, so that what comes while it is read is found out.
                    record = {"state": state, "warnings": save_as_nifti(scan, copy)}
                    write_json(record_file(copy), record)
        # It says nothing of the scan.
        except NotSavedError:
            raise
        except InputError as error:
            return str(error)
        return ""

    def _unreadable(self) -> dict[str, str]:
        """What is wrong with scans that were read, as long as their files are those."""
        found = {}
        for image, (state, problem) in list(self._problems.items()):
            if problem and state == state_of(super().get_image_uri(image)):
                found[image] = problem.replace(f"{self._datastore_path}{os.sep}", "")
        return found

    def _to_id(self, file: str) -> tuple[str, str]:
        # The list of scans keeps a name and what follows it in the path, which is all of a series'
        # path.
        return (self._series[file], f"/{file}") if file in self._series else super()._to_id(file)

    def _filename(self, id: str, ext: str) -> str:
        return ext[1:] if ext.startswith("/") else super()._filename(id, ext)

    def _list_files(self, path: str, patterns: Collection[str]) -> dict[str, str]:
        if path != self._datastore.image_path():
            return super()._list_files(path, patterns)
        left_out = LeftOut(list, {reason: list(files) for reason, files in self._no_series.items()})
        names = [name for name in os.listdir(path) if volume_suffix(name) and not is_hidden(name)]
        segmentations = [name for name in names if name.lower().endswith(".seg.nrrd")]
        if segmentations:
            left_out["segmentation of 3D Slicer"] = [Path(name) for name in sorted(segmentations)]
        names = [name for name in names if name not in segmentations]
        files = [name for name in names if not os.path.isdir(os.path.join(path, name))]
        found: dict[str, str] = {}
        for name in [
            *sorted(files, key=lambda name: (name[-3:].lower() != ".gz", name)),
            *self._series,
        ]:
            file = self._place(name)
            if name not in self._series and not _has_header(file, state_of(file)):
                left_out["no volume"].append(Path(name))
            elif found.setdefault(self._to_id(name)[0], name) != name:
                left_out["called as another scan"].append(Path(name))
        message = describe(left_out)
        if message and message != self.left_out:
            logger.warning(
                "%s: found %d scans; left out as none: %s.",
                self._datastore_path,
                len(found),
                message,
            )
        self.left_out = message
        return {name: name for name in found.values()}

    def _add_non_existing_images(self) -> int:
        changed = super()._add_non_existing_images()
        # A process that trains reads no headers.
        for path, whose in self._whose.items():
            scan = self._datastore.objects.get(self._series.get(path, ""))
            if (
                scan
                and scan.image.ext == f"/{path}"
                and not whose.items() <= scan.image.info.items()
            ):
                scan.image.info.update(whose)
                changed += 1
        return changed

    def _remove_non_existing(self) -> int:
        removed = super()._remove_non_existing()
        if self.read_only:
            return removed
        listed = {self._to_id(name) for name in self._list_files(self._datastore.image_path(), ())}
        scans = self._datastore.objects
        # What is known of a label would be lost with a scan that only is being copied.
        gone = [
            name
            for name, scan in scans.items()
            if not scan.labels and (name, scan.image.ext) not in listed
        ]
        for name in gone:
            del scans[name]
        return removed + len(gone)

    def _find_series(self, folder: Path) -> None:
        try:
            self._series, self._whose, self._no_series = name_series(folder)
        # A folder in it that is another's.
        except OSError as error:
            logger.warning("%s: not searched for DICOM series (%s).", folder, error)

    def _look_again(self) -> None:
        self._find_series(Path(self._datastore_path))
        self.refresh()


@functools.cache
def _has_header(file: str, state: str) -> bool:
    """Whether a file is a volume by its header, which is read once in each state."""
    try:
        # Of NIfTI, a header without a place is one that can be put right.
        open_nifti(file) if nifti_suffix(file) else read_volume_grid(file)
    except InputError:
        return False
    return True
