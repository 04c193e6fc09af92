"""Postprocess label maps, exact and fast: Algorithms 1, 2 and 3 of Furtado 2021, and holes.

All work on label maps (1, H, W, D) of any bool, integer or floating type that hold whole numbers,
as torch tensors, MetaTensors or NumPy arrays, and return the same type, with the same metadata.
For the algorithms, each label is its own mask. A voxel that its label loses becomes background (0);
where results overlap, the higher label wins, so a lesion inside the liver stays a lesion. A label
that comes out empty is logged as a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.transform import MapTransform, Transform
from monai.transforms.utils import fill_holes
from monai.utils import TransformBackends, convert_to_dst_type
from numpy.typing import NDArray

from liverseg.errors import InputError
from liverseg.transforms.morphology import (
    Mask,
    bounding_box,
    clean_slices,
    ellipsoid,
    in_threads,
    matlab_disk,
    open_largest,
    smooth_slices,
)

logger = logging.getLogger(__name__)

ELEMENTS = ("disk", "matlab_disk")


def _to_array(img: NdarrayOrTensor) -> NDArray[Any]:
    if isinstance(img, torch.Tensor):
        tensor = img.detach().cpu()
        img = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if img.ndim != 4 or img.shape[0] != 1 or img.size == 0:
        raise InputError(
            f"label map: found shape {tuple(img.shape)}, expected (1, H, W, D) with at least one "
            "voxel: give one volume with a channel axis (argmax of the network's output, keepdim)."
        )
    return img[0]


def _to_labels(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same values as uint8 where they fit, else as they are."""
    if array.dtype in (np.uint8, np.bool_):
        return np.ascontiguousarray(array).view(np.uint8)
    small = np.empty(array.shape, np.uint8)

    def copy(index: int) -> bool:
        with np.errstate(invalid="ignore"):
            small[index] = array[index]
        return np.array_equal(small[index], array[index])

    if all(in_threads(copy, range(len(array)))):
        return small
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(
            "label map: found values that are not whole numbers, expected labels: take the argmax "
            "of probabilities or threshold them first."
        )
    return np.ascontiguousarray(array)


def _label_spans(labels: NDArray[Any]) -> dict[int, tuple[int, int]]:
    """Return each non-zero label's first index along the first axis, and one past its last."""

    def values(section: NDArray[Any]) -> list[int]:
        if labels.dtype != np.uint8:
            return [int(value) for value in np.unique(section) if value]
        # Few labels meet in one slice: taking away the highest again and again is faster than a
        # histogram.
        found = []
        while highest := int(section.max()):
            found.append(highest)
            section = cv2.threshold(section, highest - 1, 0, cv2.THRESH_TOZERO_INV)[1]
        return found

    spans: dict[int, tuple[int, int]] = {}
    for index, found in enumerate(in_threads(values, labels)):
        for value in found:
            spans[value] = (spans.get(value, (index, 0))[0], index + 1)
    return spans


class _PerLabel(Transform):
    """Apply `process` to the mask of each label, cropped to it and one voxel around it."""

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 MONAI's own name and type

    def process(self, mask: Mask, spacing: NDArray[np.float64] | None) -> Mask:
        """Return the new mask, which must lie in the bounding box of the old one."""
        raise NotImplementedError

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        array = _to_array(img)
        labels = _to_labels(array)
        spans = _label_spans(labels)
        spacing = None
        if isinstance(img, MetaTensor):
            spacing = np.asarray(affine_to_spacing(img.affine.cpu().numpy()), dtype=np.float64)

        output: NDArray[Any] = np.zeros(array.shape, array.dtype)
        for label, (first, stop) in sorted(spans.items()):
            start = max(first - 1, 0)
            mask = (labels[start : stop + 1] == label).view(np.uint8)
            box = bounding_box(mask, (1, 1, 1))
            assert box is not None
            mask = np.ascontiguousarray(mask[box])
            result = self.process(mask, spacing).view(np.bool_)
            if not result.any():
                logger.warning("%s: nothing of label %d is left.", type(self).__name__, label)
            np.copyto(output[start:][box], output.dtype.type(label), where=result)
        return convert_to_dst_type(output[None], img)[0]


def _check_radius(radius: float, radius_mm: float | None) -> None:
    name, value = ("radius", radius) if radius_mm is None else ("radius_mm", radius_mm)
    if not value >= 0:
        raise InputError(
            f"{name}: found {value}, expected zero or more: give the radius of the ball or disk."
        )


def _check_element(element: str, radius: float, radius_mm: float | None) -> None:
    if element not in ELEMENTS:
        raise InputError(
            f"element: found {element}, expected {' or '.join(ELEMENTS)}: set it to one of these."
        )
    if element == "matlab_disk" and (radius_mm is not None or radius % 1 != 0):
        found = f"radius {radius}" if radius_mm is None else f"radius_mm {radius_mm}"
        raise InputError(
            f"element: found matlab_disk with {found}, expected a radius of whole pixels, as "
            "MATLAB takes it: give one, or set element to disk."
        )


def _radii(
    radius: float, radius_mm: float | None, spacing: NDArray[np.float64] | None
) -> list[float]:
    if radius_mm is None:
        return [radius] * 3
    if spacing is None:
        raise InputError(
            f"radius_mm: found {radius_mm} with a label map that has no affine, expected a "
            "MetaTensor: load the image with its metadata or give radius in voxels."
        )
    return [radius_mm / mm for mm in spacing]


def _check_axes(axes: Sequence[int]) -> None:
    if not axes or not set(axes) <= {0, 1, 2}:
        raise InputError(
            f"axes: found {list(axes)}, expected one or more of 0, 1, 2: "
            "name the axes of (H, W, D)."
        )


class ErodeKeepLargestDilate(_PerLabel):
    """Erode with a ball, keep the largest 26-connected component, and dilate, in 3-D (Algorithm 1).

    The ball holds the offsets with dx² + dy² + dz² <= radius². Outside the image is foreground for
    the erosion and background for the dilation. Of components of equal size the first in C order
    stays. A label that the erosion removes altogether comes out empty, as the algorithm says: on
    thick slices use `radius_mm`.

    Args:
        radius: of the ball, in voxels.
        radius_mm: takes the place of `radius`: an ellipsoid in voxels, from the affine of the
            MetaTensor.
        keep_largest: False keeps all components.

    Raises:
        InputError: for another shape than (1, H, W, D), values that are not whole numbers,
            `radius_mm` without an affine, or a radius of more than 63 voxels along the last axis.
    """

    def __init__(
        self, radius: float = 3, radius_mm: float | None = None, keep_largest: bool = True
    ) -> None:
        _check_radius(radius, radius_mm)
        self.radius, self.radius_mm, self.keep_largest = radius, radius_mm, keep_largest

    def process(self, mask: Mask, spacing: NDArray[np.float64] | None) -> Mask:
        """See the class."""
        return open_largest(mask, _radii(self.radius, self.radius_mm, spacing), self.keep_largest)


class SmoothEdges(_PerLabel):
    """Algorithm 3: in each slice keep the pixels whose 5 × 5 mean is above one half.

    Outside the image is zero, with which MATLAB's ``imfilter`` pads: corners of a mask at the
    border of the image are rounded, a slice of fewer than three pixels across comes out empty.

    Args:
        axes: the slices are those along each of these axes of (H, W, D), one axis after the other.

    Raises:
        InputError: for another shape than (1, H, W, D) or values that are not whole numbers.
    """

    def __init__(self, axes: Sequence[int] = (2,)) -> None:
        _check_axes(axes)
        self.axes = tuple(axes)

    def process(self, mask: Mask, spacing: NDArray[np.float64] | None) -> Mask:
        """See the class."""
        for axis in self.axes:
            mask = smooth_slices(mask, axis)
        return mask


class CleanSlices(_PerLabel):
    """Postprocess all slices along one axis after the other, in 2-D (Algorithm 2).

    In each slice: erode with a disk, keep the largest 8-connected component, dilate with the same
    disk, fill holes (background that no 4-connected path joins to the edge), smooth the edges
    (Algorithm 3). The rules for borders, equal sizes and empty results are those of
    `ErodeKeepLargestDilate` and `SmoothEdges`.

    The paper writes ``strel('disk', 3)``, which in its MATLAB is no disk but a square of 5 × 5
    pixels; `element="matlab_disk"` takes that one.

    With all three axes, as in the paper, a concave organ loses true parts, and a volume of fewer
    than three slices comes out empty; `axes=(2,)` cleans the axial slices alone.

    Args:
        radius: of the disk, in pixels.
        radius_mm: takes the place of `radius`: an ellipse in pixels, from the affine of the
            MetaTensor.
        axes: the slices are those along each of these axes of (H, W, D), one axis after the other.
        keep_largest: False keeps all components.
        element: "disk", the offsets with dx² + dy² <= radius², 29 of them for radius 3; or
            "matlab_disk", those of MATLAB's ``strel('disk', radius)``, 25 for radius 3, which takes
            whole pixels only.

    Raises:
        InputError: for another shape than (1, H, W, D), values that are not whole numbers,
            `radius_mm` without an affine, another `element`, or `matlab_disk` with `radius_mm` or a
            fraction of a pixel.
    """

    def __init__(
        self,
        radius: float = 3,
        radius_mm: float | None = None,
        axes: Sequence[int] = (0, 1, 2),
        keep_largest: bool = True,
        element: str = "disk",
    ) -> None:
        _check_radius(radius, radius_mm)
        _check_axes(axes)
        _check_element(element, radius, radius_mm)
        self.radius, self.radius_mm, self.keep_largest = radius, radius_mm, keep_largest
        self.axes, self.element = tuple(axes), element

    def process(self, mask: Mask, spacing: NDArray[np.float64] | None) -> Mask:
        """See the class."""
        radii = _radii(self.radius, self.radius_mm, spacing)
        for axis in self.axes:
            if self.element == "matlab_disk":
                element = matlab_disk(int(self.radius))
            else:
                element = ellipsoid([r for i, r in enumerate(radii) if i != axis])
            mask = clean_slices(mask, axis, element, self.keep_largest)
        return mask


class FillBackgroundHoles(Transform):
    """Fill the holes of labels, where they are background; all else stays as it is.

    A hole of label c is background from which no path of voxels that share a face leads to the edge
    of the image without crossing label c. It becomes c, the highest label first. MONAI's
    `FillHoles` gives a label all that it encloses: a vessel or a lesion inside the liver becomes
    liver.

    Args:
        nested: labels lie in one another, as lesions (2) lie in the liver (1): labels above c bound
            a hole of c as c does.

    Raises:
        InputError: for another shape than (1, H, W, D) or values that are not whole numbers.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 MONAI's own name and type

    def __init__(self, nested: bool = False) -> None:
        self.nested = nested

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """See the class."""
        labels = _to_labels(_to_array(img)).copy()
        box = bounding_box((labels > 0).view(np.uint8), (1, 1, 1))
        if box is not None:
            inside = labels[box]
            for label in sorted(_label_spans(inside), reverse=True):
                mask = inside >= label if self.nested else inside == label
                filled = fill_holes(mask.astype(np.uint8)[None], [1], connectivity=1)
                inside[filled[0].view(np.bool_) & (inside == 0)] = label
        return convert_to_dst_type(labels[None], img)[0]


class _OfArrayd(MapTransform):
    """Delegates to the array transform; an InputError names the key."""

    backend = _PerLabel.backend
    array_class: type[Transform]

    def __init__(
        self, keys: KeysCollection, allow_missing_keys: bool = False, **options: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = self.array_class(**options)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            try:
                d[key] = self.transform(d[key])
            except InputError as error:
                raise InputError(f"{key}: {error}") from error
        return d


class ErodeKeepLargestDilated(_OfArrayd):
    """Dictionary-based wrapper of `ErodeKeepLargestDilate`, with its options."""

    array_class = ErodeKeepLargestDilate


class SmoothEdgesd(_OfArrayd):
    """Dictionary-based wrapper of `SmoothEdges`, with its options."""

    array_class = SmoothEdges


class CleanSlicesd(_OfArrayd):
    """Dictionary-based wrapper of `CleanSlices`, with its options."""

    array_class = CleanSlices


class FillBackgroundHolesd(_OfArrayd):
    """Dictionary-based wrapper of `FillBackgroundHoles`, with its options."""

    array_class = FillBackgroundHoles
