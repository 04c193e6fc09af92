"""Segment one case as it was asked for, unless that is done."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import liverseg
from liverseg.engines import is_of_machine, reason_of
from liverseg.files import NotSavedError, check_writable, write_json
from liverseg.io.dicom import files_at
from liverseg.io.paths import volume_suffix
from liverseg.workbench.segment.bundles import names_of
from liverseg.workbench.segment.cases import Case
from liverseg.workbench.segment.inference import Options, run_inference, settings_of
from liverseg.workbench.segment.outputs import Wanted, write_outputs

logger = logging.getLogger(__name__)

RECORD = "case.json"


@dataclass(frozen=True)
class Request:
    """What is asked for, the same for each case of a run.

    Attributes:
        bundle: its folder; of an ensemble the first.
        options: what the bundle is asked to do.
        wanted: what is written beside each mask.
        modality: `ct` or `mr`.
        weights: sha256 of each file with weights.
        others: folders of the other bundles of an ensemble.
        digest: of all that decides the results.
    """

    bundle: Path
    options: Options
    wanted: Wanted
    modality: str
    weights: Mapping[str, str]
    others: Sequence[Path] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        decides = [
            self.name, dict(self.weights), asdict(self.options), asdict(self.wanted),
            liverseg.__version__,
            *((folder / "configs" / "inference.json").read_text("utf-8")
              for folder in (self.bundle, *self.others)),
        ]  # fmt: skip
        text = json.dumps(decides, sort_keys=True, default=str)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    @property
    def name(self) -> str:
        """The bundle's name; of an ensemble all of theirs."""
        return names_of([self.bundle, *self.others])


def recorded(case: Case, folder: Path, request: Request) -> dict[str, Any] | None:
    """Return the record of a case that is done as requested, of the same scan; else None."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        same = (record["request"], record["state"]) == (request.digest, _state(case.scan))
        there = all((folder / name).is_file() for name in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if same and there and "error" not in record else None


def segment_unless_done(case: Case, folder: Path, request: Request) -> dict[str, Any]:
    """Segment a case that its process, or its machine, may have ended after."""
    return recorded(case, folder, request) or segment_case(case, folder, request)


def segment_case(case: Case, folder: Path, request: Request) -> dict[str, Any]:
    """Segment a case and write all that is requested; a case that fails ends no others.

    Returns:
        What `case.json` in the folder holds, too: `name`, `scan`, `request`, `state` and `sha256`
        of the scan's files, `seconds`, and `mask`, `files`, `volume_ml`, `flags`, `warnings`,
        `statistics`; or `error`.

    Raises:
        OSError, RuntimeError: where the machine is to blame: a disk that is full, a GPU that fails.
    """
    started = time.monotonic()
    record: dict[str, Any] = {"name": case.name, "scan": case.scan, "request": request.digest}
    try:
        record |= {"state": _state(case.scan), "sha256": sha256_of(case.scan)}
        # What it says is no longer so from here on, also where this run ends half-way.
        (check_writable(folder) / RECORD).unlink(missing_ok=True)
        record |= _segment(case, folder, request, started)
    except Exception as error:
        if is_of_machine(error):
            raise
        record["error"] = reason_of(error)
        logger.exception("%s failed", case.scan) if _is_unexpected(error) else None
    record["seconds"] = round(time.monotonic() - started, 2)
    return write_record(folder, record)


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the record of a case, and return it; one that cannot be written has an `error`.

    Raises:
        NotSavedError: where the machine is to blame, as in `segment_case`.
    """
    try:
        write_json(folder / RECORD, record)
    except NotSavedError as error:
        if is_of_machine(error):
            raise
        record.setdefault("error", str(error))
    return record


def _segment(case: Case, folder: Path, request: Request, started: float) -> dict[str, Any]:
    segmentation, entry = run_inference(
        [request.bundle, *request.others],
        case.scan,
        folder,
        request.options,
        request.wanted.probabilities,
    )
    mask = folder / entry["mask"]
    inference_seconds = round(time.monotonic() - started, 2)
    facts = {
        "Settings": ", ".join(
            f"{name} {value}"
            for name, value in settings_of(request.bundle, request.options).items()
        ) or "the bundle's defaults",
        "Time": f"{inference_seconds:.1f} s",
    }  # fmt: skip
    made = write_outputs(segmentation, mask, request.wanted, request.modality, facts)
    return {
        "mask": entry["mask"],
        "volume_ml": segmentation.volumes_ml,
        "flags": entry.get("flags", {}),
        "warnings": entry["warnings"],
        "inference_seconds": inference_seconds,
        **made,
    }


def sha256_of(scan: str) -> str:
    """Return the sha256 of a scan's file, or of the sha256 of all its files in their order."""
    digests = []
    for path in _files(scan):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _state(scan: str) -> list[list[Any]]:
    """Return name, size and time of each file of a scan."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in _files(scan)]


def _files(scan: str) -> list[Path]:
    path = Path(scan)
    return [path] if volume_suffix(scan) and path.is_file() else sorted(files_at(path))


def _is_unexpected(error: Exception) -> bool:
    from liverseg.errors import message

    return message(error) is None
