"""`liverseg segment`: what it writes, read back with other programs' libraries."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import AFFINE, ROOT
from helpers.dataset_trees import write_series
from helpers.threshold_bundle import expected_mask, liverseg, make_hu, save_scan, write_bundle

from liverseg.networks import LiverLesionNetworks, PreactivationUNet3D

pytest.importorskip("highdicom", reason='needs pip install ".[segment]"')
import nrrd
import pydicom
import trimesh

VOXEL_ML = 6 * 6 * 10 / 1000
FORMATS = "classes,nrrd,seg,rtstruct,stl,obj,glb"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("in") / "ct"
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.9"}
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    write_series(folder, make_hu(), lps @ AFFINE, [f"{k}.dcm" for k in range(8)], **uids)
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory, bundle, series) -> Path:
    out = tmp_path_factory.mktemp("out")
    wanted = ("--to", FORMATS, "--statistics", "--report", "--preview")
    liverseg("segment", series, out, "--bundle", bundle, *wanted)
    return out


def test_every_file_is_named_as_the_document_says(everything):
    found = {
        str(path.relative_to(everything))
        for path in everything.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    classes = ("liver", "lesion")
    meshes = {f"ct_liver/{name}.{kind}" for name in classes for kind in ("stl", "obj")}
    meshes.add("ct_liver/segmentation.glb")
    tails = (".nii.gz", ".seg.nrrd", ".seg.dcm", ".rtstruct.dcm", ".png", ".html")
    expected = {f"ct_liver{tail}" for tail in (*tails, "_statistics.json")}
    expected |= {f"ct_liver/{name}.nii.gz" for name in classes}
    tables = {"run.json", "case.json", "summary.json", "cases.csv", "organs.csv", "lesions.csv"}
    assert {name for name in found if not name.endswith(".mtl")} == expected | meshes | tables
    assert set(json.loads((everything / "case.json").read_text())["files"]) >= expected


def test_every_form_holds_the_same_mask(everything):
    mask = expected_mask(make_hu())
    assert np.array_equal(nib.load(everything / "ct_liver.nii.gz").dataobj, mask)
    for value, name in ((1, "liver"), (2, "lesion")):
        one = nib.load(everything / "ct_liver" / f"{name}.nii.gz")
        assert np.array_equal(one.dataobj, mask == value)
        for kind in ("stl", "obj"):
            mesh = trimesh.load(everything / "ct_liver" / f"{name}.{kind}", force="mesh")
            assert mesh.is_watertight
            voxels_mm3 = (mask == value).sum() * VOXEL_ML * 1000
            assert mesh.volume == pytest.approx(voxels_mm3, rel=0.02)
    voxels, header = nrrd.read(str(everything / "ct_liver.seg.nrrd"))
    assert np.array_equal(voxels, mask)
    assert [header["Segment0_Name"], header["Segment1_Name"]] == ["liver", "lesion"]
    seg = pydicom.dcmread(everything / "ct_liver.seg.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["liver", "lesion"]
    assert seg.pixel_array.sum() == (mask > 0).sum()
    structures = pydicom.dcmread(everything / "ct_liver.rtstruct.dcm")
    assert [roi.ROIName for roi in structures.StructureSetROISequence] == ["liver", "lesion"]
    assert cv2.imread(str(everything / "ct_liver.png")).std() > 0
    assert "lesion" in (everything / "ct_liver.html").read_text()


def test_figures_are_those_of_the_voxels(everything):
    hu, mask = make_hu(), expected_mask(make_hu())
    figures = json.loads((everything / "ct_liver_statistics.json").read_text())
    liver, lesion = figures["classes"]["liver"], figures["classes"]["lesion"]
    assert liver["volume_ml"] == pytest.approx((mask > 0).sum() * VOXEL_ML)
    assert liver["mean_hu"] == pytest.approx(hu[mask == 1].mean())
    assert lesion["volume_ml"] == pytest.approx((mask == 2).sum() * VOXEL_ML)
    with (everything / "lesions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == lesion["count"] == len(figures["lesions"])


def test_roi_leaves_the_others_out_of_every_file(tmp_path, bundle, series):
    wanted = ("--to", "classes,nrrd,seg", "--statistics", "--report")
    liverseg("segment", series, tmp_path, "--bundle", bundle, "--roi", "liver", *wanted)
    mask = expected_mask(make_hu()) == 1
    assert np.array_equal(nib.load(tmp_path / "ct_liver.nii.gz").dataobj, mask)
    assert [path.name for path in (tmp_path / "ct_liver").iterdir()] == ["liver.nii.gz"]
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".csv") and path.name != "summary.json":
            assert "lesion" not in path.read_text(), path
    assert not (tmp_path / "lesions.csv").exists()
    assert "esion" not in (tmp_path / "ct_liver.html").read_text()
    seg = pydicom.dcmread(tmp_path / "ct_liver.seg.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["liver"]


def test_dicom_of_a_scan_that_is_none_is_refused(tmp_path, bundle):
    scan = save_scan(tmp_path / "ct.nii.gz")
    for form in ("seg", "rtstruct"):
        with pytest.raises(ValueError, match=r"ct.nii.gz.*found no DICOM series, expected one"):
            liverseg("segment", scan, tmp_path / "out", "--bundle", bundle, "--to", form)
    # What was asked for before has a mask, and what is asked for now is made.
    liverseg("segment", scan, tmp_path / "out", "--bundle", bundle, "--to", "nrrd")
    assert (tmp_path / "out" / "ct_liver.seg.nrrd").is_file()


def test_settings_and_postprocessing_are_the_bundles(tmp_path, bundle):
    scan = save_scan(tmp_path / "ct.nii.gz")
    mask = expected_mask(make_hu())
    other = ("--set", "hu_window=[-260,140]", "--set", "output_postfix=x")
    liverseg("segment", scan, tmp_path / "set", "--bundle", bundle, *other)
    # A window that lies 100 HU lower finds what is 100 HU darker.
    shifted = expected_mask(make_hu() + 100)
    assert np.array_equal(nib.load(tmp_path / "set" / "ct_x.nii.gz").dataobj, shifted)
    assert not np.array_equal(shifted, mask)
    hu = make_hu()
    hu[0, 0, 0] = 60
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "speck.nii.gz")
    liverseg(
        *("segment", tmp_path / "speck.nii.gz", tmp_path / "kept", "--bundle", bundle),
        *("--postprocessing", "keep_largest"),
    )
    kept = np.asarray(nib.load(tmp_path / "kept" / "speck_liver.nii.gz").dataobj)
    assert kept[0, 0, 0] == 0 and (kept > 0).sum() > 100


def test_what_unet3d_liver_did_not_look_for_is_nowhere(tmp_path):
    tiny = tiny_unet3d(tmp_path / "unet3d_liver")
    scan = save_scan(tmp_path / "ct.nii.gz")
    wanted = ("--statistics", "--report", "--to", "classes,nrrd")
    liverseg("segment", scan, tmp_path / "out", "--bundle", tiny, *wanted)
    for path in (tmp_path / "out").rglob("*"):
        assert "lesion" not in path.name.removeprefix("ct_liver_lesion"), path
        if path.suffix in (".json", ".csv"):
            text = path.read_text().replace("ct_liver_lesion", "").replace("lesion/model.pt", "")
            assert "lesion" not in text, path
    page = (tmp_path / "out" / "ct_liver_lesion.html").read_text()
    assert "<h2>Lesions" not in page
    liverseg("segment", scan, tmp_path / "both", "--bundle", tiny, "--roi", "liver,lesion", *wanted)
    figures = json.loads((tmp_path / "both" / "ct_liver_lesion_statistics.json").read_text())
    assert set(figures["classes"]) == {"liver", "lesion"} and "lesions" in figures


def tiny_unet3d(folder: Path) -> Path:
    """unet3d_liver with few weights, drawn at random."""
    shutil.copytree(ROOT / "bundles" / "unet3d_liver" / "configs", folder / "configs")
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    for name in ("liver", "lesion"):
        content["stage_networks"][name]["width"] = 2
    content |= {"spatial_size": [28, 28, 28], "lesion_spatial_size": [12, 12, 12], "amp": False}
    content |= {"spacing": [12.0, 12.0, 12.0], "lesion_spacing": [6.0, 6.0, 10.0]}
    config.write_text(json.dumps(content))
    torch.manual_seed(0)
    network = LiverLesionNetworks(
        PreactivationUNet3D(width=2), PreactivationUNet3D(width=2, valid=True)
    )
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder
