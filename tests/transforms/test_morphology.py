"""Components of masks, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from liverseg.transforms.morphology import connected_components


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_components_of_small_parts_of_arrays_are_scipys(connectivity, dtype):
    generator = np.random.default_rng(0)
    touching = ndimage.generate_binary_structure(3, {6: 1, 26: 3}[connectivity])
    for _ in range(2000):
        whole = generator.random(generator.integers(3, 8, 3)) < generator.choice([0.2, 0.5, 0.9])
        starts = [generator.integers(0, length) for length in whole.shape]
        part = whole[tuple(slice(start, start + generator.integers(1, 5)) for start in starts)]
        components, count = connected_components(part.view(dtype), connectivity)
        expected, number = ndimage.label(part, touching)
        assert count == number
        pairs = set(zip(components.ravel().tolist(), expected.ravel().tolist(), strict=True))
        assert len(pairs) == count + (not part.all())
