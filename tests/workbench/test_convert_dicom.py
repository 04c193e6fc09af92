from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import dataset_trees as trees
from typer.testing import CliRunner

from liverseg.data import load_datalist
from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.datasets.chaos import CHAOS_CT, CHAOS_MR, CHAOS_MR_T2_SPIR
from liverseg.workbench.datasets.convert import convert
from liverseg.workbench.datasets.ircadb import IRCADB


def run(*arguments) -> None:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0


def assert_is(item, image, label, affine) -> None:
    for key, array in (("image", image), ("label", label)):
        written = nib.load(item[key])
        assert np.array_equal(np.asarray(written.dataobj), array), key
        assert np.allclose(written.affine, affine, atol=1e-4), key


def everything(path) -> list[dict]:
    return [*load_datalist(path, "training"), *load_datalist(path, "validation")]


def test_chaos_ct_pairs_by_file_name_and_orders_by_position(tmp_path):
    truth = trees.chaos_ct(tmp_path / "CHAOS")
    run("chaos-ct", tmp_path / "CHAOS", "--out", tmp_path / "out", "--folds", 3)
    items = everything(tmp_path / "out" / "dataset.json")
    assert sorted(item["patient"] for item in items) == ["ct-1", "ct-10", "ct-2"]
    for item in items:
        assert_is(item, *truth[int(item["patient"].removeprefix("ct-"))])
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "liver"}
    assert nib.load(items[0]["image"]).get_data_dtype() == np.int16


def folds_of(out: Path) -> set[tuple[str, int]]:
    content = json.loads((out / "dataset.json").read_text())
    return {(item["patient"], item["fold"]) for item in content["training"]}


@pytest.mark.parametrize(
    ("options", "series"), [([], ("in", "out")), (["--t2-spir"], ("in", "out", "t2spir"))]
)
def test_chaos_mr_keeps_the_series_of_a_patient_in_one_fold(tmp_path, options, series):
    truth = trees.chaos_mr(tmp_path)
    run("chaos-mr", tmp_path, "--out", tmp_path / "out", "--folds", 3, *options)
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["labels"]["2"] == "right kidney" and content["labels"]["4"] == "spleen"
    assert len(content["training"]) == 3 * len(series)
    assert len(folds_of(tmp_path / "out")) == 3
    items = {
        Path(item["image"]).name: item for item in everything(tmp_path / "out" / "dataset.json")
    }
    for patient, scans in truth.items():
        for name in series:
            item = items[f"mr-{patient}-{name}.nii.gz"]
            assert item["patient"] == f"mr-{patient}"
            assert_is(item, *scans[name])
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert report["ok"] == len(items), [case["reasons"] for case in report["cases"]]


def test_a_patient_without_t2_spir_is_named_and_keeps_t1_dual(tmp_path):
    trees.chaos_mr(tmp_path)
    shutil.rmtree(tmp_path / "Train_Sets" / "MR" / "2" / "T2SPIR")
    with pytest.raises(InputError, match=r"1 of 9 cases are broken .*\(mr-2-t2spir\)"):
        convert(CHAOS_MR_T2_SPIR, tmp_path, tmp_path / "out", 3, 0)
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    (reason,) = [case["reasons"][0] for case in report["cases"] if case["verdict"] == "broken"]
    assert "T2SPIR/DICOM_anon: there is no such folder" in reason
    items = everything(tmp_path / "out" / "dataset.json")
    assert sorted(Path(item["image"]).name for item in items if item["patient"] == "mr-2") == [
        "mr-2-in.nii.gz",
        "mr-2-out.nii.gz",
    ]


def test_t2_spir_is_added_to_a_data_set_without_it(tmp_path):
    trees.chaos_mr(tmp_path)
    convert(CHAOS_MR, tmp_path, tmp_path / "out", 3, 0)
    first = tmp_path / "out" / "images" / "mr-1-in.nii.gz"
    before, folds = first.stat().st_mtime_ns, folds_of(tmp_path / "out")
    convert(CHAOS_MR_T2_SPIR, tmp_path, tmp_path / "out", 3, 0)
    assert first.stat().st_mtime_ns == before
    assert folds_of(tmp_path / "out") == folds
    assert len(everything(tmp_path / "out" / "dataset.json")) == 9


def test_ircadb_joins_lesions_and_nothing_else(tmp_path):
    truth = trees.ircadb(tmp_path)
    run("ircadb", tmp_path, "--out", tmp_path / "out", "--folds", 3)
    items = everything(tmp_path / "out" / "dataset.json")
    assert len(items) == 3
    for item in items:
        assert_is(item, *truth[int(item["patient"].removeprefix("ircadb-"))])


def test_broken_ircadb_patients_are_named(tmp_path):
    trees.ircadb(tmp_path)
    (tmp_path / "3Dircadb1.1" / "MASKS_DICOM" / "liver").rename(
        tmp_path / "3Dircadb1.1" / "MASKS_DICOM" / "foie"
    )
    archive = tmp_path / "3Dircadb1.2" / "PATIENT_DICOM.zip"
    archive.write_bytes(archive.read_bytes()[:1000])
    (tmp_path / "3Dircadb1.3" / "MASKS_DICOM" / "livertumors" / "image_4").unlink()
    shutil.copytree(tmp_path / "3Dircadb1.3", tmp_path / "3Dircadb1.4")
    shutil.rmtree(tmp_path / "3Dircadb1.4" / "MASKS_DICOM")
    with pytest.raises(
        InputError, match=r"4 of 4 cases are broken .*ircadb-1, ircadb-2, ircadb-3, ircadb-4"
    ):
        convert(IRCADB, tmp_path, tmp_path / "out", 2, 0)
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    reasons = [case["reasons"][0] for case in report["cases"]]
    assert "no folder liver in it" in reasons[0]
    assert "PATIENT_DICOM.zip: not a whole zip file" in reasons[1]
    assert "livertumors: 19 masks for 20 slices" in reasons[2]
    assert "MASKS_DICOM: there is no such folder, nor MASKS_DICOM.zip" in reasons[3]


def test_a_tilted_gantry_keeps_the_mask_on_the_scan(tmp_path):
    """What is inside the mask is the same tissue before and after."""
    image, label, affine = trees.pair(0, "LPS")
    tilted = affine.copy()
    # The slices step aside by 2 mm each.
    tilted[:3, 2] += [0, -2.0, 0]
    names = [f"{k}.dcm" for k in range(image.shape[2])]
    folder = tmp_path / "Train_Sets" / "CT" / "1"
    trees.write_series(folder / "DICOM_anon", image, tilted, names)
    trees.write_pngs(
        folder / "Ground",
        255 * (label > 0).astype(np.uint8),
        [f"{k}.png" for k in range(image.shape[2])],
    )
    volume = CHAOS_CT.read(folder / "DICOM_anon", folder / "Ground")
    assert (
        volume.image.shape
        == volume.label.shape
        == (image.shape[0], image.shape[1] + 6, image.shape[2])
    )
    assert (volume.label > 0).sum() == (label > 0).sum()
    assert np.isclose(
        np.median(volume.image[volume.label > 0]), np.median(image[label > 0]), atol=3
    )
    centre = [
        (np.argwhere(each > 0) @ grid[:3, :3].T + grid[:3, 3]).mean(0)
        for each, grid in ((volume.label, volume.affine), (label, tilted))
    ]
    assert np.abs(centre[0] - centre[1]).max() < affine_mm(affine) / 2


def affine_mm(affine: np.ndarray) -> float:
    return float(nib.affines.voxel_sizes(affine)[:2].min())


@pytest.mark.parametrize("layout", [CHAOS_CT, CHAOS_MR, IRCADB], ids=lambda layout: layout.name)
def test_pydicom_is_asked_for(tmp_path, monkeypatch, layout):
    # How Python marks a package that cannot be imported.
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pydicom is not installed.*pip install pydicom"):
        layout.find(tmp_path)
