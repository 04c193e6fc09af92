from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from helpers import dataset_trees as trees
from typer.testing import CliRunner

from liverseg.data import load_datalist
from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.datasets.nifti import find_btcv, find_lits, find_msd

BTCV_OF = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
}


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def everything(path) -> list[dict]:
    return [*load_datalist(path, "training"), *load_datalist(path, "validation")]


def test_lits_stays_where_it_is_in_any_orientation(tmp_path):
    root = tmp_path / "LiTS"
    cases = {0: "LAS", 3: "RAS", 12: "LPI", 28: "RAS", 100: "LPS"}
    for seed, (number, axcodes) in enumerate(cases.items()):
        image, label, affine = trees.pair(seed % 3, axcodes)
        batch, end = (1, "nii") if number < 28 else (2, "nii.gz")
        affine = np.eye(4) if number == 28 else affine
        trees.save(root / f"Training Batch {batch}" / f"volume-{number}.{end}", image, affine)
        trees.save(root / f"Training Batch {batch}" / f"segmentation-{number}.{end}", label, affine)
    trees.save(root / "test" / "test-volume-0.nii", image, affine)
    (root / "Training Batch 1" / "._volume-0.nii").write_bytes(b"\0")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    result = run("lits", root, "--out", tmp_path / "out", "--folds", 5)
    assert result.exit_code == 0, result.exception
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    items = everything(tmp_path / "out" / "dataset.json")
    written = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert {item["fold"] for item in written["training"]} == set(range(5))
    for item in items:
        number = int(item["patient"].removeprefix("lits-"))
        batch, end = (1, "nii") if number < 28 else (2, "nii.gz")
        assert item["image"] == str(root / f"Training Batch {batch}" / f"volume-{number}.{end}")
        assert item["label"] == str(
            root / f"Training Batch {batch}" / f"segmentation-{number}.{end}"
        )
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    verdicts = {case["name"]: (case["verdict"], case["orientation"]) for case in report["cases"]}
    assert verdicts.pop("lits-28") == ("suspicious", "RAS")
    assert verdicts == {
        f"lits-{number}": ("ok", axes) for number, axes in cases.items() if number != 28
    }
    assert not (tmp_path / "out" / "images").exists()


def test_some_patients_can_be_set_apart_for_testing(tmp_path):
    for number in range(7):
        image, label, affine = trees.pair(number % 3)
        trees.save(tmp_path / "LiTS" / f"volume-{number}.nii", image, affine)
        trees.save(tmp_path / "LiTS" / f"segmentation-{number}.nii", label, affine)
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 3)):
        options = ["--test-share", 0.3, "--folds", 2, "--seed", seed]
        assert run("lits", tmp_path / "LiTS", "--out", tmp_path / name, *options).exit_code == 0
        path = tmp_path / name / "dataset.json"
        parts = [load_datalist(path, part) for part in ("training", "validation", "test")]
        # 0.3 of seven is two; the other five are in two folds.
        assert sorted(map(len, parts)) == [2, 2, 3]
        patients = [{item["patient"] for item in part} for part in parts]
        assert set.union(*patients) == {f"lits-{number}" for number in range(7)}
        assert len(patients[2]) == 2 and not patients[2] & (patients[0] | patients[1])
        found.append(patients)
    assert found[0] == found[1] != found[2]
    # What is left is too little for the folds.
    result = run("lits", tmp_path / "LiTS", "--out", tmp_path / "d", "--test-share", 0.5)
    assert "folds: found 5 for 3 patients" in str(result.exception)


def test_lits_in_capitals_and_in_folders_called_as_files(tmp_path):
    """As some programs unpack it: a folder for each compressed file."""
    for name in (
        "VOLUMES/volume-0.NII",
        "segmentation-0.NII.GZ",
        "volume-1.nii/volume-1.nii",
        "segmentation-1.nii",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cases = {case.name: (case.image.name, case.label.name) for case in find_lits(tmp_path)}
    assert cases == {
        "lits-0": ("volume-0.NII", "segmentation-0.NII.GZ"),
        "lits-1": ("volume-1.nii", "segmentation-1.nii"),
    }
    assert find_lits(tmp_path)[1].image.is_file()


def test_lits_of_one_number_twice_is_refused(tmp_path):
    for name in ("a/volume-0.nii", "b/volume-0.nii.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"volume-0\.nii\.gz: .*volume-0\.nii is there as well"):
        find_lits(tmp_path)


def test_msd_takes_training_and_leaves_the_test_set_out(tmp_path):
    root = tmp_path / "Task03_Liver"
    names = [f"liver_{number}.nii.gz" for number in (0, 2, 11)]
    for seed, name in enumerate(names):
        image, label, affine = trees.pair(seed, "LAS")
        trees.save(root / "imagesTr" / name, image, affine)
        trees.save(root / "labelsTr" / name, label, affine)
        (root / "imagesTr" / f"._{name}").write_bytes(b"\0")
    trees.save(root / "imagesTs" / "liver_132.nii.gz", image, affine)
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    content = {"labels": {"0": "background", "1": "liver", "2": "cancer"}, "training": training}
    (root / "dataset.json").write_text(
        json.dumps({**content, "test": ["./imagesTs/liver_132.nii.gz"]})
    )
    assert run("msd", tmp_path, "--out", tmp_path / "out", "--folds", 3).exit_code == 0
    items = everything(tmp_path / "out" / "dataset.json")
    assert sorted(item["image"] for item in items) == sorted(
        str(root / "imagesTr" / name) for name in names
    )
    written = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert written["test"] == [] and written["labels"]["2"] == "lesion"
    # The data set's own datalist, and that of another, are never overwritten.
    for command, out in (("msd", root), ("lits", tmp_path / "out")):
        before = (out / "dataset.json").read_bytes()
        other = run(command, root, "--out", out)
        assert isinstance(other.exception, InputError) and "choose another place" in str(
            other.exception
        )
        assert (out / "dataset.json").read_bytes() == before


OTHER_ORGAN = (
    '{"labels": {"0": "background", "1": "spleen"}, "training": [{"image": "a", "label": "b"}]}'
)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"training": [1]}', '{"training": [{"image": "a"}]}', '{"test": []}', OTHER_ORGAN],
)
def test_msd_needs_its_datalist(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json: .*(expected|no case)"):
        find_msd(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [("RawData/Training/img", "RawData/Training/label"), ("imagesTr", "labelsTr")],
)
def test_btcv_in_both_layouts(tmp_path, images, labels):
    for seed in range(2):
        scan = trees.phantom(seed)
        label = np.zeros_like(scan.organs)
        for organ, value in BTCV_OF.items():
            label[scan.organs == trees.ORGANS[organ]] = value
        trees.save(
            tmp_path / images / f"img000{seed + 1}.nii.gz", scan.image.astype(np.int16), scan.affine
        )
        trees.save(tmp_path / labels / f"label000{seed + 1}.nii.gz", label, scan.affine)
    assert run("btcv", tmp_path, "--out", tmp_path / "out", "--folds", 2).exit_code == 0
    written = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [written["labels"][str(value)] for value in (6, 10, 13)] == [
        "liver",
        "portal and splenic vein",
        "left adrenal gland",
    ]
    (case, _) = json.loads((tmp_path / "out" / "check.json").read_text())["cases"]
    label = np.asarray(nib.load(tmp_path / labels / "label0001.nii.gz").dataobj)
    assert (
        case["voxels"]["liver"] == (label == 6).sum()
        and case["voxels"]["aorta"] == (label == 8).sum()
    )
    assert case["verdict"] == "ok"


@pytest.mark.parametrize("command", ["chaos-ct", "chaos-mr", "lits", "msd", "ircadb", "btcv"])
def test_another_folder_is_refused_in_one_message(tmp_path, command):
    (tmp_path / "root").mkdir()
    result = run(command, tmp_path / "root", "--out", tmp_path / "out")
    assert result.exit_code == 1 and isinstance(result.exception, InputError)
    assert str(tmp_path / "root") in str(result.exception) and "expected" in str(result.exception)


def test_a_label_that_is_not_there_is_named(tmp_path):
    trees.save(tmp_path / "img" / "img0007.nii.gz", np.zeros((2, 2, 2), np.int16), np.eye(4))
    (case,) = find_btcv(tmp_path)
    assert case.label == tmp_path / "label" / "label0007.nii.gz"


def test_check_reads_any_datalist_and_leaves_it_alone(tmp_path):
    items = []
    for seed in range(3):
        image, label, affine = trees.pair(seed)
        trees.save(tmp_path / str(seed) / "image.nii.gz", image, affine)
        trees.save(
            tmp_path / str(seed) / "label.nii.gz", label[::-1] if seed == 2 else label, affine
        )
        items.append(
            {"image": f"{seed}/image.nii.gz", "label": f"{seed}/label.nii.gz", "patient": seed}
        )
    content = {
        "labels": {"0": "background", "1": "liver", "2": "lesion"},
        "training": items[:1],
        "test": items[1:],
    }
    content["test"].append("unlabelled.nii.gz")
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    result = run("check", path)
    assert result.exit_code == 1
    assert "1 of 3 cases are broken and still in dataset.json (2_image)" in str(result.exception)
    report = json.loads((tmp_path / "check.json").read_text())
    assert [case["verdict"] for case in report["cases"]] == ["ok", "ok", "broken"]
    assert (tmp_path / "check.html").is_file()
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a JSON file"),
        ("[]", "found [], expected a Decathlon datalist"),
        ('{"training": []}', "labels: found none"),
        ('{"training": [], "labels": {"0": "x"}}', "no scan with a label"),
        (
            '{"training": [{"image": "a", "label": null}], "labels": {"0": "x"}}',
            "training[0], label: found none",
        ),
    ],
)
def test_check_says_what_is_wrong_with_a_datalist(tmp_path, content, words):
    (tmp_path / "dataset.json").write_text(content)
    result = run("check", tmp_path / "dataset.json")
    assert isinstance(result.exception, InputError) and f"dataset.json: {words}" in str(
        result.exception
    )
