"""Find mirrored scans: segment the mirror image, in which a network finds the liver it missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from nibabel.orientations import io_orientation
from torch import Tensor

from liverseg.inferers.base import VolumeInferer
from liverseg.inferers.utils import as_tensor, get_affine, get_file_name
from liverseg.transforms.clicks import CLICKS
from liverseg.transforms.load import add_flag, flags_of
from liverseg.transforms.morphology import largest
from liverseg.transforms.quality import (
    BODY_OF_MR,
    MIRRORED,
    SAMPLE_MM,
    STRANGE,
    VOLUME_ML,
    liver_values,
)

# In the real CT at hand the centre of what is found lies 50 mm and more to the right of the body's,
# their mirror images hold less. With these bounds `deeplabv3_liver` flags none of thirteen, and ten
# of their mirror images.
RIGHT_MM, LARGER = 40.0, 2.0
NEXT_TO_NOTHING_ML = VOLUME_ML[0] / 3
# Few livers are smaller; of mirrored ones that much is often missed.
SMALL_ML = 800.0
NO_CLICKS = torch.empty(1, 0, 4)


class MirrorCheckInferer(VolumeInferer):
    """Segment with another inferer, and flag scans that seem to be mirrored.

    Networks know left from right: in a mirrored scan they find parts of the liver, and tissue that
    is not liver. So the scan mirrored from left to right is segmented too. It gets the flag
    "mirrored" if a liver is in its mirror image, on the right of the body, that is `LARGER` times
    as large, or larger at all where next to nothing is found in the scan or not well on the right.
    The labels stay what they are, and pieces apart from the largest do not count.

    Scans that show less body than a liver are not looked at twice, nor those whose intensities are
    flagged, which no network knows, nor those with clicks of an annotator, who has seen the mask.
    Body is what is brighter than a tenth of the range of the inputs.

    Args:
        inferer: segments volumes, as `VolumeSliceInferer` does.
        mirror_inferer: segments the mirror image: one that finds the liver alone, say; None takes
            `inferer`.
        class_names: of its labels' values; without "liver" among them nothing is looked at.
        slices_mm: for 2-D networks: the mirror image of slices so far apart is segmented, of every
            scan. None segments all of it, where less than `SMALL_ML` is found or not well on the
            right.
    """

    def __init__(
        self,
        inferer: VolumeInferer,
        class_names: Mapping[int, str],
        mirror_inferer: VolumeInferer | None = None,
        slices_mm: float | None = None,
    ) -> None:
        self.inferer = inferer
        self.mirror_inferer = inferer if mirror_inferer is None else mirror_inferer
        self.liver = torch.tensor(liver_values(class_names), dtype=torch.uint8)
        self.slices_mm = slices_mm

    def segment(
        self, inputs: Tensor, network: Any, *args: Any, probabilities: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `inferer` finds in the scan as it is; see `VolumeInferer.segment`.

        `inputs` is a `MetaTensor` (B, 1, H, W, D) as it was loaded.
        """
        labels, found = self.inferer.segment(
            inputs, network, *args, probabilities=probabilities, **kwargs
        )
        if (
            len(self.liver)
            and isinstance(inputs, MetaTensor)
            and not inputs.meta.get(CLICKS, NO_CLICKS).numel()
        ):
            for index in range(len(inputs)):
                if STRANGE & flags_of(inputs, index).keys():
                    continue
                reason = self._mirrored(inputs, labels, index, network, *args, **kwargs)
                if reason is not None:
                    add_flag(inputs, "mirrored", MIRRORED.format(reason), index)
        return labels, found

    def _mirrored(
        self,
        inputs: MetaTensor,
        labels: Tensor,
        index: int,
        network: Any,
        *args: Any,
        **kwargs: Any,
    ) -> str | None:
        """Return what tells that one volume of a batch is mirrored, if anything."""
        affine = get_affine(inputs, index)
        spacing_mm = affine_to_spacing(affine, r=3).tolist()
        apart = 1 if self.slices_mm is None else int(max(self.slices_mm // spacing_mm[2], 1))
        every = [int(max(SAMPLE_MM // mm, 1)) for mm in spacing_mm[:2]]
        every.append(int(max(SAMPLE_MM // spacing_mm[2], 1)) if apart == 1 else 1)
        sample = tuple(slice(None, None, step) for step in every)
        volume, label = (as_tensor(each)[index, 0, ..., ::apart] for each in (inputs, labels))
        every[2] *= apart
        voxel_ml = (
            abs(float(torch.linalg.det(affine[:3, :3].double()))) * float(np.prod(every)) / 1000
        )
        axes = io_orientation(affine.cpu().numpy())
        axis = int(np.flatnonzero(axes[:, 0] == 0)[0])
        right = float(axes[axis, 1]) * spacing_mm[axis] * every[axis]

        image = volume[sample].cpu().numpy()
        low, high = np.percentile(image, (1, 99))
        body = image > low + BODY_OF_MR * (high - low)
        # A scan of few slices holds no liver in which to see it.
        if float(body.sum()) * voxel_ml < VOLUME_ML[0]:
            return None
        liver = self._liver(label[sample])
        found_ml = float(liver.sum()) * voxel_ml
        well = found_ml >= NEXT_TO_NOTHING_ML and _offset(liver, body, axis) * right >= RIGHT_MM
        if well and found_ml >= SMALL_ML and self.slices_mm is None:
            return None
        flipped = MetaTensor(
            volume.flip(axis)[None, None],
            affine=affine @ torch.diag(affine.new_tensor([1, 1, apart, 1])),
            meta={"filename_or_obj": [f"the mirror image of {get_file_name(inputs, index)}"]},
        )
        mirrored = self._liver(
            as_tensor(self.mirror_inferer(flipped, network, *args, **kwargs))[0, 0][sample]
        )
        mirrored_ml = float(mirrored.sum()) * voxel_ml
        if mirrored_ml < max(VOLUME_ML[0], found_ml * (LARGER if well else 1)):
            return None
        if _offset(mirrored, np.flip(body, axis), axis) * right < RIGHT_MM:
            return None
        return (
            f"{found_ml:.0f} ml of liver are found in it and {mirrored_ml:.0f} ml in its mirror "
            "image"
        )

    def _liver(self, labels: Tensor) -> np.ndarray:
        return largest(torch.isin(labels, self.liver.to(labels)).to(torch.uint8).cpu().numpy())


def _offset(mask: np.ndarray, body: np.ndarray, axis: int) -> float:
    """Return how many voxels the centre of a mask lies beyond that of the body along an axis.

    Neither is empty.
    """
    others = tuple(other for other in range(3) if other != axis)
    centres = [
        float(np.average(np.arange(part.shape[axis]), weights=part.sum(others)))
        for part in (mask, body)
    ]
    return centres[0] - centres[1]
