"""Get ready to segment: which scans, with which bundle and weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from liverseg.bundle import choose
from liverseg.errors import InputError
from liverseg.files import hold
from liverseg.workbench.segment.bundles import find_bundle, weights_sha256
from liverseg.workbench.segment.cases import MODALITIES, Case, find_cases
from liverseg.workbench.segment.ensemble import check_ensemble
from liverseg.workbench.segment.inference import Options, settings_of
from liverseg.workbench.segment.outputs import Wanted
from liverseg.workbench.segment.request import Request


@contextmanager
def open_session(
    source: Path,
    output: Path,
    bundle: str,
    options: Options,
    wanted: Wanted,
    series: str | None = None,
    ensemble: Sequence[str] = (),
) -> Iterator[tuple[list[Case], Request]]:
    """Yield the cases of `source`, and what is asked for; what a `.zip` held is gone at the end.

    Args:
        source, series: as of `find_cases`.
        output: folder for the results.
        bundle: as of `find_bundle`.
        options: what the bundle is asked to do.
        wanted: what is written beside each mask.
        ensemble: bundles that vote, instead of `bundle`.

    Raises:
        InputError: for a `source` that is not there, and as `find_bundle`, `find_cases`,
            `check_ensemble`, `settings_of` and `hold`: one run at a time writes into a folder.
    """
    if not source.exists():
        # Before weights are fetched.
        raise InputError(
            f"{source}: there is no such file or folder, expected a scan, a folder of scans, a "
            ".zip or a .csv: correct the path."
        )
    folder, *others = folders = [find_bundle(name) for name in ensemble or [bundle]]
    check_ensemble(folders)
    settings = settings_of(folder, options)
    config = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))
    modality = str(settings.get("modality", config.get("modality", "ct")))
    choose("modality", modality, MODALITIES)
    unpacked = output / ".unpacked"
    with hold(output, "`liverseg segment`"):
        try:
            cases = find_cases(source, unpacked, series, modality)
            weights = {
                f"{each}/models/{path}" if others else path: sha256
                for each in folders
                for path, sha256 in weights_sha256(each).items()
            }
            yield cases, Request(folder, options, wanted, modality, weights, others)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
