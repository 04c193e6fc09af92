"""What a set of labels must have before a network learns from it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from liverseg.data import load_datalist, voxel_counts
from liverseg.data.classes import check_label_names
from liverseg.data.segment_names import is_known, our_name
from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed

LIVER = {"background": [0], "liver": [1, 2]}
LESIONS = {"background": [0], "liver": [1], "lesion": [2]}


@pytest.fixture
def make(tmp_path, write_nifti):
    """A datalist of scans in two folds, whose labels hold the values that are given for each."""

    def make(*values, names=None):
        items = []
        for number, some in enumerate(values):
            label = np.zeros((4, 5, 6), np.uint8)
            label[0, 0, : len(some)] = some
            files = {key: f"{key}{number}.nii.gz" for key in ("image", "label")}
            for file in files.values():
                write_nifti(file, label)
            items.append({**files, "fold": number % 2})
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": names, "training": items}))
        return tmp_path / "dataset.json"

    return make


def test_a_class_without_a_voxel_is_refused_in_either_section(make):
    datalist = make([1, 2], [1], [1, 2], [1])
    assert len(load_datalist(datalist, "validation", 0, LESIONS)) == 2
    for section, fold in (("training", 0), ("validation", 1)):
        with pytest.raises(
            InputError,
            match=rf"dataset\.json: {section}: found no voxel of lesion \(2\) .* 2 scans",
        ):
            load_datalist(datalist, section, fold, LESIONS)
        assert len(load_datalist(datalist, section, fold, LIVER)) == 2
        # The data are known to have none.
        assert len(load_datalist(datalist, section, fold, {**LESIONS, "lesion": []})) == 2
    with pytest.raises(InputError, match=r"found no voxel of spleen \(3\), pancreas \(4, 5\)"):
        load_datalist(datalist, "training", 1, {**LESIONS, "spleen": [3], "pancreas": [4, 5]})
    with pytest.raises(InputError, match=r"found no voxel of background \(7\)"):
        load_datalist(datalist, "training", 0, {"background": [7], "body": None})


def test_all_other_values_are_a_class_too(make):
    datalist = make([1], [0], [1], [0])
    rest = {"background": [0], "body": None}
    assert load_datalist(datalist, "validation", 0, rest)
    with pytest.raises(InputError, match="no voxel of body"):
        load_datalist(datalist, "training", 0, rest)
    # One scan of background alone does no harm beside others.
    assert load_datalist(make([1], [0], [0], [1]), "training", 0, LIVER)


def test_no_more_labels_are_read_than_it_takes(make, monkeypatch):
    read = []

    class Recorded(LoadVolumed):
        def __call__(self, item):
            read.append(item["label"])
            return super().__call__(item)

    monkeypatch.setattr(voxel_counts, "LoadVolumed", Recorded)
    datalist = make(*[[1, 2]] * 20)
    load_datalist(datalist, "training", 0, LESIONS)
    assert len(read) == 1
    load_datalist(datalist, "training", 0, LESIONS)
    assert len(read) == 1
    with pytest.raises(InputError, match="spleen"):
        load_datalist(datalist, "training", 0, {**LESIONS, "spleen": [3]})
    assert len(read) == 10


def test_values_that_are_another_organ_are_refused(make):
    btcv = {"0": "background", "1": "spleen", "6": "liver"}
    with pytest.raises(
        InputError, match=r"labels: found 'spleen' for the value 1, expected 'liver'"
    ):
        load_datalist(make([1, 2], [1, 2], names=btcv), "training", 0, LIVER)
    assert load_datalist(
        make([1, 6], [1, 6], names=btcv), "training", 0, {"background": [0, 1], "liver": [6]}
    )


@pytest.mark.parametrize(
    ("labels", "classes", "wrong"),
    [
        ({1: "liver", 2: "cancer"}, LIVER, None),
        ({1: "liver", 2: "cancer"}, LESIONS, None),
        ({1: "Leber", 2: "x"}, LESIONS, None),
        ({1: "liver"}, {"background": [0], "target": [1]}, None),
        ({1: "liver", 2: "lesion"}, {"background": [0, 1], "lesion": [2]}, None),
        ({2: "liver", 1: "lesion"}, LESIONS, "'liver' for the value 2"),
        (
            {3: "kidney_left", 2: "kidney_right"},
            {"background": [0], "right_kidney": [2], "left_kidney": [3]},
            None,
        ),
        (
            {2: "kidney_left"},
            {"background": [0], "right_kidney": [2]},
            "'kidney_left' for the value 2",
        ),
        (
            {52: "aorta", 64: "portal_vein_and_splenic_vein"},
            {"artery": [52], "portal_vein": [64]},
            None,
        ),
        ({}, LESIONS, None),
    ],
)
def test_names_of_a_data_set_against_classes(labels, classes, wrong):
    if wrong is None:
        check_label_names("x", labels, classes)
    else:
        with pytest.raises(InputError, match=wrong):
            check_label_names("x", labels, classes)


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (["liver", "Liver", " LIVER", "hepar", "Liver_1", "Whole Liver"], "liver"),
        (
            [
                "lesion",
                "Tumor",
                "tumour 2",
                "liver_tumor",
                "livertumor01",
                "Metastases",
                "cancer",
                "mass",
            ],
            "lesion",
        ),
        (["left_kidney", "kidney_left", "Left Kidney", "Kidney, left", "kidney L"], "left kidney"),
        (["adrenal_gland_right", "right adrenal gland"], "right adrenal gland"),
        (["portal_vein_and_splenic_vein", "portal vein"], "portal vein"),
        (["gall bladder", "Gallbladder"], "gallbladder"),
    ],
)
def test_names_that_mean_the_same(names, ours):
    assert [our_name(name) for name in names] == [ours] * len(names)
    assert all(map(is_known, names))


@pytest.mark.parametrize(
    "name", ["Segment_1", "", "1", "cyst", "kidney", "left liver", "liver segment 4", "organ", "左"]
)
def test_names_that_say_nothing(name):
    assert not is_known(name)
