from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from helpers import dataset_trees as trees
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.workbench.datasets.check import check_case

LABELS = {"0": "background", "1": "liver", "2": "lesion"}


def checked(tmp_path, image, label, affine, label_affine=None, labels=LABELS, modality="ct"):
    trees.save(tmp_path / "image.nii", np.asarray(image, np.int16), affine)
    trees.save(tmp_path / "label.nii", label, affine if label_affine is None else label_affine)
    return check_case(tmp_path / "image.nii", tmp_path / "label.nii", labels, modality)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_good_case_is_ok_in_any_orientation(tmp_path, modality, axcodes):
    scan = trees.phantom(1, modality)
    image, affine = trees.turned(scan.image, scan.affine, axcodes)
    label, _ = trees.turned(scan.labels, scan.affine, axcodes)
    found = checked(tmp_path, image, label, affine, modality=modality)
    assert (found.verdict, found.broken, found.suspicious) == ("ok", [], [])
    assert found.png is not None
    facts = found.facts
    assert facts["shape"] == list(image.shape) and facts["orientation"] == axcodes
    assert facts["spacing_mm"] == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0), abs=1e-3)
    assert not facts["identity_affine"]
    assert facts["voxels"] == {
        name: int((label == int(value)).sum()) for value, name in LABELS.items()
    }
    assert (facts["intensity_min"], facts["intensity_max"]) == (image.min(), image.max())
    liver = image[label == 1].astype(np.float64)
    assert facts["liver"]["mean"] == pytest.approx(liver.mean(), abs=0.01)
    assert facts["liver"]["sd"] == pytest.approx(liver.std(), abs=0.01)
    assert facts["liver"]["median"] == np.median(liver)
    assert facts["liver"]["volume_ml"] == pytest.approx(len(liver) * 7 * 7 * 9.5 / 1000, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("modality", ["ct", "mr"])
@pytest.mark.parametrize(
    ("axis", "name"),
    [
        ((0,), "left-right"),
        ((1,), "front-back"),
        ((2,), "head-foot"),
        ((0, 1), "left-right and front-back"),
    ],
)
def test_a_flipped_mask_is_found_and_its_axis_named(tmp_path, modality, seed, axis, name):
    scan = trees.phantom(seed, modality)
    found = checked(
        tmp_path, scan.image, np.flip(scan.labels, axis), scan.affine, modality=modality
    )
    assert found.verdict == "broken"
    assert f"the mask fits the scan when it is flipped {name}, and not as it is" in found.broken


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_mask_over_air_is_broken(tmp_path, modality):
    scan = trees.phantom(0, modality)
    label = np.zeros_like(scan.labels)
    label[:6, :6] = 1
    found = checked(tmp_path, scan.image, label, scan.affine, modality=modality)
    assert any("does not lie over the liver" in reason for reason in found.broken)


def test_a_dark_liver_in_mr_is_suspicious_only(tmp_path):
    scan = trees.phantom(0, "mr")
    # As iron makes it.
    found = checked(
        tmp_path,
        np.where(scan.organs == 7, 15, scan.image),
        scan.labels,
        scan.affine,
        modality="mr",
    )
    assert found.verdict == "suspicious" and "as dark as air" in found.suspicious[0]


def test_a_mask_over_fat_is_broken(tmp_path):
    scan = trees.phantom(0)
    label = ndimage.binary_erosion(scan.organs == 1).astype(np.uint8)
    found = checked(tmp_path, scan.image, label, scan.affine)
    assert any("does not lie over the liver" in reason for reason in found.broken)


def test_scan_and_mask_flipped_together_are_suspicious(tmp_path):
    scan = trees.phantom(0)
    found = checked(tmp_path, scan.image[::-1], scan.labels[::-1], scan.affine)
    assert found.verdict == "suspicious"
    assert "to the left of the body's middle" in found.suspicious[0]


def test_an_empty_mask_is_broken(tmp_path):
    scan = trees.phantom(0)
    found = checked(tmp_path, scan.image, scan.labels * (scan.labels == 2), scan.affine)
    assert found.broken == ["the mask of the liver is empty"]
    assert found.png is None


def test_a_value_without_a_name_is_broken(tmp_path):
    scan = trees.phantom(0)
    label = scan.labels.astype(np.int16)
    label[0, 0, :3] = (7, 255, -1)
    found = checked(tmp_path, scan.image, label, scan.affine)
    assert found.broken == ["the label holds -1, 7, 255, which names no class of this data set"]
    label[0, 0, :10] = range(300, 310)
    found = checked(tmp_path, scan.image, label, scan.affine)
    assert "holds 300, 301, 302, 303, 304 and 5 others, which names" in found.broken[0]


@pytest.mark.parametrize("factor", [0.9999999, 1.0000001])
def test_a_float_label_is_evaluated_as_its_whole_numbers(tmp_path, factor):
    scan = trees.phantom(0)
    whole = checked(tmp_path, scan.image, scan.labels, scan.affine)
    near = scan.labels.astype(np.float32)
    near[near == 1] *= np.float32(factor)
    # Some of both, which have one name.
    near[:, :, ::2] = near[:, :, ::2].round()
    found = checked(tmp_path, scan.image, near, scan.affine)
    assert (found.verdict, found.facts) == ("ok", whole.facts)
    near[0, 0, 0] = 0.5
    with pytest.raises(
        InputError, match=r"label\.nii: found label values 0\.5, expected whole numbers"
    ):
        checked(tmp_path, scan.image, near, scan.affine)


def test_verdict_and_counts_go_by_the_same_names(tmp_path):
    scan = trees.phantom(0)
    split = scan.labels.copy()
    split[:, :, ::2][split[:, :, ::2] == 1] = 3
    # Two values of one name, and 0 that nobody named.
    found = checked(
        tmp_path, scan.image, split, scan.affine, labels={"1": "liver", "2": "lesion", "3": "liver"}
    )
    assert found.verdict == "ok", found.broken
    whole = checked(tmp_path, scan.image, scan.labels, scan.affine)
    assert found.facts["voxels"] == whole.facts["voxels"]
    assert found.facts["liver"] == whole.facts["liver"]
    # A name in another case is the liver too; without a voxel of it, both say so.
    found = checked(
        tmp_path,
        scan.image,
        scan.labels // 2,
        scan.affine,
        labels={"0": "x", "1": "lesion", "2": "Liver"},
    )
    assert (
        found.broken == ["the mask of the liver is empty"] and "Liver" not in found.facts["voxels"]
    )


def test_what_the_reader_warns_of_is_suspicious(tmp_path):
    scan = trees.phantom(0)
    shifted = scan.affine + 30 * np.eye(4)[0][:, None] * np.eye(4)[3]
    image = nib.Nifti1Image(np.asarray(scan.image, np.int16), scan.affine)
    image.set_qform(shifted, 1)
    nib.save(image, tmp_path / "image.nii")
    trees.save(tmp_path / "label.nii", scan.labels, shifted)
    found = check_case(tmp_path / "image.nii", tmp_path / "label.nii", LABELS, "ct")
    assert found.verdict == "suspicious"
    assert found.suspicious[0].startswith("the image: its sform and qform are up to 30.0 mm apart")


def test_spacing_in_metres_is_broken(tmp_path):
    scan = trees.phantom(0)
    found = checked(
        tmp_path, scan.image, scan.labels, scan.affine / 1000 + np.diag([0, 0, 0, 0.999])
    )
    assert (
        "the spacing is 0.007×0.007×0.0095 mm, expected 0.1 to 20 mm: the header is not in mm but "
        "seems to be in metres" in found.broken[0]
    )


@pytest.mark.parametrize(("diagonal", "axcodes"), [((1, 1, 1, 1), "RAS"), ((-1, -1, 1, 1), "LPS")])
def test_an_identity_affine_is_suspicious(tmp_path, diagonal, axcodes):
    scan = trees.phantom(0)
    image, label = (
        trees.turned(array, scan.affine, axcodes)[0] for array in (scan.image, scan.labels)
    )
    found = checked(tmp_path, image, label, np.diag(np.float64(diagonal)))
    assert found.verdict == "suspicious"
    assert found.suspicious == ["the affine is the identity: spacing and orientation are lost"]


def test_a_label_on_another_grid_raises(tmp_path):
    scan = trees.phantom(0)
    with pytest.raises(InputError, match=r"label\.nii: its grid is not that of .*image\.nii"):
        checked(
            tmp_path,
            scan.image,
            scan.labels,
            scan.affine,
            label_affine=scan.affine + np.eye(4, k=3),
        )


def test_without_a_liver_only_geometry_and_values_are_evaluated(tmp_path):
    scan = trees.phantom(0)
    labels = {"0": "background", "1": "air"}
    found = checked(
        tmp_path, scan.image, (scan.image < -900).astype(np.uint8), scan.affine, labels=labels
    )
    assert found.verdict == "ok" and "liver" not in found.facts


@pytest.mark.real_data
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("name", "modality"), [("ts_ct", "ct"), ("ts_mr", "mr")])
def test_real_scans(samples, tmp_path, name, modality, axis):
    image, organs = (nib.load(samples / f"{name}{end}.nii.gz") for end in ("", "_organs"))
    liver = (np.asarray(organs.dataobj) == 5).astype(np.uint8)
    array = np.asarray(image.dataobj)
    found = checked(
        tmp_path,
        array,
        liver if axis is None else np.flip(liver, axis),
        image.affine,
        modality=modality,
    )
    assert found.verdict == ("ok" if axis is None else "broken"), (found.broken, found.suspicious)
