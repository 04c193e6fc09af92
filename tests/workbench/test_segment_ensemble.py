"""Probabilities are the networks' own, and bundles vote by their mean."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bundle_runs import make_scan, save
from helpers.label_bundles import tiny_bundle, write_weights
from helpers.segment_bundles import command, liver_probability, simple_bundle

from liverseg.errors import InputError

# Flipped and permuted: as few as possible of the scan's axes are those that the networks see.
TURNED = np.array([[0, -3.0, 0, 70], [0, 0, 8.0, -20], [2.5, 0, 0, 5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    return [simple_bundle(folder / name, seed) for seed, name in enumerate("abc")]


@pytest.fixture
def scan(tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(0, (40, 48, 7))[0], TURNED)
    return tmp_path / "scan.nii.gz"


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_probabilities_are_the_networks_where_its_mask_is(bundles, scan, tmp_path):
    command(scan, tmp_path / "out", "--bundle", bundles[0], "--probabilities")
    expected = liver_probability(bundles[0], scan)
    image = sitk.ReadImage(str(tmp_path / "out" / "scan_liver_probability_liver.nii.gz"))
    # SimpleITK's axes are in reverse.
    assert np.abs(sitk.GetArrayFromImage(image).T - expected).max() < 0.5 / 255 + 1e-3
    mask = sitk.ReadImage(str(tmp_path / "out" / "scan_liver.nii.gz"))
    for place in ("GetOrigin", "GetDirection", "GetSpacing", "GetSize"):
        assert getattr(image, place)() == getattr(mask, place)()
    stored = nib.load(tmp_path / "out" / "scan_liver_probability_liver.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    assert (
        "scan_liver_probability_liver.nii.gz"
        in json.loads((tmp_path / "out" / "case.json").read_text())["files"]
    )


def test_the_mean_of_the_probabilities_decides(bundles, scan, tmp_path):
    names = ",".join(map(str, bundles))
    out = tmp_path / "out"
    command(scan, out, "--ensemble", names, "--probabilities", "--statistics")
    each = [liver_probability(bundle, scan) for bundle in bundles]
    mean = np.mean(each, axis=0)
    mask = voxels(out / "scan_liver.nii.gz")
    # Each vote is rounded to 255 parts.
    sure = np.abs(mean - 0.5) > 1 / 255
    assert sure.mean() > 0.9
    assert (mask == (mean > 0.5))[sure].all()
    # None decides alone, and neither does the majority.
    votes = np.sum([one > 0.5 for one in each], axis=0)
    assert all(((one > 0.5) != mask)[sure].any() for one in [*each, votes / 3])
    found = voxels(out / "scan_liver_probability_liver.nii.gz")
    assert np.abs(found - mean).max() < 1 / 255 + 1e-3
    run = json.loads((out / "run.json").read_text())
    assert run["bundle"] == "a, b, c"
    assert len(set(run["weights_sha256"].values())) == 3
    figures = json.loads((out / "scan_liver_statistics.json").read_text())
    assert figures["bundle"] == "a, b, c"
    # A voxel has 2.5 × 3 × 8 mm.
    assert run["cases"][0]["volume_ml"]["liver"] == pytest.approx(mask.sum() * 0.06, abs=1e-3)


def test_the_vote_of_one_with_itself_is_its_own(bundles, scan, tmp_path):
    command(scan, tmp_path / "one", "--bundle", bundles[1])
    command(scan, tmp_path / "two", "--ensemble", f"{bundles[1]},{bundles[1]}")
    one, two = (voxels(tmp_path / name / "scan_liver.nii.gz") for name in ("one", "two"))
    unsure = np.abs(liver_probability(bundles[1], scan) - 0.5) < 1 / 255
    assert (one == two)[~unsure].all()
    assert 0 < one.mean() < 1


def test_postprocessing_is_done_on_the_vote(bundles, scan, tmp_path):
    pair = f"{bundles[0]},{bundles[1]}"
    command(scan, tmp_path / "out", "--ensemble", pair, "--postprocessing", "keep_largest")
    mask = sitk.ReadImage(str(tmp_path / "out" / "scan_liver.nii.gz"))
    assert sitk.GetArrayViewFromImage(mask).any()
    pieces = sitk.ConnectedComponent(mask, True)
    assert sitk.GetArrayViewFromImage(pieces).max() == 1


def test_other_classes_are_refused(bundles, scan, tmp_path):
    other = tiny_bundle(tmp_path / "organs", "unet3d_abdomen", **{"networks#paper#width": 4})
    write_weights(other, seed=0)
    with pytest.raises(InputError, match=r"--ensemble: found 1 artery, .* in organs, expected the"):
        command(scan, tmp_path / "out", "--ensemble", f"{bundles[0]},{other}")


def test_bundles_that_look_for_different_classes_are_refused(scan, tmp_path):
    small = {"stage_network#first_filters": 4, "spatial_size": [32, 32], "amp": False}
    pair = []
    for name, targets in (("liver", ["liver"]), ("both", ["liver", "lesion"])):
        pair.append(
            tiny_bundle(tmp_path / name, "mixed_unet_lits", **small, segmented_targets=targets)
        )
        write_weights(pair[-1], seed=0)
    with pytest.raises(InputError, match="both looks for liver, lesion and liver for liver, exp"):
        command(scan, tmp_path / "out", "--ensemble", f"{pair[0]},{pair[1]}")
