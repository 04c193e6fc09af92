"""Turn a data set as it is downloaded into a checked datalist: case by case, again only where something is new."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from tqdm import tqdm

from liverseg import __version__
from liverseg.data import write_datalist
from liverseg.data.datalist import patient_of
from liverseg.errors import InputError
from liverseg.files import check_writable, write_atomically
from liverseg.io.nifti import write_nifti
from liverseg.io.volumes import as_int16
from liverseg.workbench.datasets.check import BROKEN, OK, SUSPICIOUS, Judgement, judge
from liverseg.workbench.datasets.layout import Case, Layout
from liverseg.workbench.report.overlays import MASK_COLOUR, REFERENCE_COLOUR

Report = dict[str, Any]
NIFTI, CASES = ("images", "labels"), "check"


def convert(layout: Layout, root: Path, out: Path, num_folds: int, seed: int) -> Path:
    """Write `dataset.json`, `check.html`, `check.json` and, for DICOM, `images/` and `labels/` as NIfTI.

    A case that is finished is not read again, as long as its files are what they were; a broken one is.

    Args:
        layout: how the data set lies on disk.
        root: its folder.
        out: the folder to write.
        num_folds: folds, split by patient.
        seed: decides the folds.

    Returns:
        The datalist. Broken cases are not in it, suspicious ones are.

    Raises:
        InputError: when `root` is not such a data set, `out` cannot be written or holds another one, and, once
            everything is written, when a case is broken or too few patients are left for the folds.
    """
    path = out / "dataset.json"
    _check_own(path, layout)
    reports = _check_cases(layout.find(root), check_writable(out), layout)
    good = [report for report in reports if report["verdict"] != BROKEN]
    patients = len({report["patient"] for report in good})
    if patients >= num_folds or len(good) == len(reports):
        items = [{key: report[key] for key in ("image", "label", "patient")} for report in good]
        write_datalist(path, items, layout.labels, num_folds=num_folds, seed=seed, name=layout.name)
        _complain(reports, out, "left out of dataset.json")
    _complain(reports, out, f"left out, and dataset.json is not written for want of patients ({num_folds} folds)")
    return path


def check_datalist(path: Path) -> Path:
    """Write `check.html` and `check.json` beside a datalist, for all its scans with a label.

    Raises:
        InputError: for a datalist that cannot be read, and, once everything is written, when a case is broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        items = [item for section in ("training", "validation", "test") for item in content.get(section, ())]
        pairs = [item for item in items if isinstance(item, dict) and "label" in item]
        labels = {str(int(value)): str(name) for value, name in content["labels"].items()}
        cases = [
            Case(
                f"{index}-{Path(item['image']).name.split('.')[0]}",
                patient_of(item),
                path.parent / item["image"],
                path.parent / item["label"],
            )
            for index, item in enumerate(pairs)
        ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: not readable ({reason}), expected a Decathlon datalist with labels and images: mend it."
        ) from error
    if not cases:
        raise InputError(f"{path}: no scan with a label in it, expected at least one: add one.")
    layout = Layout(str(content.get("name") or path.parent.name), None, labels, lambda _: cases)
    _complain(_check_cases(cases, check_writable(path.parent), layout), path.parent, f"still in {path.name}")
    return path.parent / "check.html"


def _check_own(path: Path, layout: Layout) -> None:
    """Raise InputError where another data set's datalist would be overwritten."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("name")
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError):
        found = None
    if found != layout.name:
        raise InputError(
            f"{path}: a datalist of {found or 'something else'} is there, expected none or that of {layout.name}: "
            "choose another folder with --out."
        )


def _complain(reports: Sequence[Report], out: Path, consequence: str) -> None:
    if broken := [report["name"] for report in reports if report["verdict"] == BROKEN]:
        raise InputError(
            f"{out}: {len(broken)} of {len(reports)} cases are broken and {consequence} ({', '.join(broken)}), "
            "expected none: see check.html for the reasons, mend them and run again."
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
            _write_text(record, json.dumps({"signature": signature, **report}, indent=1))
        reports.append(report)
    counts = {verdict: sum(report["verdict"] == verdict for report in reports) for verdict in (OK, SUSPICIOUS, BROKEN)}
    summary = {"name": layout.name, **counts, "cases": reports}
    _write_text(out / "check.json", json.dumps(summary, indent=1, ensure_ascii=False))
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files(__package__) / "check.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        summary,
        cases=sorted(reports, key=lambda report: (BROKEN, SUSPICIOUS, OK).index(report["verdict"])),
        mask_colour=MASK_COLOUR,
        other_colour=REFERENCE_COLOUR,
    )
    _write_text(out / "check.html", page)
    return reports


def _do(case: Case, out: Path, layout: Layout) -> Report:
    image, label, volume = case.image, case.label, None
    for partial in out.glob("*/.*"):
        # What a run that was killed while it wrote has left.
        if partial.parent.name in (*NIFTI, CASES) and partial.name.startswith(f".{case.name}."):
            partial.unlink()
    try:
        if layout.read:
            volume = layout.read(case.image, case.label)
    except InputError as error:
        return _report(case, out, image, label, Judgement(broken=[str(error)]))
    if volume is not None:
        image, label = (out / kind / f"{case.name}.nii.gz" for kind in NIFTI)
        for path, array in ((label, volume.label), (image, as_int16(volume.image))):
            path.parent.mkdir(exist_ok=True)
            write_nifti(path, array, volume.affine)
        volume = None
    try:
        found = judge(image, label, layout.labels, layout.modality)
    except InputError as error:
        return _report(case, out, image, label, Judgement(broken=[str(error)]))
    return _report(case, out, image, label, found)


def _report(case: Case, out: Path, image: Path, label: Path, found: Judgement) -> Report:
    picture = out / CASES / f"{case.name}.png"
    if found.png:
        png = found.png
        write_atomically(picture, lambda file: file.write(png))
    return {
        "name": case.name,
        "patient": case.patient,
        "verdict": found.verdict,
        "reasons": [*found.broken, *found.suspicious],
        "image": os.path.relpath(image.resolve(), out.resolve()),
        "label": os.path.relpath(label.resolve(), out.resolve()),
        "picture": f"{CASES}/{picture.name}" if found.png else None,
        **found.facts,
    }


def _finished(record: Path, signature: str, out: Path) -> Report | None:
    """The report of a case that needs no second look: not broken, and all its files are as they were."""
    try:
        report = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    same = report.pop("signature", "") == signature and report["verdict"] != BROKEN
    return report if same and all((out / report[key]).exists() for key in ("image", "label", "picture")) else None


def _signature(case: Case, layout: Layout) -> str:
    """Changes when a file of the case does, or what is made of it; needs no look into the files."""
    states: list[Any] = [__version__, layout.modality, dict(layout.labels)]
    for source in (case.image, case.label):
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            state = path.stat() if path.exists() else None
            states.append((str(path.resolve()), state and (state.st_size, state.st_mtime_ns)))
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
