"""Move a segmentation's borders to the edges of the image, by a fully connected CRF."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.transform import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from numpy.typing import NDArray

from liverseg.errors import InputError
from liverseg.transforms.morphology import Box, bounding_box

MARGIN = 2  # standard deviations of the wider kernel: 95 % of it along an axis
LOWEST_PROBABILITY = 1e-5  # the energy of a probability of zero is infinite
# The energy of a label that a voxel must not take, above all that weights can add up to.
IMPOSSIBLE = 1e6
# In standard deviations; the lattice counts in 16 bits and wraps silently at about 8000.
WIDEST_SPAN = 1000


def _import_densecrf() -> Any:
    try:
        from pydensecrf import densecrf
    except ModuleNotFoundError as error:
        raise InputError(
            "DenseCRF: found no package pydensecrf, expected pydensecrf2: pip install pydensecrf2."
        ) from error
    return densecrf


def _to_labels(pred: torch.Tensor) -> NDArray[np.uint8]:
    """Return the label map (H, W, D) of one (1, H, W, D) or of probabilities (C, H, W, D)."""
    if pred.shape[0] == 1:
        labels = pred[0].to(torch.uint8)
        if not torch.equal(labels.to(pred.dtype), pred[0]):
            raise InputError(
                "segmentation: found one channel with values other than the whole numbers 0 to "
                "255, expected a label map: threshold a probability or give those of all "
                "classes, background first."
            )
        return labels.cpu().numpy()
    low, high = (float(value) for value in pred.aminmax())
    if not (low >= 0 and high <= 1 + 1e-3):
        raise InputError(
            f"segmentation: found {pred.shape[0]} channels with values from {low:g} to {high:g}, "
            "expected probabilities: apply a softmax first."
        )
    return pred.max(0).indices.to(torch.uint8).cpu().numpy()  # on CPU a quarter of argmax's time


class DenseCRF(Transform):
    """Find the most probable labels under a fully connected conditional random field (CRF).

    The field is on a segmentation and its image.

    Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials", NIPS 2011: mean-field approximation, filtering on the permutohedral lattice, by the
    authors' code (package pydensecrf2). With the unary energy of a voxel, the negative logarithm of
    its probabilities, any two voxels i and j of different labels cost (eq. 3, Potts model)

        smoothness_weight · exp(−|p_i − p_j|² / 2 smoothness_mm²)
        + appearance_weight · exp(−|p_i − p_j|² / 2 appearance_mm² − |I_i − I_j|² / 2
        appearance_intensity²)

    with the positions p in mm and the intensities I. As in the authors' code each kernel K is
    normalised, K_ij / √(k_i k_j) with k_i = Σ_j K_ij, so the weights compare with the unary
    energies whatever the spacing and the widths.

    The CRF runs in the box around the foreground, widened by twice the larger of `smoothness_mm`
    and `appearance_mm`: beyond, background stays background. It needs about 0.3 GB per million
    voxels of the box with two labels, and one thread. The same input gives the same output.

    Args:
        spatial_dims: 3 for the volume as a whole; 2 for each slice along the last axis on its own.
        smoothness_mm: standard deviation of the smoothness kernel, in mm. Wider smooths more and
            removes small parts: 1 keeps a lesion of 4 mm radius, 2 removes it. Below half the
            spacing it only holds each voxel to its label.
        smoothness_weight: of the smoothness kernel.
        appearance_mm: standard deviation of the appearance kernel, in mm; how far alike voxels take
            one label.
        appearance_intensity: standard deviation of the appearance kernel, in units of the image;
            somewhat above the noise. The default suits the bundles' 0…1: it is 20 HU in a window of
            400 HU.
        appearance_weight: of the appearance kernel.
        num_iterations: of the mean-field approximation.
        label_confidence: of a voxel of a label map: its label and any other label have the odds p :
            (1 − p), however many labels there are. The default is that of pydensecrf's example,
            tuned on nothing. Without effect on probabilities.
        nested: labels above 1 lie within label 1, as lesions in an organ: a voxel that comes as
            background stays background or becomes 1.

    Raises:
        InputError: where pydensecrf2 is missing, and for an argument out of its range.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 MONAI's own name and type

    def __init__(
        self,
        spatial_dims: int = 3,
        smoothness_mm: float = 1,
        smoothness_weight: float = 3,
        appearance_mm: float = 7,
        appearance_intensity: float = 0.05,
        appearance_weight: float = 3,
        num_iterations: int = 5,
        label_confidence: float = 0.7,
        nested: bool = False,
    ) -> None:
        _import_densecrf()  # now, not when the network has run
        if spatial_dims not in (2, 3):
            raise InputError(
                f"spatial_dims: found {spatial_dims}, expected 2 or 3: give 2 for single slices."
            )
        widths = {
            "smoothness_mm": smoothness_mm,
            "appearance_mm": appearance_mm,
            "appearance_intensity": appearance_intensity,
        }
        for name, value in widths.items():
            if not 0 < value < math.inf:
                raise InputError(
                    f"{name}: found {value}, expected more than zero: give a standard deviation."
                )
        for name, value in {
            "smoothness_weight": smoothness_weight,
            "appearance_weight": appearance_weight,
        }.items():
            if not 0 <= value < math.inf:
                raise InputError(
                    f"{name}: found {value}, expected zero or more: give 0 to leave the kernel out."
                )
        if num_iterations < 1:
            raise InputError(
                f"num_iterations: found {num_iterations}, expected one or more: 5 to 10 are usual."
            )
        if not 0.5 < label_confidence < 1:
            raise InputError(
                f"label_confidence: found {label_confidence}, expected more than 0.5 and "
                "below 1: give a probability."
            )
        self.spatial_dims = spatial_dims
        self.smoothness_mm, self.smoothness_weight = smoothness_mm, smoothness_weight
        self.appearance_mm, self.appearance_weight = appearance_mm, appearance_weight
        self.appearance_intensity = appearance_intensity
        self.num_iterations = num_iterations
        self.label_confidence, self.nested = label_confidence, nested

    def __call__(self, pred: NdarrayOrTensor, image: NdarrayOrTensor) -> NdarrayOrTensor:  # type: ignore[override]
        """Return the new label map, uint8, shape (1, H, W, D), with the metadata of `pred`.

        A volume (with `spatial_dims=2` a slice) of one label only comes back as it is.

        Args:
            pred: a `MetaTensor`: a label map (1, H, W, D) or probabilities (C, H, W, D), background
                first.
            image: (1, H, W, D), on the grid of `pred`.

        Raises:
            InputError: for other shapes, `pred` without an affine or neither labels nor
                probabilities, and an image that is not finite or spans more than 1000 times
                `appearance_intensity`.
        """
        if pred.ndim != 4 or 0 in pred.shape:
            raise InputError(
                f"segmentation: found shape {tuple(pred.shape)}, expected (1, H, W, D) or (C, H, "
                "W, D) with at least one voxel: give one volume with a channel axis."
            )
        if tuple(image.shape) != (1, *pred.shape[1:]):
            raise InputError(
                f"image: found shape {tuple(image.shape)}, expected {(1, *pred.shape[1:])} as the "
                "segmentation: give an image of one channel on its grid, before the segmentation "
                "is inverted to that of the file."
            )
        if not isinstance(pred, MetaTensor):
            raise InputError(
                "segmentation: found no affine, expected a MetaTensor, for widths are in mm: load "
                "the image with its metadata."
            )
        spacing = np.asarray(affine_to_spacing(pred.affine.cpu().numpy()), dtype=np.float64)
        volume = convert_to_tensor(pred, track_meta=False).detach()
        intensities = convert_to_tensor(image, track_meta=False).detach()[0]

        labels = _to_labels(volume)
        output = labels.copy()
        for box in self._boxes(labels, spacing):
            present = np.unique(labels[box])
            if len(present) == 1:
                continue
            if len(volume) == 1:
                unary = np.full(
                    (len(present), labels[box].size),
                    -math.log(1 - self.label_confidence),
                    np.float32,
                )
                for energy, label in zip(unary, present, strict=True):
                    energy[labels[box].ravel() == label] = -math.log(self.label_confidence)
            else:
                present = np.arange(len(volume), dtype=np.uint8)
                probabilities = volume[(slice(None), *box)].float().cpu().flatten(1)
                unary = probabilities.clamp(LOWEST_PROBABILITY, 1).log().neg().numpy()
            if self.nested:
                unary[np.ix_(present > 1, labels[box].ravel() == 0)] = IMPOSSIBLE
            part = intensities[box].float().cpu().numpy()
            output[box] = present[self._infer(unary, part, spacing)].reshape(part.shape)
        return convert_to_dst_type(output[None], pred, dtype=torch.uint8)[0]

    def _boxes(self, labels: NDArray[np.uint8], spacing: NDArray[np.float64]) -> Iterator[Box]:
        """Yield the box to work in, or that of each slice, if there is foreground."""
        margin_mm = MARGIN * max(self.smoothness_mm, self.appearance_mm)
        margin = [math.ceil(margin_mm / mm) for mm in spacing]
        foreground = labels > 0
        if self.spatial_dims == 3:
            box = bounding_box(foreground, margin)
            if box is not None:
                yield box
            return
        for index in range(labels.shape[2]):
            box = bounding_box(foreground[:, :, index : index + 1], margin)
            if box is not None:
                yield (*box[:2], slice(index, index + 1))

    def _infer(
        self, unary: NDArray[np.float32], image: NDArray[np.float32], spacing: NDArray[np.float64]
    ) -> NDArray[np.intp]:
        """Return the most probable label of each voxel, flat, from energies (labels, voxels)."""
        low, high = float(image.min()), float(image.max())
        if not high - low <= WIDEST_SPAN * self.appearance_intensity:
            raise InputError(
                f"image: found intensities from {low:g} to {high:g}, expected a span of at "
                f"most {WIDEST_SPAN} times appearance_intensity={self.appearance_intensity:g}: "
                "give it in units of the image."
            )
        crf = _import_densecrf().DenseCRF(image.size, len(unary))
        crf.setUnaryEnergy(unary)
        if self.smoothness_weight:
            crf.addPairwiseEnergy(
                self._positions(image.shape, spacing / self.smoothness_mm),
                compat=self.smoothness_weight,
            )
        if self.appearance_weight:
            positions = self._positions(image.shape, spacing / self.appearance_mm)
            intensity = (image.reshape(1, -1) - low) / np.float32(self.appearance_intensity)
            crf.addPairwiseEnergy(
                np.concatenate([positions, intensity]), compat=self.appearance_weight
            )
        return np.asarray(crf.inference(self.num_iterations)).argmax(0)

    def _positions(self, shape: tuple[int, ...], step: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return positions (spatial_dims, voxels) in C order, `step` apart along each axis."""
        positions = np.indices(shape, np.float32)[: self.spatial_dims].reshape(
            self.spatial_dims, -1
        )
        positions *= step[: self.spatial_dims, None].astype(np.float32)
        return positions


class DenseCRFd(MapTransform):
    """Dictionary-based wrapper of `DenseCRF`, with its options.

    Args:
        keys: of the predictions.
        image_key: of the image, on their grid.
        allow_missing_keys: skip keys that an item lacks.
        options: of `DenseCRF`.
    """

    backend = DenseCRF.backend

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.transform = DenseCRF(**options)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Return `data`, with the segmentations replaced; an error of `DenseCRF` names the key."""
        d = dict(data)
        if self.image_key not in d:
            raise InputError(
                f"image_key: found no {self.image_key!r} among {sorted(map(str, d))}, expected the "
                "image of the prediction: name its key."
            )
        for key in self.key_iterator(d):
            try:
                d[key] = self.transform(d[key], d[self.image_key])
            except InputError as error:
                raise InputError(f"{key}: {error}") from error
        return d
