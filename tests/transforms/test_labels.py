from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed, MapLabelsd, labels
from liverseg.transforms.labels import whole_values


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
    data = LoadVolumed(keys="label")(
        {"label": write_nifti("l.nii.gz", np.ones((2, 2, 2), np.uint8), affine)}
    )
    converted = MapLabelsd(keys="label", classes={"background": [0], "liver": [1]})(data)["label"]
    assert np.allclose(converted.affine, affine)


@pytest.mark.parametrize("values", [[0, 1, 3], [0, -1], [0, 300, 1]])
def test_a_value_of_no_class_is_named(write_nifti, values):
    path = write_nifti("segmentation-3.nii.gz", np.array(values, np.float32).reshape(1, 1, -1))
    data = LoadVolumed(keys="label")({"label": path})
    odd = next(value for value in values if value not in (0, 1, 2))
    with pytest.raises(
        InputError,
        match=rf"segmentation-3\.nii\.gz: label values {odd} are in no class.*\[0, 1, 2\]",
    ):
        MapLabelsd(keys="label", classes={"background": [0], "liver": [1, 2]})(data)


def write_scaled(path, values, dtype=np.uint8):
    """A float label stored as whole numbers with a scale, as nibabel does for another data type."""
    image = nib.Nifti1Image(np.array(values, np.float32).reshape(1, 1, -1), np.eye(4))
    image.set_data_dtype(dtype)
    nib.save(image, path)
    return str(path)


def test_values_that_are_whole_but_for_rounding_are_whole(tmp_path, write_nifti):
    near = np.array([0, 0.9999999, 1.0000001, 2.0000002, 1e-7, -1e-7], np.float32).reshape(1, 1, -1)
    scaled = write_scaled(tmp_path / "scaled.nii", [0, 1, 1, 2, 0, 0])
    assert not set(np.asarray(nib.load(scaled).dataobj).flat) <= {0, 1, 2}
    for path in (write_nifti("near.nii.gz", near), scaled):
        data = LoadVolumed(keys="label")({"label": path})
        assert convert(
            data["label"], {"background": [0], "liver": [1], "lesion": [2]}
        ).flatten().tolist() == [*(0, 1, 1, 2, 0, 0)]


@pytest.mark.parametrize(
    ("values", "found"),
    [([0, 0.5, 1], "0.5"), ([0.75, 1, 0.25], "0.25, 0.75"), ([0, 1, 1.02], "1.02")],
)
def test_values_between_are_refused_with_what_to_do(write_nifti, values, found):
    path = write_nifti("segmentation-3.nii.gz", np.array(values, np.float32).reshape(1, 1, -1))
    data = LoadVolumed(keys="label")({"label": path})
    for classes in ({"background": [0], "liver": [1]}, {"background": None, "liver": [1]}):
        with pytest.raises(
            InputError,
            match=rf"segmentation-3\.nii\.gz: found label values {found}, expected whole",
        ):
            MapLabelsd(keys="label", classes=classes)(data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.5])
def test_every_part_of_a_large_label_is_looked_at(monkeypatch, bad):
    monkeypatch.setattr(labels, "CHUNK", 2)
    values = torch.tensor([0.0, 1, 2, 3, 4, 5, 6])
    assert whole_values(values) is values
    for place in range(len(values)):
        with pytest.raises(InputError, match=r"^mask: found label values"):
            whole_values(torch.where(torch.arange(len(values)) == place, bad, values), "mask")


def test_the_advice_for_unknown_values_leads_to_a_reference(write_nifti, caplog):
    values = np.array([0, 6, 6, 11], np.uint8).reshape(1, 1, -1)
    data = LoadVolumed(keys="label")({"label": write_nifti("label.nii.gz", values)})
    with pytest.raises(
        InputError, match=r"values 6, 11 are in no class.*list in `classes` under each class"
    ):
        MapLabelsd(keys="label", classes={"background": [0], "liver": [1]})(data)
    # As it says: first the values of the class, then null.
    assert convert(data["label"], {"background": None, "liver": [6]}).flatten().tolist() == [
        0,
        1,
        1,
        0,
    ]
    assert not caplog.text
    # Null alone takes the liver for background, which is not left unsaid.
    assert not convert(data["label"], {"background": None, "liver": [1]}).any()
    assert (
        "label.nii.gz: found none of the values [1] of `classes`, so all of it is taken for "
        "background" in caplog.text
    )
    caplog.clear()
    convert(torch.zeros(1, 2, 2, 2), {"background": None, "liver": [1]})
    assert not caplog.text


@pytest.mark.parametrize("classes", [{"a": [0], "b": [0]}, {"a": None, "b": None}])
def test_ambiguous_classes_are_refused(classes):
    with pytest.raises(InputError, match="classes"):
        MapLabelsd(keys="label", classes=classes)
