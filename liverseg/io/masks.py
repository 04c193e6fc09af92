"""Write masks of scans in a folder, each under its own name, and a summary of whose each is."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

import liverseg
from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.io.nifti import write_nifti
from liverseg.io.paths import NIFTI_SUFFIXES, absolute, stem_of

SUMMARY = "summary.json"
# File systems end at 255 bytes, and the postfix and the temporary file's letters need some of them.
LONGEST_STEM_BYTES = 180


class MaskFolder:
    """A folder of masks, in which no scan ever takes the name of another one's mask.

    The mask of a scan is `<scan>_<postfix><suffix>`, the scan called by its file or folder, without
    the suffix. Where another scan of this run is called so too, or the name is that of a mask which
    is another scan's or of no known scan, as many folders above the scan are put before it as tell
    them apart: `s0001_ct_liver.nii.gz`. Where no folder does, as for `a.nii` beside `a.nii.gz`, a
    short sha256 of the path follows: `a_1b2c3d4e_liver.nii.gz`. Upper and lower case are the same
    here, as they are in the folders of macOS and Windows. A scan that comes again, in this run or a
    later one, replaces its own mask.

    What belongs to whom is in the folder's `summary.json`. Its `scans` is a list with, for each
    scan,

    - `image`, its path, and `mask`, the name of its mask in this folder;
    - `volume_ml` of each class that is looked for; `warnings`, messages on what is odd about the
      scan;
    - `flags`, by a short name the messages on why the mask may be wrong, where masks are looked at;
    - `bundle` and `version` of the bundle, and `liverseg`, the version of this package;
    - `error`, where the scan failed in the last run; a `mask` beside it is of a run before.

    Several processes may write into one folder at the same time.

    Args:
        folder: made when there is something to write.
        postfix: of the masks' names.
        suffix: `.nii.gz` or `.nii`.
        scans: all items of this run, `{"image": path}`, so that those called alike are named alike.
        bundle_root: the folder of the bundle that makes the masks; its `metadata.json` names the
            classes.
        targets: the names of those that are looked for; None for all.

    Raises:
        InputError: for another suffix, or a postfix that would lead into another folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        postfix: str,
        suffix: str = NIFTI_SUFFIXES[0],
        scans: Sequence[Mapping[str, Any]] = (),
        bundle_root: str | os.PathLike[str] | None = None,
        targets: Collection[str] | None = None,
    ) -> None:
        if suffix not in NIFTI_SUFFIXES:
            raise InputError(
                f"output_ext: found {suffix!r}, expected {' or '.join(NIFTI_SUFFIXES)}, the "
                "formats that masks are written in: set it to one of these."
            )
        if not postfix or Path(postfix).name != postfix:
            raise InputError(
                f"output_postfix: found {postfix!r}, expected a word that ends the "
                "masks' names: set it to liver."
            )
        self.folder = Path(folder)
        self.tail = f"_{postfix}{suffix}"
        self.first_choice = _first_choices([str(absolute(item["image"])) for item in scans])
        self.class_names, self.made_by = _bundle(bundle_root)
        self.targets = {
            value for value, name in self.class_names.items() if targets is None or name in targets
        }

    def check(self) -> None:
        """Refuse now what would only come up when the first mask is there.

        Raises:
            InputError: for a folder that cannot be written, and a `summary.json` that cannot be
                read.
        """
        check_writable(self.folder)
        _read(self.folder)

    def save(
        self,
        scan: str | os.PathLike[str],
        mask: np.ndarray,
        affine: np.ndarray,
        warnings: Sequence[str] = (),
        flags: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the mask of a scan, whole or not at all, and record it.

        Args:
            scan: its path.
            mask: (H, W, D), uint8, class indices.
            affine: (4, 4), voxel index to RAS mm.
            warnings: what is odd about the scan, one message each.
            flags: why the mask may be wrong, one message each by a short name; None where nobody
                has looked.

        Returns:
            The mask's file.

        Raises:
            InputError: when it cannot be written.
        """
        image = str(absolute(scan))
        volumes_ml = self._volumes_ml(mask, affine)
        found: dict[str, Any] = {"volume_ml": volumes_ml, "warnings": list(warnings)}
        found |= {} if flags is None else {"flags": dict(flags)}
        with open_summary(self.folder) as summary:
            scans = summary["scans"]
            name = self._name(image, scans)
            write_nifti(self.folder / name, np.asarray(mask, np.uint8), affine)
            self._replace(scans, {"image": image, "mask": name, **found, **self.made_by})
        return self.folder / name

    def record_failure(self, scan: str | os.PathLike[str], error: str) -> None:
        """Record that a scan has failed; a mask that it has from before stays its own.

        Raises:
            InputError: when it cannot be written.
        """
        image = str(absolute(scan))
        with open_summary(self.folder) as summary:
            scans = summary["scans"]
            before: dict[str, Any] = next(
                (entry for entry in scans if self._is_of(entry, image)), {}
            )
            self._replace(scans, {**before, "image": image, "error": error})

    def _name(self, image: str, scans: Sequence[Mapping[str, Any]]) -> str:
        for entry in scans:
            if "mask" in entry and self._is_of(entry, image):
                return str(entry["mask"])
        names = [f"{stem}{self.tail}" for stem in _stems(image)]
        taken = {path.name.lower() for path in self.folder.iterdir()} | {
            entry["mask"].lower() for entry in scans if "mask" in entry
        }
        free = (
            name for name in names[self.first_choice.get(image, 0) :] if name.lower() not in taken
        )
        # The last has the path in it, so if it is there it is this scan's.
        return next(free, names[-1])

    def _is_of(self, entry: Mapping[str, Any], image: str) -> bool:
        """Return whether an entry is of this scan and, where it has a mask, of this name's kind."""
        # First, as a folder may have thousands of entries.
        if entry["image"] != image:
            return False
        names = [f"{stem}{self.tail}" for stem in _stems(image)]
        return entry.get("mask", names[0]) in names

    def _replace(self, scans: list[dict[str, Any]], entry: dict[str, Any]) -> None:
        scans[:] = [other for other in scans if not self._is_of(other, entry["image"])]
        scans.append(entry)

    def _volumes_ml(self, mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
        # Slice by slice, as a count makes 8 bytes of each voxel.
        counts = sum(
            np.bincount(plane.ravel(), minlength=256) for plane in np.moveaxis(mask, -1, 0)
        )
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        values = {*np.flatnonzero(counts).tolist(), *self.targets} - {0}
        return {
            self.class_names.get(value, str(value)): round(
                float(np.take(counts, value)) * voxel_ml, 3
            )
            for value in sorted(values)
        }


@contextmanager
def open_summary(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of a folder's `summary.json`, for one process at a time.

    What the block makes of it is written. Its `scans` are those of `MaskFolder`; the rest is that
    of `SegmentationReport`.

    Raises:
        InputError: for one that cannot be read, or written.
    """
    check_writable(folder)
    with FileLock(folder / f".{SUMMARY}.lock"):
        content = _read(folder)
        yield content
        content["scans"].sort(key=lambda entry: (entry["image"], entry.get("mask", "")))
        text = json.dumps(content, indent=1, allow_nan=False)
        with atomic_write(folder / SUMMARY) as file:
            file.write(f"{text}\n".encode())


def recorded_scans(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the `scans` of the `summary.json` that `MaskFolder` writes; none where there is none.

    Raises:
        InputError: for one that cannot be read.
    """
    return _read(Path(folder))["scans"]


def recorded_masks(folder: str | os.PathLike[str]) -> set[str]:
    """Return the names of the masks that `MaskFolder` wrote into a folder.

    None where its `summary.json` is another's.
    """
    try:
        scans = recorded_scans(folder)
    except InputError:
        return set()
    return {str(entry["mask"]) for entry in scans if isinstance(entry, Mapping) and "mask" in entry}


def find_mask(folder: str | os.PathLike[str], scan: str | os.PathLike[str]) -> Path | None:
    """Return the newest mask of a scan in a folder that `MaskFolder` wrote, None without any.

    Raises:
        InputError: for a `summary.json` that cannot be read.
    """
    image = str(absolute(scan))
    own = [
        entry["mask"]
        for entry in recorded_scans(folder)
        if entry["image"] == image and "mask" in entry
    ]
    found = [path for name in own if (path := Path(folder) / name).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def recorded_flags(mask: str | os.PathLike[str]) -> dict[str, str]:
    """Return the flags that `MaskFolder` recorded of a mask; none of one that it did not write."""
    path = Path(mask)
    try:
        scans = recorded_scans(path.parent)
    except InputError:
        return {}
    own = (entry for entry in scans if entry.get("mask") == path.name)
    return dict(next(own, {}).get("flags", {}))


def scan_names(images: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a name for each scan that no other has, as `MaskFolder` begins their masks' names."""
    paths = [str(absolute(image)) for image in images]
    choices = _first_choices(paths)
    return [_stems(path)[choices[path]] for path in paths]


def class_names(metadata: Mapping[str, Any]) -> dict[int, str]:
    """Return the name of each value in a bundle's masks that its `metadata.json` names."""
    data_format = metadata.get("network_data_format", {})
    # As the schema has it: the first where postprocessing changes what the network gives.
    outputs = data_format.get("post_processed_outputs") or data_format.get("outputs", {})
    output: dict[str, Any] = next(iter(outputs.values()), {})
    return {int(value): name for value, name in output.get("channel_def", {}).items()}


def _stems(image: str) -> list[str]:
    """Return the names a scan may have, from the shortest, maybe shared, to one that is unique."""
    path = Path(image)
    stems = [stem_of(path)]
    for folder in reversed(path.parent.relative_to(path.anchor).parts):
        stems.append(f"{folder}_{stems[-1]}")
    short = os.fsencode(stems[0])[: LONGEST_STEM_BYTES - 9].decode(errors="ignore")
    digest = hashlib.sha256(image.encode(errors="surrogateescape")).hexdigest()[:8]
    return [stem for stem in stems if len(os.fsencode(stem)) <= LONGEST_STEM_BYTES] + [
        f"{short}_{digest}"
    ]


def _first_choices(images: Sequence[str]) -> dict[str, int]:
    """Return, for each scan, the first of its `_stems` that no other of the scans is called."""
    stems = {image: _stems(image) for image in images}
    choice = dict.fromkeys(stems, 0)
    while True:
        called = {image: stems[image][number].lower() for image, number in choice.items()}
        count = Counter(called.values())
        shared = [image for image, stem in called.items() if count[stem] > 1]
        if not shared:
            return choice
        for image in shared:
            choice[image] += 1


def _bundle(folder: str | os.PathLike[str] | None) -> tuple[dict[int, str], dict[str, str]]:
    """Return the names of the classes, and what is recorded of the bundle."""
    made_by = {"liverseg": liverseg.__version__}
    file = absolute(folder) / "configs" / "metadata.json" if folder is not None else None
    if file is None or not file.is_file():
        return {}, made_by
    metadata = json.loads(file.read_text(encoding="utf-8"))
    made_by |= {"bundle": file.parents[1].name, "version": str(metadata.get("version"))}
    return {value: name for value, name in class_names(metadata).items() if value > 0}, made_by


def _read(folder: Path) -> dict[str, Any]:
    file = folder / SUMMARY
    if not file.is_file():
        return {"scans": []}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content, "scans": [*content.get("scans", [])]}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{file}: not readable ({reason}), expected the record of whose masks these are: move "
            "it away, or choose another folder."
        ) from error
