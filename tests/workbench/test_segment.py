"""`liverseg segment`: what it takes as a scan or as many, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import AFFINE, ROOT
from helpers.dataset_trees import write_series
from helpers.threshold_bundle import (
    SHAPE,
    expected_mask,
    liverseg,
    make_hu,
    save_scan,
    write_bundle,
)
from helpers.waiting import SECONDS

from liverseg.errors import InputError

sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[itk]"')
pydicom = pytest.importorskip("pydicom", reason='needs pip install ".[dicom]"')

UPRIGHT = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles"))


def series(folder: Path, seed: int = 0, uid: str = "1.2.3", **tags) -> Path:
    """Write a CT whose voxels are those of `make_hu(seed)`."""
    hu = make_hu(seed)[:, :, : tags.pop("slices", None)]
    names = [f"{uid}_{k}.dcm" for k in range(hu.shape[2])]
    tags = {"StudyInstanceUID": "1.2", "PatientID": "p", "FrameOfReferenceUID": "1.9"} | tags
    write_series(folder, hu, UPRIGHT, names, SeriesInstanceUID=uid, **tags)
    return folder


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*"):
            file.write(path, path.relative_to(folder.parent))
    return archive


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    """The voxels of each mask by its path."""
    return {
        str(path.relative_to(folder)): np.asarray(nib.load(path).dataobj)
        for path in sorted(folder.rglob("*.nii.gz"))
    }


def as_itk(path: Path) -> Path:
    nifti = save_scan(path.parent / "same.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(path))
    return path


def one_file(folder: Path) -> Path:
    return sorted(series(folder / "files").iterdir())[3]


INPUTS = {
    "scan.nii.gz": save_scan,
    "scan.nii": save_scan,
    "scan.nrrd": as_itk,
    "scan.mha": as_itk,
    "study": series,
    "file": one_file,
    "study.zip": lambda path: zipped(series(path.parent / "study"), path),
    "scan.zip": lambda path: zipped(save_scan(path.parent / "x" / "scan.nii.gz").parent, path),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_scan_of_any_form_is_segmented_on_its_own_grid(tmp_path, bundle, name):
    source = INPUTS[name](tmp_path / "in" / name)
    printed = liverseg("segment", source, tmp_path / "out", "--bundle", bundle)
    ((path, mask),) = masks_in(tmp_path / "out").items()
    stem = {"file": "files"}.get(name, name.partition(".")[0])
    assert path in (f"{stem}_liver.nii.gz", "1.2.3_0_liver.nii.gz", "1.2.3_3_liver.nii.gz")
    assert np.array_equal(mask, expected_mask(make_hu()))
    assert "liver" in printed and "ml" in printed
    affine = nib.load(tmp_path / "out" / path).affine
    assert np.allclose(affine, AFFINE if "scan" in name else UPRIGHT, atol=1e-4)
    (entry,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    voxel_ml = 6 * 6 * 10 / 1000
    assert entry["volume_ml"]["lesion"] == pytest.approx((mask == 2).sum() * voxel_ml)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name == ".unpacked"]


def test_a_zip_is_not_done_again(tmp_path, bundle):
    archive = zipped(series(tmp_path / "study"), tmp_path / "study.zip")
    first, again = (
        liverseg("segment", archive, tmp_path / "out", "--bundle", bundle) for _ in range(2)
    )
    assert "(done before)" not in first and "(done before)" in again


def test_the_command_itself_ends_with_a_sentence_or_with_results(tmp_path, bundle):
    scan = save_scan(tmp_path / "ct.nii.gz")

    def typed(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "liverseg.workbench", "segment", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, timeout=SECONDS, check=False, capture_output=True, text=True,
        )  # fmt: skip

    done = typed("ct.nii.gz", "out", "--bundle", bundle)
    assert done.returncode == 0, done.stderr
    assert "1 scan, thresholds\nct: liver " in done.stdout
    assert np.array_equal(masks_in(tmp_path / "out")["ct_liver.nii.gz"], expected_mask(make_hu()))
    again = typed(scan, "out", "--bundle", bundle)
    assert "(done before)" in again.stdout
    refused = typed("nowhere.nii.gz", "out", "--bundle", bundle)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_a_folder_of_many_and_a_table_name_each_case(tmp_path, bundle):
    for number in range(2):
        save_scan(tmp_path / "in" / f"case{number}.nii.gz", number)
    series(tmp_path / "in" / "dicom", 2)
    liverseg("segment", tmp_path / "in", tmp_path / "out", "--bundle", bundle)
    found = masks_in(tmp_path / "out")
    expected = {
        f"{name}/{name}_liver.nii.gz": expected_mask(make_hu(seed))
        for seed, name in enumerate(("case0", "case1", "dicom"))
    }
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], mask) for name, mask in expected.items())
    (tmp_path / "list.csv").write_text("image,name\nin/case1.nii.gz,b\nin/dicom,\n")
    liverseg("segment", tmp_path / "list.csv", tmp_path / "listed", "--bundle", bundle)
    with (tmp_path / "listed" / "cases.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["b", "dicom"]
    assert np.array_equal(masks_in(tmp_path / "listed")["b/case1_liver.nii.gz"],
                          expected["case1/case1_liver.nii.gz"])  # fmt: skip
    voxel_ml = 6 * 6 * 10 / 1000
    liver_voxels = (expected["dicom/dicom_liver.nii.gz"] == 1).sum()
    assert float(rows["dicom"]["liver_ml"]) == pytest.approx(liver_voxels * voxel_ml)


@pytest.fixture
def study(tmp_path) -> Path:
    """A scout, a scan in two phases of different length, and another study."""
    folder = tmp_path / "study"
    series(folder / "a", 0, "1.2.1", SeriesDescription="Arterial 5.0", slices=5)
    series(folder / "b", 1, "1.2.2", SeriesDescription="Portal 5.0")
    series(folder / "c", 2, "1.2.30", SeriesDescription="T2", Modality="MR")
    return folder


@pytest.mark.parametrize(
    ("options", "seeds"),
    [((), [1]), (("--series", "1.2.1"), [0]), (("--series", "arterial"), [0]),
     (("--series", "all"), [0, 1, 2]), (("--modality", "mr"), [2])],
)  # fmt: skip
def test_of_several_series_the_fitting_one_or_the_chosen_is_taken(
    tmp_path, bundle, study, caplog, options, seeds
):
    liverseg("segment", study, tmp_path / "out", "--bundle", bundle, *options)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    names = {0: "a", 1: "b", 2: "c"}
    assert [Path(case["scan"]).name for case in run["cases"]] == [names[seed] for seed in seeds]
    if not options:
        text = caplog.text
        assert "took the series 'Portal 5.0' (CT, 8 slices)" in text
        assert "left out: 'Arterial 5.0' (CT, 5 slices); 'T2' (MR, 8 slices)" in text
    if options != ("--modality", "mr"):
        for case, seed in zip(run["cases"], seeds, strict=True):
            mask = next(
                mask for path, mask in masks_in(tmp_path / "out").items()
                if Path(path).name == case["mask"]
            )  # fmt: skip
            assert np.array_equal(mask, expected_mask(make_hu(seed))[:, :, : mask.shape[2]])


def test_a_series_that_is_not_there_is_refused_with_those_that_are(tmp_path, bundle, study):
    with pytest.raises(InputError, match=r"--series: found no series 'venous'.*'Portal 5.0'"):
        liverseg("segment", study, tmp_path / "out", "--bundle", bundle, "--series", "venous")
    scan = save_scan(tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match=r"--series: .*expected it for a folder with DICOM series"):
        liverseg("segment", scan, tmp_path / "out", "--bundle", bundle, "--series", "venous")


def test_two_studies_are_two_cases(tmp_path, bundle, study):
    series(study / "d", 3, "1.5.1", StudyInstanceUID="1.5")
    liverseg("segment", study, tmp_path / "out", "--bundle", bundle)
    assert set(masks_in(tmp_path / "out")) == {"b/b_liver.nii.gz", "d/d_liver.nii.gz"}


ODD_NAMES = (
    "two words", "größe", "case.001", "[CT] x", "@network", "$5", "%a", "-v", "a:b", "a?b", "~x",
)  # fmt: skip


def test_odd_names_are_kept(tmp_path, bundle):
    for seed, name in enumerate(ODD_NAMES):
        save_scan(tmp_path / "in" / f"{name}.nii.gz", seed)
    liverseg("segment", tmp_path / "in", tmp_path / "out", "--bundle", bundle)
    found = masks_in(tmp_path / "out")
    assert len(found) == len(ODD_NAMES)
    by_name = {Path(path).name: mask for path, mask in found.items()}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {case["name"] for case in run["cases"]} == set(ODD_NAMES)
    for seed, name in enumerate(ODD_NAMES):
        assert np.array_equal(by_name[f"{name}_liver.nii.gz"], expected_mask(make_hu(seed)))


@pytest.mark.parametrize("name", ["$5", "@network", "[CT] x", "größe"])
def test_an_odd_name_of_a_single_scan_and_its_folder_is_taken_as_it_is(
    tmp_path, bundle, name, monkeypatch
):
    scan = save_scan(tmp_path / name / f"{name}.nii.gz")
    monkeypatch.chdir(scan.parent)
    liverseg("segment", scan.name, name, "--bundle", bundle)
    assert list(masks_in(scan.parent / name)) == [f"{name}_liver.nii.gz"]


# --- what is refused


def damaged(path: Path) -> Path:
    save_scan(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def empty(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (lambda folder: folder / "nowhere.nii.gz", "nowhere.nii.gz: there is no such file"),
        (lambda folder: empty(folder / "empty"), "empty: no scan in it"),
        (lambda folder: damaged(folder / "cut.nii.gz"), "cut.nii.gz: "),
    ],
)
def test_what_is_no_scan_is_refused_by_name(tmp_path, bundle, source, expected):
    with pytest.raises(InputError, match=expected) as error:
        liverseg("segment", source(tmp_path), tmp_path / "out", "--bundle", bundle)
    assert "\n" not in str(error.value)


def test_a_damaged_scan_ends_no_other(tmp_path, bundle):
    damaged(tmp_path / "in" / "cut.nii.gz")
    save_scan(tmp_path / "in" / "good.nii.gz")
    with pytest.raises(InputError, match=r"1 of 2 scans failed.*cut: "):
        liverseg("segment", tmp_path / "in", tmp_path / "out", "--bundle", bundle)
    assert list(masks_in(tmp_path / "out")) == ["good/good_liver.nii.gz"]


def test_a_mask_given_as_a_scan_is_flagged(tmp_path, bundle):
    nib.save(nib.Nifti1Image(expected_mask(make_hu()), AFFINE), tmp_path / "drawn.nii.gz")
    liverseg("segment", tmp_path / "drawn.nii.gz", tmp_path / "out", "--bundle", bundle)
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert case["flags"] or case["warnings"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--to", "nifti"), "--to: found nifti, expected some of classes, nrrd"),
        (("--roi", "spleen"), "--roi: found 'spleen', expected classes of thresholds: liver"),
        (("--planes", "axial"), "planes"),
        (("--tta",), "--tta: found no flips in thresholds"),
        (("--postprocessing", "smoth"), "smoth"),
        (("--modality", "pet"), "modality"),
        (("--set", "spacing"), "--set: found 'spacing', expected NAME=VALUE"),
        (("--set", "spacin=3"), "spacing"),
        (("--device", "tpu"), "tpu"),
        (("--bundle", "unet4d"), "--bundle: found 'unet4d'.*unet3d_liver"),
    ],
)
def test_wrong_options_are_refused(tmp_path, bundle, options, expected):
    scan = save_scan(tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match=expected) as error:
        liverseg("segment", scan, tmp_path / "out", "--bundle", bundle, *options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_results_do_not_go_into_a_file(tmp_path, bundle):
    scan = save_scan(tmp_path / "ct.nii.gz")
    for output in (scan, tmp_path / "mask.nii.gz"):
        with pytest.raises(InputError, match="found the name of a file, expected that of a folder"):
            liverseg("segment", scan, output, "--bundle", bundle)
    assert scan.is_file()
    assert nib.load(scan).shape == SHAPE
