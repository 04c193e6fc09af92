"""Algorithms 1, 2 and 3 in plain scipy, step by step: the reference for the shipped versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage


def ball(radius: float, spacing: Sequence[float]) -> np.ndarray:
    """Offsets no farther than `radius` from the centre; the unit is that of `spacing`."""
    reach = [int(radius / s + 1e-4) for s in spacing]
    element = np.zeros([2 * n + 1 for n in reach], dtype=bool)
    for index in np.ndindex(element.shape):
        offset = [(i - n) * s for i, n, s in zip(index, reach, spacing, strict=True)]
        element[index] = sum(o * o for o in offset) <= radius * radius * (1 + 1e-6)
    return element


def matlab_disk(radius: int) -> np.ndarray:
    """As MATLAB builds it, from radius 3, with n = 4: a pixel dilated with six lines in turn."""
    k = 2 * radius / (1 / np.tan(np.pi / 8) + 1 / np.sin(np.pi / 8))
    element = np.zeros((4 * radius + 1,) * 2, dtype=bool)
    element[2 * radius, 2 * radius] = True

    def dilate(step, repetitions):
        shifts = [
            np.roll(element, [times * s for s in step], (0, 1))
            for times in range(-repetitions, repetitions + 1)
        ]
        return np.logical_or.reduce(shifts)

    for step in ((1, 0), (1, 1), (0, 1), (-1, 1)):
        element = dilate(step, int(k / np.hypot(*step)))
    reached = (np.flatnonzero(element.any(0)).size - 1) // 2
    length = 2 * (radius - reached - 1) + 1
    if length >= 3:
        for step in ((0, 1), (1, 0)):
            element = dilate(step, length // 2)
    rows, columns = np.flatnonzero(element.any(1)), np.flatnonzero(element.any(0))
    return element[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """With full connectivity (8 or 26); of equal sizes the first that a scan in C order meets."""
    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    best, best_size = np.zeros_like(mask), 0
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    seen = (
        list(dict.fromkeys(components.ravel()[components.ravel() > 0].tolist()))
        if count > 1
        else range(1, count + 1)
    )
    for component in seen:
        if sizes[component] > best_size:
            best, best_size = components == component, sizes[component]
    return best


def open_largest(mask: np.ndarray, element: np.ndarray, keep_largest: bool) -> np.ndarray:
    eroded = ndimage.binary_erosion(mask, element, border_value=1)
    if keep_largest:
        eroded = largest_component(eroded)
    return ndimage.binary_dilation(eroded, element)


def smooth(section: np.ndarray, size: int = 5, threshold: float = 0.5) -> np.ndarray:
    counts = ndimage.convolve(
        section.astype(np.int64), np.ones((size, size), np.int64), mode="constant", cval=0
    )
    return counts / size**2 > threshold


def algorithm_1(mask, radius=3.0, spacing=(1, 1, 1), keep_largest=True):
    return open_largest(mask, ball(radius, spacing), keep_largest)


def algorithm_2(
    mask,
    radius=3.0,
    spacing=(1, 1, 1),
    axes=(0, 1, 2),
    keep_largest=True,
    size=5,
    threshold=0.5,
    element=None,
):
    """With a disk of `radius`, or the element that is given."""
    mask = mask.copy()
    for axis in axes:
        disk = element
        if disk is None:
            disk = ball(radius, [s for i, s in enumerate(spacing) if i != axis])
        for index in range(mask.shape[axis]):
            at = (slice(None),) * axis + (index,)
            opened = open_largest(mask[at], disk, keep_largest)
            mask[at] = smooth(ndimage.binary_fill_holes(opened), size, threshold)
    return mask


def algorithm_3(mask, axes=(2,), size=5, threshold=0.5):
    mask = mask.copy()
    for axis in axes:
        for index in range(mask.shape[axis]):
            at = (slice(None),) * axis + (index,)
            mask[at] = smooth(mask[at], size, threshold)
    return mask


def per_label(algorithm: Callable[..., np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Each label (H, W, D) on its own mask, written back in ascending order."""
    output = np.zeros_like(labels)
    for label in np.unique(labels[labels != 0]):
        output[algorithm(labels == label)] = label
    return output
