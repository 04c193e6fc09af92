"""Segment the liver and the lesions in it: localise, then tune in three planes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor, affine_to_spacing
from monai.transforms import Crop
from torch import Tensor

from liverseg.errors import InputError
from liverseg.inferers.base import VolumeInferer
from liverseg.inferers.localise import Localiser
from liverseg.inferers.utils import (
    as_tensor,
    get_affine,
    get_file_name,
    resize_planes,
    split_lesion,
    to_uint8,
)
from liverseg.inferers.volume_slices import VolumeSliceInferer
from liverseg.networks.cascade import PLANE_AXES
from liverseg.transforms.crop import foreground_box

logger = logging.getLogger(__name__)

SLAB = 16


class CascadeInferer(VolumeInferer):
    """Segment the liver, then its lesions, each localised first and then tuned in several planes.

    The cascade of IJIES 2022, for `CascadeNetworks`. For each target a localisation network gives
    the prior; the tuning networks of the planes then see image and prior of the region, and the
    mean of their probabilities (soft voting, section 3.10, eq. 8) decides. The liver's region is
    the box around what its localisation finds. The lesions' region is the box around the tuned
    liver, so that a lesion the localisation has missed can still be found, and a lesion is one
    inside the tuned liver only. Where the localisation finds no lesion, there is none.

    The planes share one grid: the region, resampled in the axial plane to `spacing`, its slices
    where they are. A coronal or sagittal slice of it is further resampled along z to `spacing`.
    Beside the input, memory holds the region's image and prior and one probability, never those of
    several planes or classes.

    It is called with a `MetaTensor` (B, 1, H, W, D) in RAS orientation and `CascadeNetworks`.

    A scan in which no liver is found gets an empty mask and a warning in the log.

    Args:
        localise: by target, "liver" and "lesion", a function of a `network` that gives the
            `Localiser` of the
            target: the liver's with a crop, the lesions' without one.
        slices: by plane, how a tuning network runs over its slices; with the `spacing` of its rows
            and columns.
        spacing: mm along x and y to which the region is resampled; −1 keeps the scan's own.
        planes: which of "axial", "coronal" and "sagittal" vote.
        targets: "liver" and "lesion", or "liver" alone, which leaves the lesions part of it.
        liver_postprocessing: transform of the tuned liver (1, h, w, d), 0 and 1, before lesions are
            looked for.
        margin_mm: by which the box of the liver is widened for the lesions, in the axial plane, to
            either side; None looks for them in the whole region.
        threshold: the least mean probability of a target's voxel.

    Raises:
        InputError: for a plane that is none of the three or has no `slices`, or no plane at all.
    """

    def __init__(
        self,
        localise: Mapping[str, Callable[..., Localiser]],
        slices: Mapping[str, VolumeSliceInferer],
        spacing: Sequence[float] = (-1, -1),
        planes: Sequence[str] = tuple(PLANE_AXES),
        targets: Sequence[str] = ("liver", "lesion"),
        liver_postprocessing: Callable[[Tensor], Tensor] | None = None,
        margin_mm: float | None = 10,
        threshold: float = 0.5,
    ) -> None:
        unknown = [plane for plane in planes if plane not in PLANE_AXES or plane not in slices]
        if unknown or not planes:
            raise InputError(
                f"planes: found {', '.join(unknown) or 'none'}, expected some of "
                f"{', '.join(PLANE_AXES)}: set it as "
                '["axial"].'
            )
        self.localise, self.slices, self.planes, self.targets = localise, slices, planes, targets
        self.region_grid = VolumeSliceInferer(spacing)
        self.liver_postprocessing = liver_postprocessing
        self.margin_mm, self.threshold = margin_mm, threshold

    def segment(
        self, inputs: Tensor, network: Any, *args: Any, probabilities: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Segment a batch to 0 background, 1 liver and 2 lesion; see `VolumeInferer.segment`.

        The probabilities are the means over the planes: that of the lesion is the product
        of those of both targets, that of the liver what is left of it. Outside the
        liver's region they are 0.
        """
        labels = torch.zeros_like(inputs, dtype=torch.uint8)
        found = None
        if probabilities:
            found = as_tensor(labels).new_zeros((len(labels), 2, *labels.shape[2:]))
        for index in range(inputs.shape[0]):
            meta = {"filename_or_obj": get_file_name(inputs, index)}
            image = MetaTensor(as_tensor(inputs)[index], get_affine(inputs, index), meta)
            self._segment(
                image,
                network,
                as_tensor(labels)[index],
                None if found is None else found[index],
            )
        return labels, found

    def _segment(
        self, image: MetaTensor, network: Any, label: Tensor, found: Tensor | None
    ) -> None:
        """Write into the label (1, H, W, D), and the probabilities (2, H, W, D), if any."""
        liver = self.localise["liver"](network=network["liver_localise"])(image)
        if liver.found:
            box = (slice(None), *liver.region)
            region = Crop()(image, liver.region)
            assert isinstance(region, MetaTensor)
            mask, probability = self._tune(
                region, liver.prior, network, "liver", probabilities=found is not None
            )
            label, found = label[box], None if found is None else found[box]
            if found is not None and probability is not None:
                found[:1] = probability
            if self.liver_postprocessing is not None:
                mask = as_tensor(self.liver_postprocessing(MetaTensor(mask, affine=region.affine)))
            label.copy_(mask)
            if "lesion" in self.targets:
                self._mark_lesions(label, found, region, network)
        if not label.any():
            name = image.meta["filename_or_obj"]
            logger.warning("%s: no liver found, so its mask is empty.", name)

    def _mark_lesions(
        self, label: Tensor, found: Tensor | None, image: MetaTensor, network: Any
    ) -> None:
        """Write 2 into the liver's label (1, h, w, d) where a lesion is, and its probability."""
        box = foreground_box(label[0], image.affine, self.margin_mm)
        if box is None:
            return
        # The affine is for the spacing alone, which a crop does not change.
        part = MetaTensor(as_tensor(image)[(slice(None), *box)].clone(), affine=image.affine)
        localisation = self.localise["lesion"](network=network["lesion_localise"])(part)
        if not localisation.found:
            return
        lesion, probability = self._tune(
            part, localisation.prior, network, "lesion", probabilities=found is not None
        )
        inside = label[(slice(None), *box)]
        inside += inside * lesion
        if found is not None and probability is not None:
            split_lesion(found[(slice(None), *box)], probability[0])

    def _tune(
        self,
        image: MetaTensor,
        prior: Tensor,
        network: Any,
        target: str,
        probabilities: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the target's mask of the mean of its probabilities in all planes, and that mean.

        Both are (1, h, w, d), uint8; the mean is 255 for 1, or None where it is not asked for.
        """
        height, width, depth = image.shape[1:]
        rows, columns = self.region_grid.slice_size(image[None], 0)
        x = torch.stack(
            [_resize_slices(as_tensor(volume)[0], (rows, columns)) for volume in (image, prior)]
        )
        mm = affine_to_spacing(image.affine, r=3).tolist()
        mm = [mm[0] * height / rows, mm[1] * width / columns, mm[2]]
        total = x.new_zeros((rows, columns, depth))
        for plane in self.planes:
            axes = PLANE_AXES[plane]
            affine = torch.diag(torch.tensor([*(mm[axis] for axis in axes), 1.0]))
            view = MetaTensor(x.permute(0, *(1 + axis for axis in axes))[None], affine=affine)
            votes = total.permute(axes)
            for positions, found in self.slices[plane].iterate_probabilities(
                view, network[f"{target}_{plane}"]
            ):
                votes[..., positions] += found[1].to(votes)
        threshold = self.threshold * len(self.planes)
        mask = torch.empty((1, height, width, depth), dtype=torch.uint8, device=x.device)
        mean = torch.empty_like(mask) if probabilities else None
        for start in range(0, depth, SLAB):
            slab = slice(start, start + SLAB)
            summed = _resize_slices(total[..., slab], (height, width))
            mask[0, ..., slab] = summed > threshold
            if mean is not None:
                mean[0, ..., slab] = to_uint8(summed / len(self.planes))
        return mask, mean


def _resize_slices(volume: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a volume (H, W, D) to (*size, D)."""
    return resize_planes(volume.permute(2, 0, 1)[:, None], size)[:, 0].permute(1, 2, 0)
