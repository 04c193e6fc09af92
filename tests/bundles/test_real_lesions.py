"""The bundles for liver and lesions on real scans: the chain works on real input, no more."""

from __future__ import annotations

import json
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import BUNDLE, copy_files, known
from monai.bundle import create_workflow
from monai.transforms import LoadImage

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

# What each bundle trains one after the other, and the settings of training and inference alike.
STAGES = {
    "mixed_unet_lits": [{"stage": "liver"}, {"stage": "lesion"}],
    "cascade_lits": [
        {"target": target, "stage": stage}
        for target in ("liver", "lesion")
        for stage in ("localise", "tune")
    ],
}
SETTINGS = {
    "mixed_unet_lits": {
        "spatial_size": [64, 64],
        "stage_network#first_filters": 16,
        "stage_network#dropout": 0.0,
    },
    "cascade_lits": {
        **{"planes": ["axial"], "spacing": [4.0, 4.0, 4.0], "localise_spacing": [6.0, 6.0, -1.0]},
        **{"spatial_size": [64, 64], "localise_size": [64, 64]},
        **{"localise_network#first_filters": 16, "tune_network#first_filters": 16},
    },
}


def write_scan(samples: Path, folder: Path) -> dict[str, str]:
    """Draw two dark balls, labelled as LiTS, in the liver of a real scan: none has labels."""
    scan, organs = (nib.load(samples / name) for name in ("ts_ct.nii.gz", "ts_ct_organs.nii.gz"))
    image, label = np.array(scan.dataobj), (np.asarray(organs.dataobj) == 5).astype(np.uint8)
    for centre, radius_mm in (((86, 47, 103), 21), ((75, 62, 98), 15)):
        offsets_mm = 3.0 * (np.indices(image.shape) - np.reshape(centre, (3, 1, 1, 1)))
        ball = (np.linalg.norm(offsets_mm, axis=0) <= radius_mm) & (label > 0)
        image[ball] -= 60
        label[ball] = 2
    item = {name: str(folder / f"{name}.nii.gz") for name in ("image", "label")}
    nib.save(nib.Nifti1Image(image.astype(np.int16), scan.affine), item["image"])
    nib.save(nib.Nifti1Image(label, scan.affine), item["label"])
    return item


@pytest.fixture(scope="module", params=STAGES)
def overfitted(request, tmp_path_factory) -> Path:
    """A training on one scan, validated on the same: nothing but learning by heart."""
    samples = Path(__file__).resolve().parents[3] / "shared" / "samples"
    if not samples.is_dir():
        pytest.skip(f"the real scans are not there: {samples}")
    folder = tmp_path_factory.mktemp("overfit") / request.param
    folder.mkdir()
    item = write_scan(samples, folder)
    training, validation = (
        {**item, "fold": 1},
        {**copy_files(item, folder / "copy"), "fold": 0, "patient": "copy"},
    )
    (folder / "dataset.json").write_text(json.dumps({"training": [validation, training]}))
    config = BUNDLE.parent / folder.name / "configs" / "train.json"
    for stage in STAGES[folder.name]:
        create_workflow(
            config_file=str(config),
            workflow_type="train",
            bundle_root=str(folder),
            dataset_dir=str(folder),
            **known(config, SETTINGS[folder.name]),
            **stage,
            batch_size=1,
            slices_per_volume=8,
            foreground_ratio=0.9,
            max_epochs=120,
            val_interval=120,
            learning_rate=0.001,
        ).run()
    return folder


def segment(trained: Path, scan: Path, cleaning: str) -> tuple[np.ndarray, nib.Nifti1Image]:
    output_dir, config = (
        trained / cleaning,
        BUNDLE.parent / trained.name / "configs" / "inference.json",
    )
    create_workflow(
        config_file=str(config),
        workflow_type="infer",
        bundle_root=str(trained),
        dataset_dir=str(scan),
        output_dir=str(output_dir),
        postprocessing=f"@postprocessings#{cleaning}",
        **known(config, SETTINGS[trained.name]),
    ).run()
    mask = nib.load(output_dir / f"{scan.name.removesuffix('.nii.gz')}_liver_lesion.nii.gz")
    return np.asarray(mask.dataobj), mask


@pytest.mark.parametrize("name", ["ts_ct.nii.gz", "crlm_ct_1006.nii.gz", "image.nii.gz"])
def test_lesions_lie_inside_the_liver_on_the_scans_grid(overfitted, samples, name):
    scan = samples / name if (samples / name).is_file() else overfitted / name
    found, mask = segment(overfitted, scan, "none")
    assert mask.shape == tuple(LoadImage()(scan).shape)
    assert np.allclose(mask.affine, LoadImage()(scan).affine, atol=1e-3)
    assert set(np.unique(found)) <= {0, 1, 2}
    # The networks find one liver; a lesion is a part of it, and the CRF moves none out of it.
    assert (
        cc3d.connected_components((found > 0).astype(np.uint8), connectivity=26, return_N=True)[1]
        == 1
    )
    cleaned, _ = segment(overfitted, scan, "dense_crf")
    assert not (cleaned[found == 0] == 2).any()
    if name == "image.nii.gz":  # the scan that the networks know by heart
        assert set(np.unique(cleaned)) == {0, 1, 2}
