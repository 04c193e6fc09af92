from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRanged

from liverseg.errors import InputError
from liverseg.transforms import ScaleWindowd


def test_equals_monais_and_keeps_the_affine():
    image = MetaTensor(torch.randn(1, 5, 6, 7) * 300, affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    expected = ScaleIntensityRanged("image", -160, 240, 0.0, 1.0, clip=True)({"image": image.clone()})["image"]
    scaled = ScaleWindowd("image", [-160, 240])({"image": image})["image"]
    assert torch.allclose(scaled, expected, atol=1e-6)
    assert torch.equal(scaled.affine, expected.affine)
    assert scaled.data_ptr() == image.data_ptr()


def test_an_empty_window_is_refused():
    with pytest.raises(InputError, match=r"hu_window is \[240, -160\]"):
        ScaleWindowd("image", [240, -160])
