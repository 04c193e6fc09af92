from __future__ import annotations

import json

import pytest

from liverseg.data import load_datalist, split_by_patient, write_datalist
from liverseg.errors import InputError

LABELS = {"0": "background", "1": "liver"}


def make_items(folder, patients, scans=1):
    items = []
    for patient in patients:
        for scan in range(scans):
            item = {"image": f"{patient}_{scan}.nii", "label": f"{patient}_{scan}_label.nii", "patient": patient}
            for key in ("image", "label"):
                (folder / item[key]).touch()
            items.append(item)
    return items


def test_no_patient_is_in_two_folds_and_folds_are_even(tmp_path):
    items = split_by_patient(make_items(tmp_path, "abcdefg", scans=3), num_folds=3)
    folds_of = {patient: {item["fold"] for item in items if item["patient"] == patient} for patient in "abcdefg"}
    assert all(len(folds) == 1 for folds in folds_of.values())
    sizes = [sum(folds == {fold} for folds in folds_of.values()) for fold in range(3)]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_only(tmp_path):
    items = make_items(tmp_path, "abcdefghij")
    assert split_by_patient(items, 5, seed=1) == split_by_patient(items, 5, seed=1)
    assert split_by_patient(items, 5, seed=1) != split_by_patient(items, 5, seed=2)


def test_training_and_validation_make_up_the_whole_without_overlap(tmp_path):
    path = write_datalist(tmp_path / "dataset.json", make_items(tmp_path, "abcdef"), LABELS, num_folds=3)
    for fold in range(3):
        training = {item["image"] for item in load_datalist(path, "training", fold)}
        validation = {item["image"] for item in load_datalist(path, "validation", fold)}
        assert len(validation) == 2
        assert not training & validation
        assert training | validation == {str(tmp_path / f"{patient}_0.nii") for patient in "abcdef"}


def test_a_datalist_without_folds_is_split_by_patient(tmp_path):
    items = make_items(tmp_path, "abcdefghij", scans=2)
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    training = {item["patient"] for item in load_datalist(tmp_path / "dataset.json", "training", 0)}
    validation = {item["patient"] for item in load_datalist(tmp_path / "dataset.json", "validation", 0)}
    assert (len(training), len(validation)) == (8, 2)
    assert not training & validation


def test_decathlon_test_entries_are_plain_strings(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"test": ["a.nii"]}))
    assert load_datalist(tmp_path / "dataset.json", "test") == [{"image": str(tmp_path / "a.nii")}]


def broken(tmp_path, case):
    items = make_items(tmp_path, "abc")
    path = tmp_path / "dataset.json"
    folds = [{**item, "fold": index} for index, item in enumerate(items)]
    content = {
        "empty": {"training": []},
        "patient in two folds": {"training": [*folds, {**folds[0], "fold": 2}]},
        "patient in training and validation": {"training": items, "validation": items[:1]},
        "no such fold": {"training": folds[:2]},
        "missing file": {"training": [{**folds[0], "image": "gone.nii"}, {**folds[1]}]},
        "no section": {"training": folds},
        "not a datalist": {"images": []},
        "entry without image": {"training": [{"label": "a.nii"}]},
    }[case]
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("case", "section", "words"),
    [
        ("empty", "training", ["dataset.json", "'training'", "empty", "add"]),
        ("patient in two folds", "training", ["patient a", "fold 0", "fold 2", "same fold"]),
        ("patient in training and validation", "training", ["patient a", "training", "validation"]),
        ("no such fold", "validation", ["no fold 2", "'0', '1'"]),
        ("missing file", "validation", ["gone.nii", "is not there"]),
        ("no section", "test", ["no section 'test'", "'training'"]),
        ("not a datalist", "training", ['neither "training" nor "test"']),
        ("entry without image", "training", ['"image"']),
    ],
)
def test_a_broken_datalist_is_refused_in_one_sentence(tmp_path, case, section, words):
    fold = {"no such fold": 2}.get(case, 0)
    with pytest.raises(InputError) as error:
        load_datalist(broken(tmp_path, case), section, fold)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_is_no_datalist_is_refused(tmp_path, content):
    path = tmp_path / "dataset.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        load_datalist(path, "training")


def test_writing_refuses_a_patient_in_training_and_test_and_too_few_patients(tmp_path):
    items = make_items(tmp_path, "abc")
    with pytest.raises(InputError, match="patient a is in both training and test"):
        write_datalist(tmp_path / "dataset.json", items, LABELS, test=items[:1], num_folds=2)
    with pytest.raises(InputError, match="num_folds is 4 for 3 patients"):
        write_datalist(tmp_path / "dataset.json", items, LABELS, num_folds=4)
