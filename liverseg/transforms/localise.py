"""Crop volumes to a target that a network finds in them, and add a prior for a second network."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, MapTransform

from liverseg.errors import InputError

MASK_KEY, PRIOR_KEY = "localised", "prior"


class LocalisePriord(MapTransform, InvertibleTransform):
    """Crop volumes to where a `liverseg.inferers.Localiser` finds the target, and add its prior.

    All items stay on one grid, with the affine of the crop, and `Invertd` undoes the crop. Added to
    the dictionary, both (1, h, w, d) on the cropped grid: "prior", float32 from 0 to 1, and
    "localised", the mask, uint8.

    Where nothing is found the whole volume stays: training goes on.

    Args:
        keys: the image, (1, H, W, D) with an affine, then what else is cropped with it, such as the
            label.
        localiser: the `Localiser`.
        allow_missing_keys: skip keys that an item lacks, such as the label.

    Raises:
        InputError: for a key on another grid, and as the `Localiser`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        localiser: Callable[[MetaTensor], Any],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.localiser = localiser
        self.cropper = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, cropped, with the prior and the mask."""
        d = dict(data)
        image_key = self.keys[0]
        image = d[image_key]
        localisation = self.localiser(image)
        d[MASK_KEY] = localisation.mask
        for key in (*self.key_iterator(d), MASK_KEY):
            if d[key].shape[1:] != image.shape[1:]:
                raise InputError(
                    f"{key}: found shape {tuple(d[key].shape)}, expected the grid of {image_key}, "
                    f"{tuple(image.shape)}: resample both to one grid first."
                )
            # A copy, for a view would keep the whole volume in memory.
            d[key] = self.cropper(d[key], localisation.region).clone()
        d[PRIOR_KEY] = MetaTensor(localisation.prior).copy_meta_from(d[image_key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the items of the crop on the volume's own grid, 0 outside the crop."""
        d = dict(data)
        added = [key for key in (PRIOR_KEY, MASK_KEY) if key in d]
        for key in (*self.key_iterator(d), *added):
            d[key] = self.cropper.inverse(d[key])
        return d
