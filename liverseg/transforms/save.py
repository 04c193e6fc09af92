"""Save masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from liverseg.io.masks import MaskFolder
from liverseg.transforms.load import flags_of


class SaveMaskd(MapTransform):
    """Save masks of scans, each on its scan's own grid, under the name that `masks` gives it.

    Args:
        keys: masks of shape (1, H, W, D), class indices of any dtype, as MetaTensors with their
            scan's affine and its `filename_or_obj`, `warnings` and `flags`: what `Invertd` makes of
            a prediction.
        masks: the folder.

    Raises:
        InputError: as `MaskFolder.save`.
    """

    def __init__(self, keys: KeysCollection, masks: MaskFolder) -> None:
        super().__init__(keys)
        self.masks = masks

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` as it is."""
        d = dict(data)
        for key in self.key_iterator(d):
            mask: MetaTensor = d[key]
            voxels = mask.as_tensor()[0].to(torch.uint8).cpu().numpy()
            warnings = mask.meta.get("warnings", "").splitlines()
            affine = mask.affine.cpu().numpy()
            self.masks.save(mask.meta["filename_or_obj"], voxels, affine, warnings, flags_of(mask))
        return d
