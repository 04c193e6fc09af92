"""What bundles' networks say of a scan is kept, is theirs, and is never another's."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import ROOT, make_scan, save
from helpers.label_bundles import tiny_bundle, write_weights
from monai.bundle import ConfigParser

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')

from lib.bundle import read_bundle
from lib.infer.probabilities import ProbabilityStore, gives_probabilities
from lib.infer.segment import Segmentation
from liverseg.versions import publish

SHAPE = (40, 48, 7)
# Flipped and permuted: as few as possible of the scan's axes are those that the networks see.
AFFINE = np.array([[0, -3.0, 0, 70], [0, 0, 8.0, -20], [2.5, 0, 0, 5], [0, 0, 0, 1]])
SMALL = {
    "fcn_liver": {"network_def": "@networks#simple", "spacing": [-1, -1, -1]},
    "mixed_unet_lits": {"stage_network#first_filters": 4, "spatial_size": [32, 32]},
    "unet3d_abdomen": {
        "networks#paper#width": 4,
        "spacing": [12, 12, 12],
        "spatial_size": [16, 16, 16],
    },
}


@pytest.fixture
def scan(tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(0, SHAPE)[0], AFFINE)
    return str(tmp_path / "scan.nii.gz")


@pytest.fixture
def store(tmp_path):
    return ProbabilityStore(tmp_path / "kept")


def make(folder, source, store, seed=0, **settings):
    """The segmentation of a small bundle."""
    bundle = tiny_bundle(folder / source, source, amp=False, **SMALL[source], **settings)
    write_weights(bundle, seed)
    return Segmentation(read_bundle(bundle), store)


def whole(kept, *names):
    return kept.regions(names, [tuple(slice(0, n) for n in SHAPE)])[0]


def by_hand(bundle, scan):
    """The softmax of the liver of a 2-D network on the scan's own spacing, without the app."""
    parser = ConfigParser(json.loads((bundle.folder / "configs" / "inference.json").read_text()))
    parser["bundle_root"] = str(bundle.folder)
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(bundle.folder / "models" / "model.pt", weights_only=True))
    image = nib.load(scan)
    ornt = nib.io_orientation(image.affine)
    ras = nib.apply_orientation(image.get_fdata(), ornt)
    low, high = parser["hu_window"]
    slices = torch.tensor(np.clip((ras - low) / (high - low), 0, 1), dtype=torch.float32).permute(
        2, 0, 1
    )[:, None]
    with torch.no_grad():
        found = network(slices).softmax(1)[:, 1].permute(1, 2, 0).numpy()
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    return nib.apply_orientation(found, back)


def test_are_the_softmax_of_the_network_voxel_for_voxel(tmp_path, scan, store):
    task = make(tmp_path, "fcn_liver", store)
    expected = by_hand(task.bundle, scan)
    assert 0.1 < expected.mean() < 0.9 and np.ptp(expected) > 0.9
    assert np.abs(whole(task.probabilities(scan), "liver") - expected).max() < 0.51 / 255 + 1e-4
    region = slice(3, 20), slice(30, 48), slice(2, 3)
    (there,) = task.probabilities(scan).regions(["liver"], [region])
    assert np.array_equal(there, whole(store.find(task.bundle, scan), "liver")[region])


def test_of_an_organ_in_a_corner_any_region_is_read(tmp_path, scan, store):
    """They are stored in the box around what is above 0."""
    task = make(tmp_path, "fcn_liver", store)
    kept = task.probabilities(scan)
    organ = np.zeros(SHAPE, np.uint8)
    organ[5:9, 40:48, 1:3] = np.random.default_rng(0).integers(1, 255, (4, 8, 2))
    basis = np.load(kept.file)["basis"]
    np.savez(kept.file, basis=basis, liver=organ[5:9, 40:48, 1:3], **{"liver starts": [5, 40, 1]})
    regions = [
        (slice(0, 40), slice(0, 48), slice(0, 7)),
        (slice(7, 30), slice(41, 44), slice(0, 2)),
    ]
    outside = slice(10, 20), slice(0, 10), slice(0, 7)
    *found, empty = kept.regions(["liver"], [*regions, outside])
    for region, values in zip(regions, found, strict=True):
        assert np.allclose(values, organ[region] / 255)
    assert not empty.any()


@pytest.mark.parametrize("source", ["mixed_unet_lits", "unet3d_abdomen"])
def test_the_class_of_a_voxel_of_the_mask_is_the_likeliest(tmp_path, scan, store, source):
    cleaning = (
        {"liver_postprocessing": "@liver_postprocessings#none"}
        if source == "mixed_unet_lits"
        else {}
    )
    task = make(tmp_path, source, store, **cleaning)
    mask = nib.load(task({"image": scan})[0]).get_fdata()
    kept = store.find(task.bundle, scan)
    found = np.stack([whole(kept, name) for name in task.bundle.labels])
    assert found.sum(0).max() < 1 + 4 / 255
    present = [value for value in task.bundle.labels.values() if (mask == value).sum() > 20]
    assert len(present) > 1
    foreground = 1 - found.sum(0) < 0.5
    if source == "mixed_unet_lits":
        assert np.array_equal(foreground, mask > 0)
    else:
        likeliest = np.concatenate([1 - found.sum(0, keepdims=True), found]).argmax(0)
        assert (likeliest == mask).mean() > 0.99  # but for ties of bytes


def test_every_bundle_gives_them():
    bundles = [read_bundle(path.parent) for path in sorted((ROOT / "bundles").glob("*/configs"))]
    assert len(bundles) >= 7
    assert [bundle.name for bundle in bundles if not gives_probabilities(bundle)] == []


def test_a_segmentation_keeps_those_of_its_options_and_no_version_that_is_not_in_use(
    tmp_path, scan, store
):
    task = make(tmp_path, "fcn_liver", store)
    task({"image": scan, "modality": "mr"})
    in_mr = whole(store.find(task.bundle, scan), "liver")
    task({"image": scan})
    in_ct = whole(task.probabilities(scan), "liver")
    assert np.abs(in_mr - in_ct).max() > 0.1
    models = task.bundle.folder / "models"
    (models / "versions" / "old").mkdir(parents=True)
    os.rename(write_weights(task.bundle.folder, 5), models / "versions" / "old" / "model.pt")
    write_weights(task.bundle.folder, 0)
    task({"image": scan, "version": "old"})
    assert np.array_equal(whole(store.find(task.bundle, scan), "liver"), in_ct)
    # Once it is.
    publish(task.bundle.folder, "old")
    task({"image": scan})
    kept = store.find(task.bundle, scan)
    assert kept.fingerprint == task.bundle.fingerprint()
    assert np.abs(whole(kept, "liver") - in_ct).max() > 0.1


def test_new_weights_give_new_ones_with_the_options_of_the_last_run(tmp_path, scan, store):
    task = make(tmp_path, "fcn_liver", store)
    task({"image": scan, "modality": "mr"})
    old = task.probabilities(scan)
    write_weights(task.bundle.folder, 1)
    new = task.probabilities(scan)
    assert new.fingerprint == task.bundle.fingerprint() != old.fingerprint
    assert dict(new.options) == {"modality": "mr"}
    fresh = make(tmp_path / "fresh", "fcn_liver", ProbabilityStore(tmp_path / "other"), seed=1)
    fresh({"image": scan, "modality": "mr"})
    assert np.array_equal(whole(new, "liver"), whole(fresh.probabilities(scan), "liver"))


def test_another_scan_or_bundle_never_gets_them(tmp_path, scan, store):
    task = make(tmp_path, "fcn_liver", store)
    first = whole(task.probabilities(scan), "liver")
    other = str(tmp_path / "other.nii.gz")
    save(tmp_path / "other.nii.gz", make_scan(1, SHAPE)[0], AFFINE)
    assert store.find(task.bundle, other) is None
    assert np.abs(whole(task.probabilities(other), "liver") - first).max() > 0.1
    # The same name with another scan in it.
    os.replace(other, scan)
    assert store.find(task.bundle, scan) is None
    assert store.find(make(tmp_path, "mixed_unet_lits", store).bundle, scan) is None


def test_those_not_asked_for_the_longest_make_room(tmp_path, store):
    scans = []
    for number in range(3):
        save(tmp_path / f"{number}.nii.gz", make_scan(number, SHAPE)[0], AFFINE)
        scans.append(str(tmp_path / f"{number}.nii.gz"))
    task = make(tmp_path, "fcn_liver", store)
    size_bytes = task.probabilities(scans[0]).file.stat().st_size
    store.limit_bytes = int(2.5 * size_bytes)
    task.probabilities(scans[1])
    store.find(task.bundle, scans[0])
    task.probabilities(scans[2])
    assert [store.find(task.bundle, scan) is not None for scan in scans] == [True, False, True]
    # One alone that is too large is kept: it has just been asked for.
    store.limit_bytes = 1
    assert task.probabilities(scans[1]).file.exists()
    assert len(list(store.folder.iterdir())) == 1


def test_a_full_disk_loses_no_mask(tmp_path, scan, caplog):
    (tmp_path / "kept").write_text("no folder")
    task = make(tmp_path, "fcn_liver", ProbabilityStore(tmp_path / "kept"))
    assert nib.load(task({"image": scan})[0]).shape == SHAPE
    assert "cannot be written" in caplog.text
