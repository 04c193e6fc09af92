"""Segment the liver first, then the lesions in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from liverseg.inferers.base import VolumeInferer
from liverseg.inferers.utils import as_tensor, get_affine, get_file_name, split_lesion
from liverseg.transforms.crop import foreground_box, widened

logger = logging.getLogger(__name__)


class TwoStageInferer(VolumeInferer):
    """Segment the liver in whole slices and the lesions in the box around it.

    The two stages of Mixed U-Net n.d., for `LiverLesionNetworks`. `CropToLabeld` shows the lesion
    network in training what it sees here. Where the liver stage finds no liver there is no lesion,
    and a volume without liver gets an empty mask and a warning in the log.

    It is called with a `MetaTensor` (B, 1, H, W, D) and `LiverLesionNetworks`, or any other with
    two-class networks as `liver` and `lesion`.

    Beside the input, memory holds one uint8 label volume, the crop of the image and its labels.

    Args:
        liver: how the liver network runs over the volume.
        lesion: how the lesion network runs over the crop.
        liver_postprocessing: transform of the liver mask (1, H, W, D), a `MetaTensor` of 0 and 1,
            before it is used, for instance `ErodeKeepLargestDilate`; None leaves it.
        margin_mm: by which the box of the liver is widened in the plane of the slices, to either
            side.
        outside_value: the value that the lesion network sees outside the liver; None leaves the
            image as it is.
        shown_mm: how far beyond the liver the lesion network sees the image all the same.
        targets: "liver" and "lesion", or "liver" alone, which leaves the lesions part of it.
    """

    def __init__(
        self,
        liver: VolumeInferer,
        lesion: VolumeInferer,
        liver_postprocessing: Callable[[Tensor], Tensor] | None = None,
        margin_mm: float = 10,
        outside_value: float | None = None,
        shown_mm: float = 0,
        targets: Sequence[str] = ("liver", "lesion"),
    ) -> None:
        self.liver = liver
        self.lesion = lesion
        self.liver_postprocessing = liver_postprocessing
        self.margin_mm = margin_mm
        self.outside_value = outside_value
        self.shown_mm = shown_mm
        self.targets = list(targets)

    def segment(
        self, inputs: Tensor, network: Any, *args: Any, probabilities: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Segment a batch to 0 background, 1 liver and 2 lesion; see `VolumeInferer.segment`.

        The probability of the lesion is the product of what both networks find, that of the liver
        what is left of it; `liver_postprocessing` does not change them.
        """
        affines = [get_affine(inputs, index) for index in range(inputs.shape[0])]
        labels, found = self.liver.segment(
            inputs, network.liver, *args, probabilities=probabilities, **kwargs
        )
        if found is not None:
            found = torch.cat([found, torch.zeros_like(found)], 1)
        for index, affine in enumerate(affines):
            label = as_tensor(labels)[index, 0]
            if self.liver_postprocessing is not None:
                label.copy_(
                    as_tensor(self.liver_postprocessing(MetaTensor(label[None], affine=affine)))[0]
                )
            box = foreground_box(label, affine, self.margin_mm)
            if box is None:
                logger.warning(
                    "%s: no liver found, so its mask is empty.", get_file_name(inputs, index)
                )
                continue
            if "lesion" not in self.targets:
                continue
            crop, liver = as_tensor(inputs)[index, 0][box], label[box]
            if self.outside_value is not None:
                crop = crop.masked_fill(~widened(liver, affine, self.shown_mm), self.outside_value)
            # The affine is for the spacing alone, which a crop does not change.
            lesion, lesion_found = self.lesion.segment(
                MetaTensor(crop[None, None], affine=affine),
                network.lesion,
                *args,
                probabilities=probabilities,
                **kwargs,
            )
            liver += liver * as_tensor(lesion)[0, 0]
            if found is not None and lesion_found is not None:
                split_lesion(found[index][(slice(None), *box)], lesion_found[0, 0])
        return labels, found
