"""Run a bundle's own inference over one scan, in this process."""

from __future__ import annotations

import gc
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import create_workflow
from monai.data import MetaTensor

from liverseg.devices import select_device
from liverseg.engines import reason_of
from liverseg.errors import InputError
from liverseg.inferers import KeepingInferer, on_scan_grid
from liverseg.io.masks import class_names, recorded_scans
from liverseg.io.nifti import read_nifti, write_nifti
from liverseg.io.paths import absolute
from liverseg.outputs.segmentation import Segmentation
from liverseg.workbench.segment.bundles import metadata_of, names_of
from liverseg.workbench.segment.ensemble import VotingInferer, check_targets, keep_vote

logger = logging.getLogger(__name__)

# In the messages of PyTorch's allocators, CUDA's libraries and C++.
NO_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed", "bad_alloc")
# Sees the evaluator before it runs.
Watch = Callable[[Any], None]


@dataclass(frozen=True)
class Options:
    """What a bundle is asked to do, in terms that hold for all bundles.

    Attributes:
        roi: the classes to find; empty for what the bundle finds by itself.
        device: as PyTorch names it; None takes the first GPU, or the CPU.
        fast: no second look at the mirrored scan, one plane, no flips.
        planes: the planes that vote, of `cascade_lits`.
        tta: average over the flips that the bundle offers.
        postprocessing: name of one of the bundle's `postprocessings`; None takes its default.
        modality: `ct` or `mr`; None takes the bundle's default.
        settings: of the bundle's config, by name, over all others.
    """

    roi: Sequence[str] = ()
    device: str | None = None
    fast: bool = False
    planes: Sequence[str] = ()
    tta: bool = False
    postprocessing: str | None = None
    modality: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def settings_of(bundle: Path, options: Options) -> dict[str, Any]:
    """Return the settings of a bundle's config that options stand for.

    Raises:
        InputError: for an option that the bundle does not have.
    """
    config = _config(bundle)
    known = [name for name in class_names(metadata_of(bundle)).values() if name != "background"]
    for name in options.roi:
        if name not in known:
            raise InputError(
                f"--roi: found {name!r}, expected classes of {bundle.name}: {', '.join(known)}: "
                "correct it, or take another bundle."
            )
    chosen: dict[str, Any] = {}
    for name, value in (("device", options.device), ("modality", options.modality)):
        if value is not None:
            chosen[name] = value
    if options.postprocessing is not None:
        chosen["postprocessing"] = f"@postprocessings#{options.postprocessing}"
    if options.planes:
        chosen["planes"] = list(options.planes)
    if options.roi and "segmented_targets" in config:
        chosen["segmented_targets"] = [name for name in known if name in options.roi]
    if options.tta:
        flips = config.get("displayable_configs", {}).get("flips")
        if flips is None:
            raise InputError(
                f"--tta: found no flips in {bundle.name}, expected a bundle that was trained with "
                "them: leave --tta out, or take another bundle."
            )
        chosen["flips"] = flips[-1]
    if options.fast:
        # The mirror check is around what segments.
        chosen["inferer"] = config["inferer"]["inferer"]
        chosen |= {"planes": ["axial"]} if "planes" in config and not options.planes else {}
    return chosen | dict(options.settings)


def run_inference(
    bundles: Sequence[Path],
    scan: str,
    output_dir: Path,
    options: Options,
    probabilities: bool = False,
) -> tuple[Segmentation, dict[str, Any]]:
    """Segment a scan, and write its mask as the bundle's own inference does.

    Of several bundles, the mean of their probabilities decides; then the first goes on with it as
    with a mask of its own. Where the memory does not suffice, a bundle is tried again with one
    slice or window at a time, then on the CPU.

    Args:
        bundles: their folders, those of several as `check_ensemble` allows.
        scan: as `read_volume` takes it.
        output_dir: of the mask.
        options: what the bundles are asked to do.
        probabilities: keep these, too.

    Returns:
        The mask, of the classes of `options.roi` alone, and its entry in the folder's
        `summary.json`.

    Raises:
        InputError: as the bundle's inference raises it, for bundles of an ensemble that look for
            different classes, and where no memory suffices.
    """
    first, *others = bundles
    votes: dict[Path, MetaTensor] = {}
    targets = {}
    for other in others:
        with tempfile.TemporaryDirectory() as folder:
            watch = partial(keep_vote, votes=votes, bundle=other)
            found = _run_with_less(other, scan, Path(folder), options, watch)
            targets[other] = list(found["volume_ml"])
    kept: list[np.ndarray] = []

    def watch_first(evaluator: Any) -> None:
        def keep(found: torch.Tensor) -> None:
            kept[:] = [on_scan_grid(evaluator, found[0])]

        if votes:
            evaluator.inferer = VotingInferer(evaluator.inferer, [*votes.values()])
        if probabilities:
            evaluator.inferer = KeepingInferer(evaluator.inferer, keep)

    entry = _run_with_less(first, scan, output_dir, options, watch_first)
    check_targets(targets | {first: list(entry["volume_ml"])})
    segmentation = replace(
        read_mask(first, entry, output_dir),
        bundle=names_of(bundles),
        version=", ".join(str(metadata_of(bundle).get("version", "")) for bundle in bundles),
        probabilities=kept[0] if kept else None,
    )
    return _only(segmentation, options, output_dir / entry["mask"]), entry


def _run_with_less(
    bundle: Path, scan: str, output_dir: Path, options: Options, watch: Watch
) -> dict[str, Any]:
    """Run a bundle, with less at a time where the memory does not suffice; return its entry."""
    attempts = _attempts(bundle, settings_of(bundle, options))
    for number, (_, settings) in enumerate(attempts, 1):
        try:
            _run(bundle, scan, output_dir, settings, watch)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
            if number == len(attempts):
                raise InputError(
                    f"{scan}: found too little memory for {bundle.name} ({reason}), expected "
                    "enough: end other programs, or take another bundle."
                ) from error
            how = attempts[number][0]
            logger.warning(
                "%s: the memory does not suffice (%s); tried again %s.", scan, reason, how
            )
        # What the last attempt leaves behind refers to itself.
        gc.collect()
        torch.cuda.empty_cache()
    return next(
        entry for entry in recorded_scans(output_dir) if entry["image"] == str(absolute(scan))
    )


def read_mask(bundle: Path, entry: Mapping[str, Any], folder: Path) -> Segmentation:
    """Return the mask of an entry of a `summary.json`."""
    volume = read_nifti(folder / entry["mask"])
    metadata = metadata_of(bundle)
    # Those that were looked for: of others, none there says nothing.
    names = {
        value: name for value, name in class_names(metadata).items() if name in entry["volume_ml"]
    }
    return Segmentation(
        entry["image"],
        volume.array,
        volume.affine,
        names,
        bundle.name,
        str(metadata.get("version", "")),
        entry.get("flags", {}),
        tuple(entry["warnings"]),
    )


def _only(segmentation: Segmentation, options: Options, mask: Path) -> Segmentation:
    """Return a mask of the classes that were asked for alone, and write it so."""
    if not options.roi:
        return segmentation
    kept = {value: name for value, name in segmentation.class_names.items() if name in options.roi}
    others = np.isin(segmentation.mask, [0, *kept], invert=True)
    voxels = segmentation.mask
    if others.any():
        voxels = np.where(others, 0, segmentation.mask).astype(np.uint8)
        write_nifti(mask, voxels, segmentation.affine)
    return replace(segmentation, mask=voxels, class_names=kept)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or what it comes from, is that there is too little memory."""
    while error is not None:
        text = str(error)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            any(part in text.lower() for part in NO_MEMORY)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _config(bundle: Path) -> dict[str, Any]:
    text = (bundle / "configs" / "inference.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _attempts(bundle: Path, settings: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return settings that need less and less memory, each with what it does."""
    attempts = [("", settings)]
    less = settings | ({"sw_batch_size": 1} if "sw_batch_size" in _config(bundle) else {})
    if less != settings:
        attempts.append(("with one window at a time", less))
    if select_device(settings.get("device")).type != "cpu":
        attempts.append(("on the CPU", less | {"device": "cpu"}))
    return attempts


def _run(
    bundle: Path, scan: str, output_dir: Path, settings: Mapping[str, Any], watch: Watch
) -> None:
    config = _config(bundle)
    # Of one scan, the bar over scans says nothing.
    bars: dict[str, Any] = {
        f"handlers#{number}#_disabled_": True
        for number, handler in enumerate(config["handlers"])
        if isinstance(handler, dict) and handler["_target_"].endswith(".Progress")
    }
    with _quiet():
        workflow = create_workflow(
            config_file=str(bundle / "configs" / "inference.json"),
            workflow_type="infer",
            bundle_root=str(bundle),
            dataset_dir=scan,
            output_dir=str(output_dir),
            logging_file=False,
            **bars,
            **settings,
        )
        watch(workflow.parser.get_parsed_content("evaluator"))
        workflow.run()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what MONAI logs of how it reads a config."""
    loggers = [logging.getLogger(f"monai.bundle.{name}") for name in ("scripts", "workflows")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
