from __future__ import annotations

import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed, MapLabelsd


def convert(label, classes):
    return MapLabelsd(keys="label", classes=classes)({"label": label})["label"]


def test_values_become_class_indices():
    label = torch.tensor([[[[0.0, 1.0, 2.0, 7.0]]]])
    classes = convert(label, {"background": [0], "liver": [1, 2], "spleen": [7]})
    assert classes.dtype == torch.uint8
    assert classes.flatten().tolist() == [0, 1, 1, 2]


def test_null_takes_all_other_values():
    label = torch.tensor([[[[0.0, 5.0, 117.0, 5.0]]]])
    assert convert(label, {"background": None, "liver": [5]}).flatten().tolist() == [0, 1, 0, 1]
    assert convert(label, {"liver": [5], "other": None}).flatten().tolist() == [1, 0, 1, 0]


def test_the_affine_stays(write_nifti):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    data = LoadVolumed(keys="label")({"label": write_nifti("l.nii.gz", np.ones((2, 2, 2), np.uint8), affine)})
    converted = MapLabelsd(keys="label", classes={"background": [0], "liver": [1]})(data)["label"]
    assert np.allclose(converted.affine, affine)


@pytest.mark.parametrize("values", [[0, 1, 3], [0, 0.5, 1], [0, -1]])
def test_a_value_of_no_class_is_named(write_nifti, values):
    path = write_nifti("segmentation-3.nii.gz", np.array(values, np.float32).reshape(1, 1, -1))
    data = LoadVolumed(keys="label")({"label": path})
    odd = next(value for value in values if value not in (0, 1, 2))
    with pytest.raises(InputError, match=rf"segmentation-3\.nii\.gz: label values {odd} are in no class.*\[0, 1, 2\]"):
        MapLabelsd(keys="label", classes={"background": [0], "liver": [1, 2]})(data)


@pytest.mark.parametrize("classes", [{"a": [0], "b": [0]}, {"a": None, "b": None}])
def test_ambiguous_classes_are_refused(classes):
    with pytest.raises(InputError, match="classes"):
        MapLabelsd(keys="label", classes=classes)
