"""Correct a mask with strokes: a graph cut in the region around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpymaxflow
from monailabel.scribbles.utils import make_iseg_unary
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from sklearn.mixture import GaussianMixture

from liverseg.errors import InputError
from liverseg.transforms.morphology import Box, bounding_box

LIKELIHOODS = ("histogram", "gmm")

# Log odds that the label gives grow by 1 in so many mm from its border.
BORDER_MM = 2.0
# The most that a prior says: networks are sure of their mistakes, too, and strokes must outweigh them.
PRIOR_LIMIT = 2.0
# Intensities from 0 to 1 in so many levels, and the least standard deviation of what is told of them by one voxel.
LEVELS, WIDTH = 256, 0.06
# With this many intensities a mixture of Gaussians is fitted in milliseconds.
SAMPLES, MIXTURES = 2000, 2
# Standard deviation of the difference of neighbours across which a border costs nothing, of intensities from 0 to 1.
SIGMA = 0.1
BACKGROUND, FOREGROUND = 2, 3

Mask = NDArray[np.bool_]


def region_of(strokes: Mask, spacing_mm: Sequence[float], margin_mm: float) -> Box:
    """The box around strokes with a margin, within the volume.

    Args:
        strokes: (H, W, D).
        spacing_mm: of the voxels along each axis.
        margin_mm: to each side.

    Raises:
        InputError: when there are no strokes.
    """
    box = bounding_box(strokes.view(np.uint8), [math.ceil(margin_mm / mm) for mm in spacing_mm])
    if box is None:
        raise InputError(
            "label: found no strokes, expected some in the segments background_scribbles or foreground_scribbles: "
            "draw one and send it again."
        )
    return tuple(slice(part.start, min(part.stop, length)) for part, length in zip(box, strokes.shape, strict=True))


def cut(
    image: NDArray[np.float32],
    label: Mask,
    foreground: Mask,
    background: Mask,
    spacing_mm: Sequence[float],
    prior: NDArray[np.floating] | None,
    likelihood: str = "histogram",
    reach_mm: float = 15,
    smoothness: float = 1,
) -> Mask:
    """Correct `label` with strokes, all of one region, (h, w, d).

    The log odds of the foreground are a mixture: far from all strokes those of the prior; at a stroke those of the
    intensities under the strokes. The weight of the second is exp(-d / reach_mm) at a
    distance d from the nearest stroke. Strokes are certain, and the cut minimises this together with the smoothness
    of the border (Wang et al., "Interactive medical image segmentation using deep learning with image-specific fine
    tuning", IEEE TMI 37 (2018), equations 5 and 7), by maximal flow.

    Where there are strokes of one kind only, intensities of the other are those inside, or outside, of what the prior
    holds for the foreground (without one, the label) at more than `reach_mm` from the strokes.

    Args:
        image: intensities.
        label: what is to be corrected; with a prior it stays on the border of the region.
        foreground: strokes on what belongs to it.
        background: strokes on what does not.
        spacing_mm: of the voxels along each axis.
        prior: log odds of the foreground, such as those of `label_log_odds` and `network_log_odds`; None goes by the
            strokes alone.
        likelihood: how intensities are modelled, "histogram" or "gmm" (a mixture of Gaussians).
        reach_mm: how far a stroke tells of its surroundings.
        smoothness: weight of the border's smoothness.
    """
    low, high = np.percentile(image, (1, 99))
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    distance = distance_transform_edt(~(foreground | background), sampling=spacing_mm)
    far = distance > reach_mm
    held = label if prior is None else prior > 0
    strokes = background if background.any() else ~held & far, foreground if foreground.any() else held & far
    from_strokes = _likelihood(scaled, *strokes, likelihood)
    if prior is not None:
        weight = np.exp(-distance / reach_mm)
        log_odds = weight * from_strokes + (1 - weight) * prior
    else:
        log_odds = from_strokes
    probability = 1 / (1 + np.exp(-log_odds))
    probabilities = np.stack([1 - probability, probability]).astype(np.float32)
    certain = np.zeros(label.shape, np.uint8)
    if prior is not None:
        # The border of the region, so that nothing jumps there.
        edge = np.ones(label.shape, bool)
        edge[tuple(slice(1, -1) for _ in edge.shape)] = False
        certain[edge] = np.where(label[edge], FOREGROUND, BACKGROUND)
    certain[background], certain[foreground] = BACKGROUND, FOREGROUND
    unary = make_iseg_unary(probabilities, certain[None], BACKGROUND, FOREGROUND)
    return numpymaxflow.maxflow(scaled[None], unary, smoothness, SIGMA, connectivity=6)[0] > 0


def label_log_odds(label: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Log odds of the foreground by the distance from the border of a label (h, w, d)."""
    if label.all() or not label.any():
        return np.full(label.shape, PRIOR_LIMIT if label.any() else -PRIOR_LIMIT)
    inside = distance_transform_edt(label, sampling=spacing_mm) - distance_transform_edt(~label, sampling=spacing_mm)
    return np.clip(inside / BORDER_MM, -PRIOR_LIMIT, PRIOR_LIMIT)


def network_log_odds(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log odds of the foreground by its probability (h, w, d)."""
    # Those of 0 and 1 are no numbers.
    inside = np.clip(probability, 1e-3, 1 - 1e-3)
    return np.clip(np.log(inside / (1 - inside)), -PRIOR_LIMIT, PRIOR_LIMIT)


def _likelihood(image: NDArray[np.float32], background: Mask, foreground: Mask, kind: str) -> NDArray[np.float64]:
    """Log odds of the foreground by intensity, from intensities of both."""
    if not background.any() or not foreground.any():
        return np.zeros(image.shape)
    # By intensity and not by voxel, of which there are many more.
    index = np.round(image * (LEVELS - 1)).astype(np.uint8)
    densities = [_density(image[mask], kind)[index] for mask in (foreground, background)]
    return np.log(densities[0]) - np.log(densities[1])


def _density(values: NDArray[np.float32], kind: str) -> NDArray[np.float64]:
    """How often each of `LEVELS` intensities from 0 to 1 is, with a little of all."""
    if kind == "histogram":
        counts = np.bincount(np.round(values * (LEVELS - 1)).astype(int), minlength=LEVELS)
        density = gaussian_filter1d(counts / len(values) * LEVELS, WIDTH * LEVELS)
    else:
        drawn = np.random.default_rng(0).choice(values, min(len(values), SAMPLES), replace=False)[:, None]
        mixture = GaussianMixture(min(MIXTURES, len(drawn)), reg_covar=WIDTH**2, random_state=0).fit(drawn)
        density = np.exp(mixture.score_samples(np.linspace(0, 1, LEVELS)[:, None]))
    return density + 0.01
