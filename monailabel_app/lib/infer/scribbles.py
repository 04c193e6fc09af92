"""Correct a mask with strokes: a graph cut in the region around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
import numpymaxflow
from monailabel.scribbles.utils import make_iseg_unary
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from sklearn.mixture import GaussianMixture

from liverseg.errors import InputError
from liverseg.transforms.morphology import Box, bounding_box, connected_components

LIKELIHOODS = ("histogram", "gmm")

# Log odds that the label gives grow by 1 in so many mm from its border.
BORDER_MM = 2.0
# The most that a prior says: networks are sure of their mistakes, too, and strokes must outweigh
# them.
PRIOR_LIMIT = 2.0
# Intensities from 0 to 1 in so many levels, and the least standard deviation of what is told of
# them by one voxel.
LEVELS, WIDTH = 256, 0.06
# With this many intensities a mixture of Gaussians is fitted in milliseconds.
SAMPLES, MIXTURES = 2000, 2
# Standard deviation of the difference of neighbours across which a border costs nothing, of
# intensities from 0 to 1.
SIGMA = 0.1
BACKGROUND, FOREGROUND = 2, 3
# So many are cut in a second or two.
LIMIT_VOXELS = 2_000_000

Mask = NDArray[np.bool_]


def regions_of(strokes: Mask, spacing_mm: Sequence[float], margin_mm: float) -> list[Box]:
    """Boxes around strokes with a margin, within the volume: strokes whose boxes overlap share one.

    Args:
        strokes: (H, W, D).
        spacing_mm: of the voxels along each axis.
        margin_mm: to each side.

    Raises:
        InputError: when there are no strokes.
    """
    whole = bounding_box(strokes)
    if whole is None:
        raise InputError(
            "label: found no strokes, expected some in the segments background_scribbles or "
            "foreground_scribbles: draw one and send it again."
        )
    margin = [math.ceil(margin_mm / mm) for mm in spacing_mm]
    regions: list[Box] = []
    # The first is the background, of everything else.
    components, _ = connected_components(strokes[whole], 26)
    for stroke in cc3d.statistics(components)["bounding_boxes"][1:]:
        region = tuple(
            slice(
                max(outer.start + part.start - far, 0), min(outer.start + part.stop + far, length)
            )
            for outer, part, far, length in zip(whole, stroke, margin, strokes.shape, strict=True)
        )
        while near := [other for other in regions if _overlap(region, other)]:
            regions = [other for other in regions if other not in near]
            axes = zip(region, *near, strict=True)
            region = tuple(
                slice(min(p.start for p in parts), max(p.stop for p in parts)) for parts in axes
            )
        regions.append(region)
    return regions


def _overlap(one: Box, other: Box) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def inner_of(region: Box, shape: Sequence[int]) -> Box:
    """The box in a region of what is not on its border with the rest of a volume of `shape`."""
    return tuple(
        slice(1 if part.start > 0 else None, -1 if part.stop < length else None)
        for part, length in zip(region, shape, strict=True)
    )


def correct_region(
    image: NDArray[np.floating],
    label: Mask,
    foreground: Mask,
    background: Mask,
    spacing_mm: Sequence[float],
    prior: str | NDArray[np.float32] | None,
    limit: int = LIMIT_VOXELS,
    **options: Any,
) -> Mask:
    """`cut`, of a region of more than `limit` voxels in larger ones, where that changes anything.

    Args:
        image: intensities, (h, w, d), as all of these.
        label: what is to be corrected.
        foreground: strokes on what belongs to it.
        background: strokes on what does not.
        spacing_mm: of the voxels along each axis.
        prior: "label", the probability of the foreground, or None.
        limit: number of voxels.
        options: the further ones of `cut`.
    """
    steps = np.ones(3, int)
    while np.prod(-(-np.array(label.shape) // steps)) > limit:
        steps[np.argmin(steps * spacing_mm)] *= 2
    pairs = list(zip(label.shape, steps, strict=True))
    middles = np.ix_(
        *(np.minimum(np.arange(0, length, step) + step // 2, length - 1) for length, step in pairs)
    )
    back = np.ix_(*(np.arange(length) // step for length, step in pairs))
    held, coarse_mm = label[middles], (steps * spacing_mm).tolist()
    strokes = np.zeros((2, *held.shape), bool)
    for coarse, drawn in zip(strokes, (foreground, background), strict=True):
        # However thin.
        coarse[tuple((np.argwhere(drawn) // steps).T)] = True
    if isinstance(prior, str):
        log_odds: NDArray[np.floating] | None = label_log_odds(held, coarse_mm)
    else:
        log_odds = None if prior is None else network_log_odds(prior[middles])
    found = cut(image[middles], held, strokes[0], strokes[1], coarse_mm, log_odds, **options)
    gained = found.astype(np.int8) - held
    corrected = label + gained[back] > 0
    corrected[foreground], corrected[background] = True, False
    return corrected


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
    inner: Box | None = None,
) -> Mask:
    """Correct `label` with strokes, all of one region, (h, w, d).

    The log odds of the foreground are a mixture: far from all strokes those of the prior; at a
    stroke those of the intensities under the strokes. The weight of the second is
    exp(-d / reach_mm) at a distance d from the nearest stroke. Strokes are certain, and the cut
    minimises this together with the smoothness of the border (Wang et al., "Interactive medical
    image segmentation using deep learning with image-specific fine tuning", IEEE TMI 37 (2018),
    equations 5 and 7), by maximal flow.

    Where there are strokes of one kind only, intensities of the other are those inside, or outside,
    of what the prior holds for the foreground (without one, the label) at more than `reach_mm` from
    the strokes.

    Args:
        image: intensities.
        label: what is to be corrected; with a prior it stays outside `inner`.
        foreground: strokes on what belongs to it.
        background: strokes on what does not.
        spacing_mm: of the voxels along each axis.
        prior: log odds of the foreground, such as those of `label_log_odds` and `network_log_odds`;
            None goes by the strokes alone.
        likelihood: how intensities are modelled, "histogram" or "gmm" (a mixture of Gaussians).
        reach_mm: how far a stroke tells of its surroundings.
        smoothness: weight of the border's smoothness.
        inner: as of `inner_of`; None where the region is the whole scan.
    """
    low, high = np.percentile(image, (1, 99))
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    distance = distance_transform_edt(~(foreground | background), sampling=spacing_mm)
    far = distance > reach_mm
    held = label if prior is None else prior > 0
    strokes = (
        background if background.any() else ~held & far,
        foreground if foreground.any() else held & far,
    )
    from_strokes = _likelihood(scaled, *strokes, likelihood)
    if prior is not None:
        weight = np.exp(-distance / reach_mm)
        log_odds = weight * from_strokes + (1 - weight) * prior
    else:
        log_odds = from_strokes
    probability = 1 / (1 + np.exp(-log_odds))
    probabilities = np.stack([1 - probability, probability]).astype(np.float32)
    certain = np.zeros(label.shape, np.uint8)
    if prior is not None and inner is not None:
        # So that nothing jumps there.
        edge = np.ones(label.shape, bool)
        edge[inner] = False
        certain[edge] = np.where(label[edge], FOREGROUND, BACKGROUND)
    certain[background], certain[foreground] = BACKGROUND, FOREGROUND
    unary = make_iseg_unary(probabilities, certain[None], BACKGROUND, FOREGROUND)
    return numpymaxflow.maxflow(scaled[None], unary, smoothness, SIGMA, connectivity=6)[0] > 0


def label_log_odds(label: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Log odds of the foreground by the distance from the border of a label (h, w, d)."""
    if label.all() or not label.any():
        return np.full(label.shape, PRIOR_LIMIT if label.any() else -PRIOR_LIMIT)
    inside = distance_transform_edt(label, sampling=spacing_mm) - distance_transform_edt(
        ~label, sampling=spacing_mm
    )
    return np.clip(inside / BORDER_MM, -PRIOR_LIMIT, PRIOR_LIMIT)


def network_log_odds(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log odds of the foreground by its probability (h, w, d)."""
    # Those of 0 and 1 are no numbers.
    inside = np.clip(probability, 1e-3, 1 - 1e-3)
    return np.clip(np.log(inside / (1 - inside)), -PRIOR_LIMIT, PRIOR_LIMIT)


def _likelihood(
    image: NDArray[np.float32], background: Mask, foreground: Mask, kind: str
) -> NDArray[np.float64]:
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
        drawn = np.random.default_rng(0).choice(values, min(len(values), SAMPLES), replace=False)
        # It is not fitted to a single voxel, nor to more Gaussians than intensities.
        drawn = np.resize(drawn, (max(len(drawn), 2), 1))
        mixture = GaussianMixture(
            min(MIXTURES, len(np.unique(drawn))), reg_covar=WIDTH**2, random_state=0
        ).fit(drawn)
        density = np.exp(mixture.score_samples(np.linspace(0, 1, LEVELS)[:, None]))
    return density + 0.01
