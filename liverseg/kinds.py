"""Define the kinds of values that the settings at the top of the bundles' configs take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from liverseg.devices import select_device
from liverseg.errors import InputError
from liverseg.io.volume import SPACING_MM

# Of a setting its name, the value that it is given and the one that the bundle ships; returns the
# value as the config needs it, or raises InputError.
Kind = Callable[[str, Any, Any], Any]


def is_text(name: str) -> bool:
    """Return whether a setting is a path or other text, which stays text whatever it looks like."""
    return KINDS.get(name) in (_path, _text)


def _wrong(name: str, value: Any, expected: str, example: Any) -> InputError:
    return InputError(
        f"{name}: found {value!r}, expected {expected}: write it as --{name} {example}."
    )


def _is_number(value: Any, least: float, most: float, whole: bool) -> bool:
    number = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )
    return number and least <= value <= most and (not whole or value == int(value))


def _span(least: float, most: float) -> str:
    return f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"


def _number(
    least: float, most: float = math.inf, *, above: bool = False, whole: bool = False
) -> Kind:
    """Return the kind "a number from `least`, or only above it, to `most`"."""
    span = f"above {least}" if above else _span(least, most)

    def read(name: str, value: Any, shipped: Any) -> Any:
        if not _is_number(value, least, most, whole) or (above and value == least):
            example = shipped if _is_number(shipped, least, most, whole) else int(least) + 1
            raise _wrong(name, value, f"a {'whole ' * whole}number {span}", example)
        return int(value) if whole else value

    return read


def _axes(
    what: str, least: float, most: float = math.inf, *, whole: bool = False, keep: bool = False
) -> Kind:
    """Return the kind "a number for each axis", −1 to `keep` it; one number may stand for all."""

    def valid(number: Any) -> bool:
        return (keep and number == -1) or _is_number(number, least, most, whole)

    def read(name: str, value: Any, shipped: Any) -> Any:
        axes = shipped if isinstance(shipped, list) else [1, 1, 1]
        numbers = value
        if _is_number(value, 0, math.inf, whole):
            numbers = [value if axis > 0 else axis for axis in axes]
        if (
            not isinstance(numbers, Sequence)
            or len(numbers) != len(axes)
            or not all(map(valid, numbers))
        ):
            stays = ", −1 for an axis that stays as it is" if keep else ""
            example = f'"{axes}"'.replace(" ", "")
            expected = f"{len(axes)} {what} {_span(least, most)}{stays}, or a single one for all"
            raise _wrong(name, value, expected, example)
        return [int(number) if whole else number for number in numbers]

    return read


def _window(name: str, value: Any, shipped: Any) -> Any:
    numbers = isinstance(value, (list, tuple)) and all(
        _is_number(one, -math.inf, math.inf, False) for one in value
    )
    if not numbers or len(value) != 2 or not value[0] < value[1]:
        raise _wrong(name, value, "two numbers, the lower one first", '"[-160,240]"')
    return list(value)


def _flips(name: str, value: Any, shipped: Any) -> Any:
    if not isinstance(value, Sequence) or not all(
        isinstance(axes, Sequence) and {*axes} <= {0, 1} for axes in value
    ):
        raise _wrong(name, value, "a list of lists of the axes 0 and 1", '"[[0],[1],[0,1]]"')
    return value


def _one_of(*known: str) -> Kind:
    def read(name: str, value: Any, shipped: Any) -> Any:
        if value not in known:
            raise _wrong(name, value, f"one of {', '.join(known)}", shipped)
        return value

    return read


def _some_of(*known: str) -> Kind:
    """Return the kind "some of the names"; one may go without a list."""

    def read(name: str, value: Any, shipped: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not names or any(one not in known for one in names):
            raise _wrong(name, value, f"some of {', '.join(known)}", f"\"['{known[0]}']\"")
        return list(names)

    return read


def _switch(name: str, value: Any, shipped: Any) -> Any:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false", "false")
    return value


def _device(name: str, value: Any, shipped: Any) -> Any:
    return str(select_device(value))


def _path(name: str, value: Any, shipped: Any) -> Any:
    if isinstance(value, Mapping):  # one for each of several networks
        return value
    if (
        value == ""
        or not isinstance(value, (str, int, float, os.PathLike))
        or isinstance(value, bool)
    ):
        found = "nothing" if value in ("", True) else repr(value)
        raise InputError(
            f"{name}: found {found}, expected a path: give one, and check whether a "
            "variable of your shell is empty."
        )
    return os.path.expanduser(str(value))


def _text(name: str, value: Any, shipped: Any) -> Any:
    return str(value)


COUNT, WHOLE = _number(1, whole=True), _number(0, whole=True)
SHARE, AMOUNT = _number(0, 1), _number(0)
# Finer voxels fill every memory, and in coarser ones as in smaller patches nothing has a shape.
SPACING, SIZE = (
    _axes("numbers of mm", *SPACING_MM, keep=True),
    _axes("numbers of voxels", 8, whole=True),
)
KINDS: dict[str, Kind] = {
    "bundle_root": _path,
    "dataset_dir": _path,
    "datalist": _path,
    "output_dir": _path,
    "ckpt_dir": _path,
    "ckpt_path": _path,
    "pretrain_dir": _path,
    "load_pretrain": _path,
    "encoder_weights": _path,
    "encoder_weights_sha256": _text,
    "tracking_uri": _text,
    "experiment_name": _text,
    "run_name": _text,
    "output_postfix": _text,
    "image_key": _text,
    "label_key": _text,
    "max_epochs": COUNT,
    "max_iterations": COUNT,
    "iterations_per_epoch": COUNT,
    "max_rounds": COUNT,
    "round_epochs": COUNT,
    "val_interval": COUNT,
    "batch_size": COUNT,
    "sw_batch_size": COUNT,
    "slices_per_volume": COUNT,
    "patches_per_volume": COUNT,
    "num_classes": COUNT,
    "in_channels": COUNT,
    "fold": WHOLE,
    "patience": WHOLE,
    "round": WHOLE,
    "round_patience": WHOLE,
    "ema_momentum": SHARE,
    "num_workers": WHOLE,
    "seed": WHOLE,
    "max_clicks": WHOLE,
    "val_clicks": WHOLE,
    "foreground_ratio": SHARE,
    "min_patch_area": SHARE,
    "click_probability": SHARE,
    "clicks_anywhere": SHARE,
    "lesion_threshold": SHARE,
    "cache_gb": AMOUNT,
    "lr_power": AMOUNT,
    "margin_mm": AMOUNT,
    "box_margin_mm": AMOUNT,
    "crop_margin_mm": AMOUNT,
    "shown_mm": AMOUNT,
    "least_mm": AMOUNT,
    "focus_mm": AMOUNT,
    "learning_rate": _number(0, above=True),
    "click_sigma": _number(0, above=True),
    "iou_xy_alpha": _number(0, 2),
    "spacing": SPACING,
    "localise_spacing": SPACING,
    "lesion_spacing": SPACING,
    "spatial_size": SIZE,
    "localise_size": SIZE,
    "lesion_spatial_size": SIZE,
    "hu_window": _window,
    "flips": _flips,
    "plane": _one_of("axial", "coronal", "sagittal"),
    "planes": _some_of("axial", "coronal", "sagittal"),
    "segmented_targets": _some_of("liver", "lesion"),
    "amp": _switch,
    "freeze_norms": _switch,
    "keep_best": _switch,
    "resume": _switch,
    "equalize": _switch,
    "loss_levels": _switch,
    "normalize_weights": _switch,
    "device": _device,
}
