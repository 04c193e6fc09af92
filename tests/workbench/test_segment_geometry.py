"""`liverseg segment`: one mask in space however a scan is stored, the same as the bundle's own."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import AFFINE, monai_bundle
from helpers.threshold_bundle import expected_mask, liverseg, make_hu, save_scan, write_bundle

from liverseg import __version__

sitk = pytest.importorskip("SimpleITK", reason='needs pip install ".[itk]"')

PERMUTATIONS = [
    np.stack([order, signs], 1)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
# Turned by 20° about one axis and -15° about another.
OBLIQUE = sitk.Euler3DTransform((0, 0, 0), np.deg2rad(20), 0.0, np.deg2rad(-15)).GetMatrix()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles"))


def found_by_itk(mask: Path, scan: Path) -> np.ndarray:
    """The mask on the grid of a scan, by ITK, which knows nothing of how either is stored."""
    image = sitk.Resample(
        sitk.ReadImage(str(mask)), sitk.ReadImage(str(scan)), sitk.Transform(),
        sitk.sitkNearestNeighbor, 9,
    )  # fmt: skip
    return sitk.GetArrayFromImage(image).T


@pytest.mark.parametrize("oblique", [False, True], ids=["upright", "oblique"])
def test_all_orders_of_axes_give_one_mask_in_space(tmp_path, bundle, oblique):
    affine = AFFINE.copy()
    affine[:3, :3] = np.reshape(OBLIQUE, (3, 3)) @ AFFINE[:3, :3] if oblique else AFFINE[:3, :3]
    affine[:3, 3] = 31, -17, 400
    # The reference keeps the order of its voxels, and so does its mask.
    reference = save_scan(tmp_path / "reference.nii.gz", affine=affine)
    for number, ornt in enumerate(PERMUTATIONS):
        image = nib.load(reference).as_reoriented(ornt.astype(float))
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "in" / f"{number:02}.nii.gz")
    assert number == 47
    liverseg("segment", tmp_path / "in", tmp_path / "out", "--bundle", bundle, "--fast")
    shapes = set()
    for number in range(48):
        path = tmp_path / "out" / f"{number:02}" / f"{number:02}_liver.nii.gz"
        mask, scan = nib.load(path), nib.load(tmp_path / "in" / f"{number:02}.nii.gz")
        assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine, atol=1e-4)
        assert np.array_equal(found_by_itk(path, reference), expected_mask(make_hu()))
        shapes.add(mask.shape)
    assert len(shapes) == 6


def test_the_mask_is_that_of_monais_command_byte_for_byte(tmp_path, bundle):
    scan = save_scan(tmp_path / "ct.nii.gz")
    liverseg("segment", scan, tmp_path / "ours", "--bundle", bundle)
    monai = monai_bundle(
        "run", "inference", cwd=bundle, config_file="configs/inference.json",
        dataset_dir=scan, output_dir=tmp_path / "theirs",
    )  # fmt: skip
    assert monai.returncode == 0, monai.stderr
    ours, theirs = (tmp_path / name / "ct_liver.nii.gz" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_bundles_folder_name_and_archive_give_one_mask(tmp_path, bundle, monkeypatch):
    scan = save_scan(tmp_path / "ct.nii.gz")
    liverseg("zoo", "build", bundle, "--out", tmp_path / "dist")
    (archive,) = (tmp_path / "dist").glob("*.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "mine").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    for name, given in {"folder": bundle, "archive": archive, "name": "mine"}.items():
        liverseg("segment", scan, tmp_path / name, "--bundle", given)
    masks = [tmp_path / name / "ct_liver.nii.gz" for name in ("folder", "archive", "name")]
    assert len({mask.read_bytes() for mask in masks}) == 1
    other, ours = tmp_path / "other.zip", f"'{__version__}'".encode()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            is_config = name.endswith("inference.json")
            target.writestr(name, content.replace(ours, b"'9.1.0'") if is_config else content)
    with pytest.raises(ValueError, match=r"other.zip: found a bundle of liverseg 9.1.0"):
        liverseg("segment", scan, tmp_path / "other", "--bundle", other)


def test_other_zips_are_no_bundles(tmp_path, bundle):
    scan = save_scan(tmp_path / "ct.nii.gz")
    with pytest.raises(ValueError, match=r"ct.nii.gz: not readable as the archive of a bundle"):
        liverseg("segment", scan, tmp_path / "out", "--bundle", scan)
