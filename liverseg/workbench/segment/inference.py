"""Run a bundle's own inference over one scan, in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import create_workflow

from liverseg.errors import InputError
from liverseg.io.masks import class_names, recorded_scans
from liverseg.io.nifti import read_nifti
from liverseg.io.paths import absolute
from liverseg.outputs.segmentation import Segmentation
from liverseg.workbench.segment.bundles import metadata_of

logger = logging.getLogger(__name__)


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
    bundle: Path, scan: str, output_dir: Path, options: Options
) -> tuple[Segmentation, dict[str, Any]]:
    """Segment a scan, and write its mask as the bundle's own inference does.

    Where the memory does not suffice, it is tried again with one slice or window at a time, then
    on the CPU.

    Args:
        bundle: its folder.
        scan: as `read_volume` takes it.
        output_dir: of the mask.
        options: what the bundle is asked to do.

    Returns:
        The mask, and its entry in the folder's `summary.json`.

    Raises:
        InputError: as the bundle's inference raises it.
    """
    for attempt in _attempts(bundle, settings_of(bundle, options)):
        try:
            _run(bundle, scan, output_dir, attempt)
            break
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or attempt.get("device") == "cpu":
                raise
            logger.warning(
                "%s: the memory does not suffice (%s); tried again with less at a time.",
                scan,
                str(error).partition("\n")[0],
            )
    entry = next(
        entry for entry in recorded_scans(output_dir) if entry["image"] == str(absolute(scan))
    )
    return read_mask(bundle, entry, output_dir), entry


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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or what it comes from, is that there is too little memory."""
    while error is not None:
        text = str(error)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            "can't allocate memory" in text or "out of memory" in text.lower()
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _config(bundle: Path) -> dict[str, Any]:
    text = (bundle / "configs" / "inference.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _attempts(bundle: Path, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield settings
    config = _config(bundle)
    less = settings | ({"sw_batch_size": 1} if "sw_batch_size" in config else {})
    if less != settings:
        yield less
    yield less | {"device": "cpu"}


def _run(bundle: Path, scan: str, output_dir: Path, settings: Mapping[str, Any]) -> None:
    config = _config(bundle)
    # Of one scan, the bar over scans says nothing.
    bars: dict[str, Any] = {
        f"handlers#{number}#_disabled_": True
        for number, handler in enumerate(config["handlers"])
        if isinstance(handler, dict) and handler["_target_"].endswith(".Progress")
    }
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
    workflow.run()
