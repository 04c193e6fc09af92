"""From Python, a scan has the mask that the command gives it, as a file and as an array."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile

import cv2
import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import AFFINE, ROOT, make_scan, save
from helpers.dataset_trees import turned
from helpers.segment_bundles import command, simple_bundle
from helpers.waiting import SECONDS

from liverseg import segment
from liverseg.errors import InputError, message


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return simple_bundle(tmp_path_factory.mktemp("api") / "simple", seed=0)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR"])
def test_a_path_and_an_array_give_the_file_of_the_command(bundle, tmp_path, axcodes):
    array, affine = turned(make_scan(0)[0], AFFINE, axcodes)
    save(tmp_path / "scan.nii.gz", array, affine)
    command(tmp_path / "scan.nii.gz", tmp_path / "out", "--bundle", bundle)
    expected = (tmp_path / "out" / "scan_liver.nii.gz").read_bytes()
    found = segment(tmp_path / "scan.nii.gz", bundle)
    assert found.save(tmp_path / "of_path.nii.gz").read_bytes() == expected
    for number, voxels in enumerate((array, array.astype(np.float64))):
        of_array = segment(voxels, bundle, affine=affine)
        assert of_array.save(tmp_path / f"{number}.nii.gz").read_bytes() == expected
        assert of_array.flags == found.flags
    # The network sees all of them as RAS.
    upright = segment(make_scan(0)[0], bundle, affine=AFFINE)
    assert 0 < upright.mask.mean() < 1
    assert (turned(found.mask, affine, "RAS")[0] == upright.mask).all()


def test_volumes_figures_and_a_picture(bundle, tmp_path):
    array, _ = make_scan(0)
    save(tmp_path / "scan.nii.gz", array)
    of_array, of_path = (
        segment(array, bundle, affine=AFFINE),
        segment(tmp_path / "scan.nii.gz", bundle),
    )
    # A voxel has 6 × 6 × 10 mm.
    liver = of_array.mask == 1
    assert of_array.volumes_ml == {"liver": pytest.approx(liver.sum() * 0.36)}
    figures = of_array.statistics()
    assert figures["classes"]["liver"]["mean_hu"] == pytest.approx(array[liver].mean())
    assert {**of_path.statistics(), "scan": "array"} == figures
    # What notebooks ask an object for.
    png = getattr(of_array, "_repr_png_")()  # noqa: B009
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert np.ptp(picture.astype(int), axis=2).max() > 50
    assert len(repr(of_array)) < 1000


def test_the_scan_of_an_archive_is_there_after_it(bundle, tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(0)[0])
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.write(tmp_path / "scan.nii.gz", "scan.nii.gz")
    found = segment(tmp_path / "scan.zip", bundle)
    assert found.scan == str(tmp_path / "scan.zip")
    expected = segment(tmp_path / "scan.nii.gz", bundle).statistics()
    assert {**found.statistics(), "scan": expected["scan"]} == expected


@pytest.mark.parametrize(
    ("array", "affine", "expected"),
    [
        (np.zeros((4, 4)), AFFINE, r"found an array \(4, 4\) of float64, expected \(H, W, D\)"),
        (np.zeros((1, 4, 4, 4)), AFFINE, r"found an array \(1, 4, 4, 4\)"),
        (np.zeros((4, 0, 4)), AFFINE, r"found an array \(4, 0, 4\)"),
        (np.zeros((4, 4, 4), complex), AFFINE, "of complex128, expected"),
        (np.zeros((4, 4, 4)), None, "affine: found none"),
        (np.zeros((4, 4, 4)), np.eye(3), r"affine: found \[\[1.0, 0.0, 0.0\]"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4)), "three axes of some length"),
        (np.full((4, 4, 4), np.nan), AFFINE, "64 voxels are NaN"),
    ],
)
def test_what_is_no_scan_is_refused(bundle, array, affine, expected):
    with pytest.raises(Exception) as error:
        segment(array, bundle, affine=affine)
    assert re.search(expected, message(error.value) or "")


def test_two_scans_and_another_format_are_refused(bundle, tmp_path):
    for number in range(2):
        save(tmp_path / f"{number}.nii.gz", make_scan(number)[0])
    with pytest.raises(InputError, match="found 2 scans, expected one"):
        segment(tmp_path, bundle)
    found = segment(tmp_path / "0.nii.gz", bundle)
    with pytest.raises(InputError, match=r"mask\.png: found the name of another format"):
        found.save(tmp_path / "mask.png")
    assert nib.load(found.save(tmp_path / "mask.nii")).shape == found.mask.shape


def test_importing_the_package_imports_no_other():
    code = """
import sys, liverseg
assert not {"torch", "monai", "numpy"} & {*sys.modules}
assert not hasattr(liverseg, "sement")
from liverseg import segment
print(segment.__module__)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert result.stdout == "liverseg.workbench.segment.api\n", result.stderr
