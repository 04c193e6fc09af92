from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
import torch

from liverseg.data import count_voxels, dice_weights, inverse_frequency_weights, voxel_counts
from liverseg.errors import InputError
from liverseg.transforms import LoadVolumed

CLASSES = {"background": [0], "liver": [1, 2], "spleen": [7]}


@pytest.fixture
def labels():
    """Two label volumes with the values 0, 1, 2 and 7."""
    generator = np.random.default_rng(0)
    return [
        generator.choice([0, 1, 2, 7], shape, p=[0.7, 0.1, 0.15, 0.05])
        for shape in ((20, 15, 33), (11, 9, 3))
    ]


@pytest.fixture
def data(labels, write_nifti):
    """The items of the two, on grids of 1 and of 8 mm³."""
    affines = [np.eye(4), np.diag([2.0, -2.0, 2.0, 1.0])]
    files = zip(labels, affines, strict=True)
    return [
        {"label": write_nifti(f"{n}.nii.gz", v.astype(np.int16), a)}
        for n, (v, a) in enumerate(files)
    ]


@pytest.fixture
def read(monkeypatch):
    """The label files that are read, as they are."""
    found = []

    class Recorded(LoadVolumed):
        def __call__(self, item):
            found.append(os.path.basename(item["label"]))
            return super().__call__(item)

    monkeypatch.setattr(voxel_counts, "LoadVolumed", Recorded)
    return found


def by_hand(labels):
    return [
        sum(int(np.isin(label, values).sum()) for label in labels) for values in CLASSES.values()
    ]


def test_counts_of_all_labels(data, labels):
    assert count_voxels(data, CLASSES).tolist() == by_hand(labels)
    rest = {"background": None, "spleen": [7]}
    spleen = by_hand(labels)[2]
    assert count_voxels(data, rest).tolist() == [sum(by_hand(labels)) - spleen, spleen]


def test_counts_of_the_voxels_that_the_network_sees(data, labels):
    fine, coarse = (np.array(by_hand([label])) for label in labels)
    assert np.allclose(count_voxels(data, CLASSES, spacing=(4, 4, 4)), fine / 64 + coarse / 8)
    assert np.allclose(count_voxels(data, CLASSES, spacing=(4, 4, -1)), fine / 16 + coarse / 4)


def test_counted_once_and_again_only_what_changed(data, labels, read, tmp_path, write_nifti):
    datalist = tmp_path / "dataset.json"
    assert count_voxels(data, CLASSES, datalist).tolist() == by_hand(labels)
    assert sorted(read) == ["0.nii.gz", "1.nii.gz"]
    read.clear()
    assert count_voxels(data, CLASSES, datalist).tolist() == by_hand(labels)
    assert count_voxels(data, {"background": None, "liver": [1]}, datalist)[1] == sum(
        (v == 1).sum() for v in labels
    )
    assert count_voxels(data[:1], CLASSES, datalist).tolist() == by_hand(labels[:1])
    assert read == []

    changed = np.zeros((4, 4, 4), np.int16)
    write_nifti("1.nii.gz", changed, np.eye(4))
    assert count_voxels(data, CLASSES, datalist).tolist() == by_hand([labels[0], changed])
    os.utime(data[0]["label"], ns=(1, 1))
    count_voxels(data, CLASSES, datalist)
    assert read == ["1.nii.gz", "0.nii.gz"]

    read.clear()
    more = [*data, {"label": write_nifti("2.nii.gz", changed)}]
    assert count_voxels(more, CLASSES, datalist).tolist() == by_hand([labels[0], changed, changed])
    assert read == ["2.nii.gz"]
    names = json.loads((tmp_path / "dataset.voxel_counts.json").read_text())
    assert sorted(names) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]


def test_what_is_remembered_moves_with_the_data(data, labels, read, tmp_path):
    count_voxels(data, CLASSES, tmp_path / "dataset.json")
    read.clear()
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    data = [{"label": item["label"].replace(str(tmp_path), str(moved))} for item in data]
    assert count_voxels(data, CLASSES, moved / "dataset.json").tolist() == by_hand(labels)
    assert read == []
    moved.rename(tmp_path)


def test_a_broken_memory_is_counted_anew_and_an_unwritable_one_said(data, labels, tmp_path, caplog):
    (tmp_path / "dataset.voxel_counts.json").write_text('{"0.nii.gz": ')
    with caplog.at_level(logging.WARNING):
        assert count_voxels(data, CLASSES, tmp_path / "dataset.json").tolist() == by_hand(labels)
    assert "counted again" in caplog.text
    assert len(json.loads((tmp_path / "dataset.voxel_counts.json").read_text())) == 2
    with caplog.at_level(logging.WARNING):
        assert count_voxels(data, CLASSES, tmp_path / "gone" / "dataset.json").tolist() == by_hand(
            labels
        )
    assert "not remembered" in caplog.text


def test_bad_labels_are_named(data, write_nifti, tmp_path):
    with pytest.raises(InputError, match=r"\.nii\.gz: label values 7 are in no class"):
        count_voxels(data, {"background": [0], "liver": [1, 2]}, tmp_path / "dataset.json")
    half = [{"label": write_nifti("half.nii.gz", np.full((3, 3, 3), 0.5, np.float32))}]
    with pytest.raises(
        InputError, match=r"half\.nii\.gz: found label values 0\.5, expected whole numbers"
    ):
        count_voxels(half, CLASSES)
    scan = [{"label": write_nifti("scan.nii.gz", np.array([0, 2**30], np.int32).reshape(1, 1, 2))}]
    with pytest.raises(
        InputError, match=r"scan\.nii\.gz: found values from 0 to 1073741824, expected classes"
    ):
        count_voxels(scan, CLASSES)
    with pytest.raises(InputError, match="there is no such file"):
        count_voxels([{"label": str(tmp_path / "gone.nii")}], CLASSES, tmp_path / "dataset.json")


def test_values_that_are_whole_but_for_rounding_are_counted(labels, write_nifti):
    near = [
        {"label": write_nifti(f"near{n}.nii.gz", v * np.float32(0.9999999))}
        for n, v in enumerate(labels)
    ]
    assert count_voxels(near, CLASSES).tolist() == by_hand(labels)


def test_negative_values_are_counted_too(write_nifti):
    label = np.full((3, 3, 3), -1, np.int16)
    label[0, 0, :2] = 5
    classes = {"background": [-1], "liver": [5]}
    assert count_voxels([{"label": write_nifti("n.nii.gz", label)}], classes).tolist() == [25, 2]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_dice_weights_are_the_papers(data, labels, power, normalize):
    n = np.array(by_hand(labels), np.float64)
    expected = n.sum() / (3 * n**power + 1)
    weights = dice_weights(data, CLASSES, power, normalize)
    assert np.allclose(weights, expected / expected.mean() if normalize else expected, rtol=1e-12)


def test_square_weights_of_a_hundred_million_voxels_keep_their_digits(data, tmp_path):
    count_voxels(data[:1], CLASSES, tmp_path / "dataset.json")
    memory = tmp_path / "dataset.voxel_counts.json"
    content = json.loads(memory.read_text())
    n = [987_654_321, 100_000_000, 23_456_789, 1_000_003]
    content["0.nii.gz"]["voxels"] = n
    memory.write_text(json.dumps(content))
    exact = [sum(n) / (3 * count**2 + 1) for count in (n[0], n[1] + n[2], n[3])]
    weights = dice_weights(data[:1], CLASSES, 2, datalist=tmp_path / "dataset.json")
    assert np.allclose(weights, exact, rtol=1e-12)
    assert np.allclose(weights.float(), exact, rtol=1e-6)  # as the loss multiplies with them


def test_a_class_that_never_occurs_has_no_weight_and_other_powers_are_refused(data):
    absent = dice_weights(data, {**CLASSES, "pancreas": [10]}, 2, normalize=True)
    assert absent[3] == 0
    assert torch.isfinite(absent).all()
    with pytest.raises(InputError, match="power: found 3"):
        dice_weights(data, CLASSES, 3)


def test_both_kinds_of_weights_count_once(data, read, tmp_path):
    inverse = inverse_frequency_weights(data, CLASSES, tmp_path / "dataset.json")
    simple = dice_weights(data, CLASSES, 1, True, tmp_path / "dataset.json")
    assert len(read) == 2
    assert torch.allclose(inverse / inverse.mean(), simple.float(), rtol=1e-2)
