"""Turn the values of a label file into class indices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from liverseg.errors import InputError


class MapLabelsd(MapTransform):
    """Replace the values of a label volume by class indices, as uint8 of the same shape.

    Args:
        keys: label volumes, any shape, with the values of their files.
        classes: for each class, in the order of the network's channels, its name and the file values that mean it:
            `{"background": [0], "liver": [1, 2]}`. `None` instead of a list means every value that no other class
            names: `{"background": None, "liver": [5]}` takes the liver out of a file with many organs.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        InputError: for a value that no class names, naming the file and the value.
    """

    def __init__(
        self, keys: KeysCollection, classes: Mapping[str, Sequence[int] | None], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.classes = dict(classes)
        values = [value for named in self.classes.values() for value in named or ()]
        rest = [index for index, named in enumerate(self.classes.values()) if named is None]
        if len(values) != len(set(values)) or len(rest) > 1:
            raise InputError(f"classes: {self.classes} names a value twice, expected each value in one class: mend it.")
        self.rest = rest[0] if rest else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the labels replaced."""
        converted = dict(data)
        for key in self.key_iterator(converted):
            converted[key] = self._convert(converted[key])
        return converted

    def _convert(self, label: torch.Tensor) -> torch.Tensor:
        classes = torch.full_like(label, self.rest or 0, dtype=torch.uint8)
        matched = 0
        for index, values in enumerate(self.classes.values()):
            for value in values or ():
                here = label == value
                matched += int(here.sum())
                classes[here] = index
        if self.rest is None and matched != label.numel():
            known = [value for values in self.classes.values() for value in values or ()]
            unknown = sorted(set(torch.unique(torch.as_tensor(label)).tolist()) - set(known))
            file = getattr(label, "meta", {}).get("filename_or_obj", "label")
            raise InputError(
                f"{file}: label values {', '.join(f'{value:g}' for value in unknown[:5])} are in no class, "
                f"expected only {known}: name them in `classes`, or give background the value null for all the rest."
            )
        return classes
