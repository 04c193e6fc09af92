"""Turn a data set as it is downloaded into a checked datalist, case by case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from tqdm import tqdm

from liverseg import __version__
from liverseg.data import write_datalist
from liverseg.data.datalist import check_folds, relative
from liverseg.data.datalist_schema import read_datalist
from liverseg.errors import InputError
from liverseg.files import NotSavedError, atomic_write, check_writable, write_text
from liverseg.io.masks import scan_names
from liverseg.io.nifti import write_nifti
from liverseg.io.paths import absolute
from liverseg.io.volumes import as_int16
from liverseg.outputs.overlays import MASK_COLOUR, REFERENCE_COLOUR
from liverseg.workbench.datasets.check import BROKEN, OK, SUSPICIOUS, CaseCheck, check_case
from liverseg.workbench.datasets.layout import Case, Layout, check_own
from liverseg.workbench.datasets.split import check_share, set_apart

Report = dict[str, Any]
NIFTI, CASES = ("images", "labels"), "check"


def convert(
    layout: Layout, root: Path, out: Path, num_folds: int, seed: int, test_share: float = 0
) -> Path:
    """Write `dataset.json`, `check.html`, `check.json` and, of DICOM, `images/` and `labels/`.

    The last two hold NIfTI.

    A case that is finished is not read again, as long as its files are what they were; a broken one
    is.

    Args:
        layout: how the data set lies on disk.
        root: its folder.
        out: the folder to write.
        num_folds: folds, split by patient.
        seed: decides the folds, and who is set apart.
        test_share: share of the patients in the section `test` and in no fold.

    Returns:
        The datalist. Broken cases are not in it, suspicious ones are.

    Raises:
        InputError: when `root` is not such a data set or has too few patients for the folds, `out`
            cannot be written or holds another one, and, once everything is written, when a case is
            broken or too few patients are left.
    """
    path = out / "dataset.json"
    check_own(path, layout.name)
    check_share(test_share)
    cases = layout.find(root)
    patients = len({case.patient for case in cases})
    check_folds(num_folds, patients - round(test_share * patients))
    reports = _check_cases(cases, check_writable(out), layout)
    good = [report for report in reports if report["verdict"] != BROKEN]
    patients = len({report["patient"] for report in good})
    left = patients - round(test_share * patients)
    if left >= num_folds or len(good) == len(reports):
        items = [{key: report[key] for key in ("image", "label", "patient")} for report in good]
        training, test = set_apart(items, test_share, seed) if test_share else (items, [])
        write_datalist(
            path, training, layout.labels, test, num_folds=num_folds, seed=seed, name=layout.name
        )
        _complain(reports, out, "left out of dataset.json")
    _complain(
        reports,
        out,
        f"left out, and dataset.json is not written, with too few patients ({num_folds} folds)",
    )
    return path


def check_datalist(path: Path) -> Path:
    """Write `check.html` and `check.json` beside a datalist, for all its scans with a label.

    Raises:
        InputError: as `read_datalist`, for one without names of the labels or scans with one, and,
            once everything is written, when a case is broken.
    """
    known = read_datalist(path)
    if not known.labels:
        raise InputError(
            f'{path}: labels: found none, expected the name of each value, as {{"0": '
            '"background", "1": "liver"}: add them.'
        )
    pairs = [item for items in known.sections.values() for item in items if "label" in item]
    names = scan_names([item["image"] for item in pairs])
    cases = [
        Case(
            name if names.count(name) == 1 else f"{index}-{name}",
            item["patient"],
            Path(item["image"]),
            Path(item["label"]),
        )
        for index, (name, item) in enumerate(zip(names, pairs, strict=True))
    ]
    if not cases:
        raise InputError(f"{path}: no scan with a label in it, expected at least one: add one.")
    labels = {str(value): name for value, name in known.labels.items()}
    layout = Layout(known.name or path.parent.name, None, labels, lambda _: cases)
    _complain(
        _check_cases(cases, check_writable(path.parent), layout),
        path.parent,
        f"still in {path.name}",
    )
    return path.parent / "check.html"


def _complain(reports: Sequence[Report], out: Path, consequence: str) -> None:
    if broken := [report["name"] for report in reports if report["verdict"] == BROKEN]:
        raise InputError(
            f"{out}: {len(broken)} of {len(reports)} cases are broken and "
            f"{consequence} ({', '.join(broken)}), expected none: see check.html for "
            "the reasons, fix them and run again."
        )


def _check_cases(cases: Sequence[Case], out: Path, layout: Layout) -> list[Report]:
    (out / CASES).mkdir(exist_ok=True)
    reports = []
    for case in tqdm(cases, desc=layout.name, unit="case"):
        record = out / CASES / f"{case.name}.json"
        signature = _signature(case, layout)
        report = _finished(record, signature, out)
        if report is None:
            report = _do(case, out, layout)
            write_text(record, json.dumps({"signature": signature, **report}, indent=1))
        reports.append(report)
    counts = {
        verdict: sum(report["verdict"] == verdict for report in reports)
        for verdict in (OK, SUSPICIOUS, BROKEN)
    }
    summary = {"name": layout.name, **counts, "cases": reports}
    write_text(out / "check.json", json.dumps(summary, indent=1, ensure_ascii=False))
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files(__package__) / "check.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        summary,
        cases=sorted(reports, key=lambda report: (BROKEN, SUSPICIOUS, OK).index(report["verdict"])),
        mask_colour=MASK_COLOUR,
        other_colour=REFERENCE_COLOUR,
    )
    write_text(out / "check.html", page)
    return reports


def _do(case: Case, out: Path, layout: Layout) -> Report:
    image, label = case.image, case.label
    for partial in out.glob("*/.*"):
        # What a run that was killed while it wrote has left.
        if partial.parent.name in (*NIFTI, CASES) and partial.name.startswith(f".{case.name}."):
            partial.unlink()
    try:
        if layout.read:
            volume = layout.read(case.image, case.label)
            image, label = (out / kind / f"{case.name}.nii.gz" for kind in NIFTI)
            for path, array in ((label, volume.label), (image, as_int16(volume.image))):
                path.parent.mkdir(exist_ok=True)
                write_nifti(path, array, volume.affine)
            # The check reads the files, and two copies of a scan may be more than memory holds.
            del volume, array
        found = check_case(image, label, layout.labels, layout.modality)
    except NotSavedError:
        raise
    except InputError as error:
        found = CaseCheck(broken=[str(error)])
    return _report(case, out, image, label, found)


def _report(case: Case, out: Path, image: Path, label: Path, found: CaseCheck) -> Report:
    picture = out / CASES / f"{case.name}.png"
    if found.png:
        with atomic_write(picture) as file:
            file.write(found.png)
    return {
        "name": case.name,
        "patient": case.patient,
        "verdict": found.verdict,
        "reasons": [*found.broken, *found.suspicious],
        "image": relative(image, out),
        "label": relative(label, out),
        "picture": f"{CASES}/{picture.name}" if found.png else None,
        **found.facts,
    }


def _finished(record: Path, signature: str, out: Path) -> Report | None:
    """Return the report of a case that is not broken and whose files are as they were, or None."""
    try:
        report = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if report.pop("signature", "") != signature or report["verdict"] == BROKEN:
        return None
    there = all((out / report[key]).exists() for key in ("image", "label", "picture"))
    return report if there else None


def _signature(case: Case, layout: Layout) -> str:
    """Return text that changes when a file of the case does, or what is made of it.

    It needs no look into the files.
    """
    states: list[Any] = [__version__, layout.modality, dict(layout.labels)]
    for source in (case.image, case.label):
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            state = path.stat() if path.exists() else None
            states.append((str(absolute(path)), state and (state.st_size, state.st_mtime_ns)))
    return hashlib.sha256(repr(states).encode()).hexdigest()
