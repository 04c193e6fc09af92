"""Turn the values of a label file into class indices."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from liverseg.errors import InputError

logger = logging.getLogger(__name__)

# Of a label value: a file that stores 0, 1, 2 as bytes with a scale holds 1.004, and a float
# 0.9999999.
WHOLE_TOLERANCE = 0.01
# Voxels that are looked at together: they stay in the processor's cache.
CHUNK = 2**16


def whole_values(label: torch.Tensor, name: str = "") -> torch.Tensor:
    """Return a label with whole numbers; those closer than `WHOLE_TOLERANCE` to one become it.

    Args:
        label: of any shape and type; it is returned as it is where all values are whole.
        name: for messages; by default the file that it was loaded from.

    Raises:
        InputError: for other values, such as a half, NaN and infinity.
    """
    if not label.is_floating_point() or not label.numel():
        return label
    values = label.as_subclass(torch.Tensor)
    parts = values.reshape(-1).split(CHUNK)
    off = float(torch.stack([(part - part.round()).abs().max() for part in parts]).max())
    if off == 0:
        return label
    if off <= WHOLE_TOLERANCE:
        return label.round()
    between = values[~((values - values.round()).abs() <= WHOLE_TOLERANCE)].unique()
    raise InputError(
        f"{name or file_of(label)}: found label values "
        f"{', '.join(f'{value:.4g}' for value in between[:5].tolist())}, expected whole numbers: "
        "it is no label, or was resampled as an image; resample it with nearest neighbours, or "
        "save a mask of a threshold."
    )


def file_of(label: torch.Tensor) -> str:
    """Return the file that a label was loaded from, for messages."""
    return str(getattr(label, "meta", {}).get("filename_or_obj", "label"))


class MapLabelsd(MapTransform):
    """Replace the values of a label volume by class indices, as uint8 of the same shape.

    Args:
        keys: label volumes, any shape, with the values of their files.
        classes: for each class, in the order of the network's channels, its name and the file
            values that mean it: `{"background": [0], "liver": [1, 2]}`. `None` instead of a list
            means every value that no other class
            names: `{"background": None, "liver": [5]}` takes the liver out of a file with many
                organs.

    Raises:
        InputError: as `whole_values`, and for a value that no class names, naming the file and the
            value.
    """

    def __init__(self, keys: KeysCollection, classes: Mapping[str, Sequence[int] | None]) -> None:
        super().__init__(keys)
        self.classes = dict(classes)
        self.values = [value for named in self.classes.values() for value in named or ()]
        rest = [index for index, named in enumerate(self.classes.values()) if named is None]
        if len(self.values) != len(set(self.values)) or len(rest) > 1:
            raise InputError(
                f"classes: {self.classes} names a value twice, expected each "
                "value in one class: fix it."
            )
        self.rest = rest[0] if rest else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the labels replaced."""
        converted = dict(data)
        for key in self.key_iterator(converted):
            converted[key] = self._convert(converted[key])
        return converted

    def _convert(self, label: torch.Tensor) -> torch.Tensor:
        label = whole_values(label)
        classes = torch.full_like(label, self.rest or 0, dtype=torch.uint8)
        matched = 0
        for index, values in enumerate(self.classes.values()):
            for value in values or ():
                here = label == value
                matched += int(here.sum())
                classes[here] = index
        if self.rest is None and matched != label.numel():
            unknown = sorted(set(torch.unique(torch.as_tensor(label)).tolist()) - {*self.values})
            raise InputError(
                f"{file_of(label)}: label values "
                f"{', '.join(f'{value:g}' for value in unknown[:5])} are in no class, "
                f"expected only {self.values}: list in `classes` under each class the values that "
                "stand for it in this file; only then may background be null, for all "
                "values that are listed nowhere."
            )
        if self.rest is not None and matched == 0 and label.any():
            logger.warning(
                "%s: found none of the values %s of `classes`, so all of it is taken for %s.",
                *(file_of(label), self.values, list(self.classes)[self.rest]),
            )
        return classes
