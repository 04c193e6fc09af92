from __future__ import annotations

import json

import pytest

from liverseg.data import find_scans, load_datalist, split_by_patient, write_datalist
from liverseg.data.datalist import relative
from liverseg.data.datalist_schema import patient_of, read_datalist
from liverseg.errors import InputError

LABELS = {"0": "background", "1": "liver"}


def make_items(folder, patients, scans=1):
    items = []
    for patient in patients:
        for scan in range(scans):
            item = {
                "image": f"{patient}_{scan}.nii",
                "label": f"{patient}_{scan}_label.nii",
                "patient": patient,
            }
            for key in ("image", "label"):
                (folder / item[key]).touch()
            items.append(item)
    return items


def test_no_patient_is_in_two_folds_and_folds_are_even(tmp_path):
    items = split_by_patient(make_items(tmp_path, "abcdefg", scans=3), num_folds=3)
    folds_of = {
        patient: {item["fold"] for item in items if item["patient"] == patient}
        for patient in "abcdefg"
    }
    assert all(len(folds) == 1 for folds in folds_of.values())
    sizes = [sum(folds == {fold} for folds in folds_of.values()) for fold in range(3)]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_only(tmp_path):
    items = make_items(tmp_path, "abcdefghij")
    assert split_by_patient(items, 5, seed=1) == split_by_patient(items, 5, seed=1)
    assert split_by_patient(items, 5, seed=1) != split_by_patient(items, 5, seed=2)


def test_training_and_validation_make_up_the_whole_without_overlap(tmp_path):
    path = write_datalist(
        tmp_path / "dataset.json", make_items(tmp_path, "abcdef"), LABELS, num_folds=3
    )
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
    validation = {
        item["patient"] for item in load_datalist(tmp_path / "dataset.json", "validation", 0)
    }
    assert (len(training), len(validation)) == (8, 2)
    assert not training & validation


def write(folder, **content):
    """A datalist, and every NIfTI file that it names."""
    for entry in [
        entry for section in content.values() if isinstance(section, list) for entry in section
    ]:
        for file in (
            [entry] if isinstance(entry, str) else entry.values() if isinstance(entry, dict) else ()
        ):
            if isinstance(file, str) and file.endswith((".nii", ".nii.gz")) and "gone" not in file:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).touch()
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def pair(name, **more):
    return {"image": f"{name}.nii", "label": f"{name}_label.nii", **more}


def test_decathlon_test_entries_are_plain_strings_that_can_be_segmented_but_not_evaluated(tmp_path):
    path = write(tmp_path, training=[pair("b"), pair("c")], test=["./imagesTs/a.nii"])
    image = str(tmp_path / "imagesTs" / "a.nii")
    assert load_datalist(path, "test", labelled=False) == [{"image": image, "patient": "a"}]
    assert find_scans(tmp_path) == [{"image": image}]
    with pytest.raises(
        InputError, match=r"test\[0\], label: found none .*a\.nii, .*--section validation"
    ):
        load_datalist(path, "test")


FOLDS = [pair("a", fold=0), pair("b", fold=1), pair("c", fold=2)]
BROKEN = {
    "empty": ({"training": []}, ["'training'", "empty", "add"]),
    "patient in two folds": (
        {"training": [*FOLDS, pair("d", fold=2, patient="a")]},
        ["patient a", "fold 0 (training[0])", "fold 2 (training[3])", "same fold"],
    ),
    "patient in training and validation": (
        {"training": [pair("a")], "validation": [pair("d", patient="a")]},
        ["patient a", "training", "validation"],
    ),
    # Also where the section that is asked for is another.
    "patient in a fold and in test": (
        {"training": FOLDS, "test": [pair("d", patient="b")]},
        ["patient b", "test"],
    ),
    "missing image": (
        {"training": [*FOLDS, pair("gone", fold=1)]},
        ["gone.nii", "is not there", "training[3]"],
    ),
    "not a datalist": ({"images": []}, ['neither "training" nor "test"']),
    "nnU-Net's": (
        {"channel_names": {"0": "CT"}, "labels": {"liver": 1}},
        ["nnU-Net", "liverseg data split", "imagesTs"],
    ),
    "section of another name": (
        {"training": FOLDS, "val": [pair("d")]},
        ["'val'", "expected 'validation'"],
    ),
    "section of a misspelt name": (
        {"training": FOLDS, "validaton": [pair("d")]},
        ["found the key 'validaton', expected 'validation'"],
    ),
    "section that is no list": (
        {"training": {"image": ["a.nii"]}},
        ["training: found", "expected a list"],
    ),
    "no image": (
        {"training": [{"img": "a.nii", "seg": "b.nii"}]},
        ["training[0]", "img", '"image"'],
    ),
    "number": ({"training": [*FOLDS, 3]}, ["training[3]: found 3"]),
    "several channels": (
        {"training": [{**pair("a"), "image": ["a.nii", "b.nii"]}]},
        ["training[0], image", "list of 2"],
    ),
    "list of labels": (
        {"training": [{**pair("a"), "label": ["a.nii"]}]},
        ["training[0], label", "list of 1"],
    ),
    "empty image": (
        {"training": [pair("a"), {**pair("b"), "image": ""}]},
        ["training[1], image", 'found ""'],
    ),
    "null image": (
        {"training": [{**pair("a"), "image": None}]},
        ["training[0], image", "found null"],
    ),
    "null label": (
        {"training": [pair("a"), {**pair("b"), "label": None}]},
        ["training[1], label: found none", "b.nii"],
    ),
    "missing label": (
        {"training": FOLDS, "validation": ["d.nii"]},
        ["validation[0], label: found none", "d.nii"],
    ),
    "empty label": (
        {"training": [{**pair("a"), "label": " "}]},
        ["training[0], label", 'found " "'],
    ),
    "NaN as label": (
        {"training": [{**pair("a"), "label": float("nan")}]},
        ["training[0], label", "found NaN"],
    ),
    "image as label": (
        {"training": [{**pair("a"), "label": "./a.nii"}]},
        ["training[0]", "as image and as label"],
    ),
    "some without fold": ({"training": [*FOLDS, pair("d")]}, ["training[3] has no fold"]),
    "null as fold": ({"training": [*FOLDS, pair("d", fold=None)]}, ["training[3] has no fold"]),
    "half a fold": ({"training": [pair("a", fold=0.5)]}, ["training[0], fold: found 0.5"]),
    "word as fold": ({"training": [pair("a", fold="first")]}, ["training[0], fold", '"first"']),
    "truth as fold": ({"training": [pair("a", fold=True)]}, ["training[0], fold", "true"]),
    "folds and a list": (
        {"training": FOLDS, "validation": [pair("d")]},
        ["one way to hold scans out"],
    ),
    "image of two patients": (
        {"training": [*FOLDS, {**FOLDS[0], "patient": "z"}]},
        ["training[0] and training[3] are of two patients", "same image", "a.nii"],
    ),
    "image of two patients by another path": (
        {"training": [*FOLDS, {**FOLDS[0], "image": "x/../a.nii", "patient": "z"}]},
        ["training[0] and training[3] are of two patients", "same image"],
    ),
    "image in two folds": (
        {"training": [*FOLDS, {**FOLDS[0], "image": "x/../a.nii", "fold": 1}]},
        ["patient a", "fold 0 (training[0])", "fold 1 (training[3])"],
    ),
    "label of another": (
        {"training": [*FOLDS, {**pair("d", fold=0), "label": "c_label.nii"}]},
        ["training[2] and training[3]", "same label"],
    ),
    "list as patient": ({"training": [pair("a", patient=["a"])]}, ["training[0], patient"]),
    "truth as patient": (
        {"training": [pair("a", patient=True)]},
        ["training[0], patient", "found true"],
    ),
    "empty patient": ({"training": [pair("a", patient="")]}, ["training[0], patient", 'found ""']),
    "one patient": (
        {"training": [pair("a", patient=1), pair("b", patient="1")]},
        ["1 patient in training"],
    ),
    "one name in several folders": (
        {"training": [{"image": f"{n}/ct.nii", "label": f"{n}/seg.nii"} for n in "abc"]},
        ["training[0] and training[1] are both called ct", '"patient"'],
    ),
    "one name in test and training": (
        {"training": FOLDS, "test": [{"image": "test/a.nii"}]},
        ["training[0] and test[0] are both called a"],
    ),
    "labels with two names": (
        {"training": FOLDS, "labels": {"liver": 1, "lesion": 1}},
        ["labels: found", '"lesion"'],
    ),
    "labels of regions": (
        {"training": FOLDS, "labels": {"liver": [1, 2]}},
        ["labels: found", "[1, 2]"],
    ),
    "labels without values": (
        {"training": FOLDS, "labels": ["background", "liver"]},
        ["labels: found", "liver"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_datalist_is_refused_in_one_sentence(tmp_path, case):
    content, words = BROKEN[case]
    with pytest.raises(InputError) as error:
        load_datalist(write(tmp_path, **content), "training")
    assert all(word in str(error.value) for word in ["dataset.json", *words]), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("meant", "found"),
    [
        *(("label", found) for found in ("Label", "lable", "labl", "labels", "lebel")),
        *(("image", found) for found in ("IMAGE", "iamge", "images")),
        *(("fold", found) for found in ("Fold", "flod", "fol")),
        *(("patient", found) for found in ("Patient", "pateint", "patients")),
    ],
)
def test_a_misspelt_key_is_named_with_the_one_that_is_meant(tmp_path, meant, found):
    item = pair("a", fold=0, patient="a")
    item[found] = item.pop(meant)
    with pytest.raises(
        InputError, match=rf"training\[0\]: found the key '{found}', expected '{meant}': rename it"
    ):
        load_datalist(write(tmp_path, training=[item, *FOLDS[1:]]), "training")


def test_a_folder_is_answered_with_the_datalist_in_it(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"found a folder, .*: name .*/dataset\.json\.$"):
        load_datalist(tmp_path, "training")


def test_keys_that_others_use_are_no_slips(tmp_path):
    more = (
        "pseudo_label",
        "class",
        "name",
        "age",
        "label_class",
        "image_meta_dict",
        "patient_id",
        "box",
        "path",
    )
    # Beside the key that they are like, these are others.
    more += ("image2", "labels")
    items = [{**pair(patient), **dict.fromkeys(more, "x")} for patient in "abc"]
    path = write(tmp_path, training=items, numTest=0, labels={})
    assert len(load_datalist(path, "training")) == 2


@pytest.mark.parametrize(
    ("section", "fold", "words"),
    [
        ("validation", 5, "no fold 5, only [0, 1, 2]"),
        ("test", 0, "no section 'test', only ['training']"),
        ("tset", 0, "no section 'tset'"),
        ("training", None, "fold: found null, expected the number"),
    ],
)
def test_what_is_not_in_it_is_named(tmp_path, section, fold, words):
    with pytest.raises(InputError) as error:
        load_datalist(write(tmp_path, training=FOLDS), section, fold)
    assert words in str(error.value)


def test_a_fold_where_a_list_of_scans_validates_is_refused(tmp_path):
    path = write(tmp_path, training=[pair("a")], validation=[pair("b")])
    assert [item["patient"] for item in load_datalist(path, "validation")] == ["b"]
    with pytest.raises(InputError, match=r"fold 1.*leave fold out"):
        load_datalist(path, "training", 1)


@pytest.mark.parametrize("folds", [("0", "1", "2"), (0.0, 1.0, 2.0), ("0", 1, 2.0)])
def test_folds_as_text_or_fractions_are_numbers(tmp_path, folds):
    path = write(
        tmp_path, training=[pair(name, fold=fold) for name, fold in zip("abc", folds, strict=True)]
    )
    for fold in (1, "1"):
        assert [item["patient"] for item in load_datalist(path, "training", fold)] == ["a", "c"]
        assert [item["patient"] for item in load_datalist(path, "validation", fold)] == ["b"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_are_read(tmp_path, encoding):
    path = write(tmp_path, training=[pair("ä", fold=0), pair("b", fold=1)])
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding=encoding)
    assert [item["patient"] for item in load_datalist(path, "validation")] == ["ä"]


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text('{"training": [], "training": [{"image": "a.nii"}]}')
    with pytest.raises(InputError, match="'training' is there twice"):
        load_datalist(tmp_path / "dataset.json", "training")


def test_paths_as_people_write_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    paths = {
        "./imagesTr/a.nii": "imagesTr/a.nii",
        "imagesTr\\b.nii": "imagesTr/b.nii",
        "~/c.nii": "home/c.nii",
        "imagesTr/../d.nii": "d.nii",
        str(tmp_path / "e.nii"): "e.nii",
        "odd\\name.nii": "odd\\name.nii",
    }
    for file in paths.values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"test": list(paths)}))
    found = [
        item["image"] for item in load_datalist(tmp_path / "dataset.json", "test", labelled=False)
    ]
    assert found == [str(tmp_path / file) for file in paths.values()]


def test_links_keep_their_names_and_folders_may_be_links(tmp_path):
    real = tmp_path / "disk" / "data"
    (real / "blobs").mkdir(parents=True)
    for name in "ab":
        for file in (f"{name}.nii", f"{name}_label.nii"):
            (real / "blobs" / f"{file}-blob").touch()
            (real / file).symlink_to(f"blobs/{file}-blob")
    (real / "blobs" / "list").write_text(
        json.dumps({"training": [pair("a", fold=0), pair("b", fold=1)]})
    )
    (real / "dataset.json").symlink_to("blobs/list")
    (tmp_path / "link").symlink_to("disk/data")
    for folder in (real, tmp_path / "link"):
        (item,) = load_datalist(folder / "dataset.json", "validation")
        assert item == {
            "image": str(real / "a.nii"),
            "label": str(real / "a_label.nii"),
            "patient": "a",
        }
    # The same scan by two links.
    (real / "c.nii").symlink_to("a.nii")
    (real / "dataset.json").unlink()
    with pytest.raises(
        InputError, match=r"training\[0\] and test\[0\] are of two patients and have the same image"
    ):
        load_datalist(
            write(real, training=[pair("a", fold=0), pair("b", fold=1)], test=["c.nii"]), "training"
        )


def test_a_datalist_elsewhere_finds_its_scans_through_links(tmp_path):
    for folder in ("far/data", "far/lists"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/lists")
    (tmp_path / "far" / "data" / "blob").touch()
    (tmp_path / "far" / "data" / "a.nii").symlink_to("blob")
    image = relative(tmp_path / "far" / "data" / "a.nii", tmp_path / "near")
    write(tmp_path / "near", test=[image])
    (item,) = load_datalist(tmp_path / "near" / "dataset.json", "test", labelled=False)
    assert item["image"] == str(tmp_path / "far" / "data" / "a.nii")


def test_patients_are_told_by_whole_names(tmp_path):
    series = [tmp_path / f"1.2.840.{number}" for number in (1, 2)]
    study = tmp_path / "study"
    for folder in (*series, study):
        folder.mkdir()
    for file in ("1.dcm", "IM2"):
        (study / file).touch()
    assert [patient_of({"image": str(folder)}) for folder in series] == ["1.2.840.1", "1.2.840.2"]
    assert patient_of({"image": "scans/1.2.840.3.nii.gz"}) == "1.2.840.3"
    assert [patient_of({"image": f"case.00{n}.nii.gz"}) for n in (1, 2)] == ["case.001", "case.002"]
    # Of the series in one folder a file names one.
    assert [patient_of({"image": str(study / file)}) for file in ("1.dcm", "IM2")] == [
        "study",
        "study",
    ]
    assert patient_of({"image": "a.nii", "patient": 0}) == "0"
    items = [{"image": folder.name, "label": f"{folder.name}.nii.gz"} for folder in series]
    for item in items:
        (tmp_path / item["label"]).touch()
    write_datalist(tmp_path / "dataset.json", items, LABELS, num_folds=2)
    assert len(load_datalist(tmp_path / "dataset.json", "training")) == 1


def test_a_scan_may_be_there_twice_where_its_patient_is(tmp_path):
    path = write(tmp_path, training=[pair("a", fold=0), *[pair("b", fold=1)] * 3])
    assert len(load_datalist(path, "training")) == 3


def test_what_else_an_item_says_is_left_out(tmp_path):
    path = write(tmp_path, test=[pair("a", image_meta=None, age=None, patient=3.0)])
    assert list(load_datalist(path, "test")[0].items())[2:] == [("patient", "3")]


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "liver"}, {"background": 0, "liver": 1}]
)
def test_names_of_labels_in_both_orders(tmp_path, labels):
    assert read_datalist(write(tmp_path, labels=labels, test=[])).labels == {
        0: "background",
        1: "liver",
    }


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "3", "null", "[" * 100_000], ids=lambda text: str(text)[:4]
)
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
    with pytest.raises(InputError, match="folds: found 4 for 3 patients"):
        write_datalist(tmp_path / "dataset.json", items, LABELS, num_folds=4)
