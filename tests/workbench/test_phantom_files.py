from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from liverseg.errors import InputError
from liverseg.workbench.phantoms.files import ABDOMEN_LABELS, CHAOS_LABELS, write_phantoms

GRID = {"shape": (40, 40, 20), "spacing": (8.0, 8.0, 10.0)}


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_files_are_those_of_lits(tmp_path):
    items = write_phantoms(tmp_path, 2, num_test=1, **GRID)
    assert items == [
        {"image": "volume-0.nii", "label": "segmentation-0.nii", "patient": "phantom-0"},
        {"image": "volume-1.nii", "label": "segmentation-1.nii", "patient": "phantom-1"},
        {
            "image": "test-volume-0.nii",
            "label": "test-segmentation-0.nii",
            "patient": "test-phantom-0",
        },
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        item[key] for item in items for key in ("image", "label")
    }
    for item in items:
        image, label = nib.load(tmp_path / item["image"]), nib.load(tmp_path / item["label"])
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.shape == label.shape == GRID["shape"]
        np.testing.assert_allclose(image.header.get_zooms(), GRID["spacing"])
        hu, classes = image.get_fdata(), np.asarray(label.dataobj)
        assert hu.min() < -950
        assert 80 < np.median(hu[classes == 1]) < 125
        assert set(np.unique(classes)) <= {0, 1, 2}


def test_organ_labels_are_those_of_chaos(tmp_path):
    (item,) = write_phantoms(tmp_path, 1, modality="mr", labels=CHAOS_LABELS, **GRID)
    labels = np.asarray(nib.load(tmp_path / item["label"]).dataobj)
    # RAS+: x grows to the patient's right, where the liver and the right kidney lie.
    x = {value: np.argwhere(labels == value)[:, 0].mean() for value in (1, 2, 3, 4)}
    middle = np.argwhere(nib.load(tmp_path / item["image"]).get_fdata() > 60)[:, 0].mean()
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert max(x[3], x[4]) < middle < min(x[1], x[2])
    assert (labels == 1).sum() > (labels == 4).sum() > (labels == 2).sum()
    write_phantoms(tmp_path, 1, modality="mr", **GRID)
    assert set(np.unique(nib.load(tmp_path / item["label"]).dataobj)) <= {0, 1, 2}


def test_labels_of_the_abdomen_are_those_of_the_bundle(tmp_path):
    (item,) = write_phantoms(
        tmp_path, 1, labels=ABDOMEN_LABELS, shape=(96, 96, 60), spacing=(4.0, 4.0, 4.0)
    )
    labels = np.asarray(nib.load(tmp_path / item["label"]).dataobj)
    counts = dict(
        zip(ABDOMEN_LABELS.values(), np.bincount(labels.ravel(), minlength=8), strict=True)
    )
    assert min(counts.values()) > 0
    assert (
        counts["background"]
        > counts["liver"]
        > counts["spleen"]
        > counts["pancreas"]
        > counts["portal_vein"]
    )


def test_cases_and_seeds_are_different_patients(tmp_path):
    write_phantoms(tmp_path / "a", 2, seed=0, num_test=1, **GRID)
    write_phantoms(tmp_path / "b", 2, seed=1, **GRID)
    volumes = [path.read_bytes() for path in tmp_path.glob("*/*volume-*.nii")]
    assert len(set(volumes)) == len(volumes) == 5


def test_number_of_workers_does_not_matter(tmp_path):
    write_phantoms(tmp_path / "one", 3, num_workers=1, **GRID)
    write_phantoms(tmp_path / "two", 3, num_workers=2, **GRID)
    assert read_all(tmp_path / "one") == read_all(tmp_path / "two")


def test_resume_leaves_whole_cases_alone(tmp_path):
    write_phantoms(tmp_path, 2, **GRID)
    before = times(tmp_path)
    write_phantoms(tmp_path, 3, **GRID)
    assert before.items() < times(tmp_path).items()


@pytest.mark.parametrize("kept_bytes", [0, 100, 400, -1])
@pytest.mark.parametrize("name", ["volume-1.nii", "segmentation-1.nii"])
def test_resume_fixes_a_truncated_file(tmp_path, name, kept_bytes):
    write_phantoms(tmp_path, 2, **GRID)
    whole, before = read_all(tmp_path), times(tmp_path)
    (tmp_path / name).write_bytes(whole[name][:kept_bytes])
    write_phantoms(tmp_path, 2, **GRID)
    assert read_all(tmp_path) == whole
    assert times(tmp_path)["volume-0.nii"] == before["volume-0.nii"]


def test_resume_fixes_a_missing_label(tmp_path):
    write_phantoms(tmp_path, 1, **GRID)
    whole = read_all(tmp_path)
    (tmp_path / "segmentation-0.nii").unlink()
    write_phantoms(tmp_path, 1, **GRID)
    assert read_all(tmp_path) == whole


def test_other_arguments_write_anew(tmp_path):
    write_phantoms(tmp_path / "a", 1, phase="native", **GRID)
    write_phantoms(tmp_path / "b", 1, **GRID)
    write_phantoms(tmp_path / "a", 1, **GRID)
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def test_a_scan_that_is_no_phantom_is_not_overwritten(tmp_path):
    path = tmp_path / "volume-0.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"volume-0\.nii: found a scan that is no phantom"):
        write_phantoms(tmp_path, 1, **GRID)
    assert path.read_bytes() == before


def test_bad_arguments_get_one_message(tmp_path):
    with pytest.raises(InputError, match="num_cases: found -1"):
        write_phantoms(tmp_path, -1)
    with pytest.raises(InputError, match="seed: found -1"):
        write_phantoms(tmp_path, 1, seed=-1)
    with pytest.raises(InputError, match="'late', expected one of native, arterial, portal"):
        write_phantoms(tmp_path, 1, phase="late")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        write_phantoms(tmp_path / "file", 1)
    assert write_phantoms(tmp_path, 0) == []
