from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest
from helpers import dataset_trees as trees

from liverseg.errors import InputError
from liverseg.transforms import CheckPlausibilityd, LoadVolumed
from liverseg.transforms.load import flags_of
from liverseg.transforms.plausibility import check_intensities, check_spacing

SCANS = {
    "ct": ["ts_ct.nii.gz", "crlm_ct_1004.nii.gz", "crlm_ct_1006.nii.gz", "dcmqi_ct/ct"],
    "mr": ["ts_mr.nii.gz", "cmb_mr_t2_visit1.nii.gz", "cmb_mr_t2_visit2.nii.gz"],
}


def rescaled(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / (image.max() - image.min())


def windowed(image: np.ndarray) -> np.ndarray:
    return np.clip((image + 160) / 400, 0, 1)


WRONG = {
    "ct": {
        "1024 added": lambda hu: hu + 1024,
        "as stored, slope 4": lambda hu: 4 * (hu + 1024),
        "as stored, intercept -8192": lambda hu: hu + 8192,
        "0 to 1": rescaled,
        "0 to 1, windowed": windowed,
        "0 to 255": lambda hu: 255 * rescaled(hu),
        "0 to 255, windowed": lambda hu: 255 * windowed(hu),
        "standardised": lambda hu: (hu - hu.mean()) / hu.std(),
        "rescaled twice": lambda hu: hu - 1024,
        "negated": lambda hu: -hu,
        "negated, from 0": lambda hu: hu.max() - hu,
        "negative values lost": lambda hu: np.maximum(hu, 0),
        "wrapped round": lambda hu: np.where(hu < 0, hu + 65536, hu),
    },
    "mr": {"negated": lambda image: -image, "negated, from 0": lambda image: image.max() - image},
}

ENDS = (np.s_[:3], np.s_[-3:])


def bright_at(image: np.ndarray, *places) -> np.ndarray:
    image = image.copy()
    for place in places:
        image[place] = image.max()
    return image


RIGHT = {
    "ct": {
        "as it is": lambda hu: hu,
        "clipped": lambda hu: np.clip(hu, -200, 250),
        "three slices": lambda hu: hu[..., :3],
    },
    "mr": {
        "as it is": lambda x: x,
        "0 to 1": rescaled,
        "0 to 255": lambda x: 255 * rescaled(x),
        "×10": lambda x: 10 * x,
        "a bright corner": lambda x: bright_at(x, np.s_[: len(x) // 8, : len(x[0]) // 8]),
        "a mark in each corner": lambda x: bright_at(x, *((i, j) for i in ENDS for j in ENDS)),
    },
}


def assert_told_apart(image: np.ndarray, modality: str) -> None:
    other = {"ct": "mr", "mr": "ct"}[modality]
    right = {
        name: check_intensities(change(image), modality) for name, change in RIGHT[modality].items()
    }
    assert right == dict.fromkeys(right)
    wrong = {
        name: check_intensities(change(image), modality) for name, change in WRONG[modality].items()
    }
    flags = {name: found[0] for name, found in wrong.items()}
    # Where all below water is dark, what is left may look like MR.
    assert flags.pop("negative values lost", "modality") in ("intensities", "modality")
    assert flags == dict.fromkeys(flags, "intensities")
    assert check_intensities(image, other)[0] == "modality"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_phantoms(modality, seed):
    assert_told_apart(trees.phantom(seed, modality).image.astype(np.float32), modality)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("modality", "name"), [(modality, name) for modality in SCANS for name in SCANS[modality]]
)
def test_real_scans(samples, modality, name):
    assert_told_apart(
        LoadVolumed("image")({"image": str(samples / name)})["image"][0].numpy(), modality
    )


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_masks_are_no_scans(samples, modality):
    organs = np.asarray(nib.load(samples / f"ts_{modality}_organs.nii.gz").dataobj).astype(
        np.float32
    )
    for mask in (organs, (organs == 5).astype(np.float32), np.zeros_like(organs)):
        flag, sentence = check_intensities(mask, modality)
        assert flag == "intensities" and "but of a mask" in sentence


def test_the_message_says_what_was_found_and_what_may_have_happened():
    hu = trees.phantom(0).image.astype(np.float32)
    found = check_intensities(hu + 1024, "ct")
    assert (
        found is not None
        and "not those of a CT in HU" in found[1]
        and "the rescale intercept is lost" in found[1]
    )
    found = check_intensities(255 * rescaled(hu), "ct")
    assert found is not None and "0 to 2" in found[1] and "intercept" not in found[1]
    found = check_intensities(hu, "mr")
    assert found is not None and "those of a CT in HU: take a model for CT" in found[1]


@pytest.mark.parametrize(
    ("spacing_mm", "word"),
    [
        ((0.0007, 0.0007, 0.005), "metres"),
        ((700, 700, 5000), "micrometres"),
        ((1, 1, 0), "wrong"),
        ((1, 1, 300), "wrong"),
    ],
)
def test_a_spacing_that_is_not_in_mm(spacing_mm, word):
    found = check_spacing(spacing_mm)
    assert found is not None and word in found


@pytest.mark.parametrize("spacing_mm", [(0.3, 0.3, 0.5), (0.7, 0.7, 10), (1.5, 15, 1.5), (1, 1, 1)])
def test_a_spacing_that_is_none_of_these(spacing_mm):
    assert check_spacing(spacing_mm) is None


def test_warnings_and_flags_are_logged_once_and_stored_with_the_scan(write_nifti, caplog):
    scan = trees.phantom(0)
    path = write_nifti(
        "a.nii",
        (scan.image + 1024).astype(np.int16),
        scan.affine / 1000 + np.diag([0, 0, 0, 0.999]),
    )
    check = CheckPlausibilityd("image", "ct")
    for _ in range(2):
        loaded = check(LoadVolumed("image")({"image": path}))["image"]
        (spacing,) = loaded.meta["warnings"].splitlines()
        ((flag, intensities),) = flags_of(loaded).items()
        assert flag == "intensities"
        assert "the spacing is 0.007" in spacing
        assert "not those of a CT in HU" in intensities
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert logged == [f"{path}: {spacing}", f"{path}: {intensities}"]
    right = write_nifti("b.nii", scan.image, scan.affine)
    loaded = check(LoadVolumed("image")({"image": right}))["image"]
    assert loaded.meta["warnings"] == loaded.meta["flags"] == ""


def test_voxels_that_would_fill_any_memory_are_refused(write_nifti):
    scan = trees.phantom(0)
    path = write_nifti("a.nii", scan.image, scan.affine * np.array([[1000], [1000], [1000], [1]]))
    with pytest.raises(
        InputError,
        match=r"a\.nii: the spacing is 7e\+03×.*seems to be in micrometres, so correct it\.$",
    ):
        CheckPlausibilityd("image", "ct")(LoadVolumed("image")({"image": path}))


def test_another_modality_is_refused():
    with pytest.raises(InputError, match="modality: found 'pet', expected one of ct, mr"):
        CheckPlausibilityd("image", "pet")
