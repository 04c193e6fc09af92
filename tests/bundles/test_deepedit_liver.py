"""The bundle deepedit_liver: where clicks land, and what a trained network makes of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import BUNDLE, monai_bundle, save
from monai.bundle import create_workflow

from liverseg.errors import message

CONFIGS = BUNDLE.parent / "deepedit_liver" / "configs"
SIGMA_VOXELS = 2.0


def segment(output_dir: Path, scans: Path, **settings) -> np.ndarray:
    """The mask of the one scan, in the file's own order."""
    create_workflow(
        config_file=str(CONFIGS / "inference.json"),
        workflow_type="infer",
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(scans),
        output_dir=str(output_dir),
        **settings,
    ).run()
    (path,) = output_dir.glob("*_liver_lesion.nii.gz")
    return np.asarray(nib.load(path).dataobj)


def affine_of_grid(codes: str, spacing, degrees: float) -> np.ndarray:
    """Voxels of a file to mm, for axes that lead to where `codes` says and are turned about z."""
    matrix = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        direction = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[code]
        matrix[direction, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ matrix
    affine[:3, 3] = (31, -17, 400)
    return affine


GRIDS = {
    "RAS": affine_of_grid("RAS", (2, 2, 2), 0),
    "LPS": affine_of_grid("LPS", (2, 2, 2), 0),
    "PIR": affine_of_grid("PIR", (2, 2, 2), 0),
    "oblique": affine_of_grid("RAS", (2, 2, 2), 17),
    "oblique LPS": affine_of_grid("LPS", (2, 2, 2), -25),
    "thick slices": affine_of_grid("LAS", (1.5, 2.5, 6), 0),
    "identity": np.eye(4),
}


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> dict:
    """Return settings for a network that paints the class of each click where it is clicked."""
    network = torch.nn.Conv3d(4, 3, 1)
    with torch.no_grad():
        network.weight[:] = torch.eye(4)[1:, :, None, None, None]
        network.bias[:] = torch.tensor([0.5, 0, 0])
    path = tmp_path_factory.mktemp("painter") / "painter.pt"
    torch.save(network.state_dict(), path)
    network_def = {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 4,
        "out_channels": 3,
        "kernel_size": 1,
    }
    return {
        "network_def": network_def,
        "ckpt_path": str(path),
        "spatial_size": [24, 24, 24],
        "amp": False,
    }


@pytest.mark.parametrize("name", GRIDS)
def test_a_click_lands_where_it_was_put(name, painter, tmp_path):
    affine, shape = GRIDS[name], (44, 36, 22)
    save(tmp_path / "scan.nii.gz", np.zeros(shape, np.int16), affine)
    spacing = 3.0 if name != "identity" else 1.5
    clicks = {"liver": [[12, 25, 8]], "lesion": [[33, 10, 14]], "background": [[20, 18, 11]]}
    mask = segment(
        tmp_path / "out", tmp_path / "scan.nii.gz", clicks=clicks, spacing=[spacing] * 3, **painter
    )
    assert mask.shape == shape
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1, 2}
    for value, ((click,),) in enumerate(zip((clicks["liver"], clicks["lesion"]), strict=True), 1):
        # Above a half, a Gaussian is a ball of this radius.
        radius_mm = SIGMA_VOXELS * np.sqrt(2 * np.log(2)) * spacing
        offsets_mm = (np.argwhere(mask == value) - click) @ affine[:3, :3].T
        assert np.linalg.norm(offsets_mm.mean(0)) < spacing / 2
        assert np.linalg.norm(offsets_mm, axis=1).max() < radius_mm + spacing
        everywhere_mm = (np.argwhere(np.ones(shape)) - click) @ affine[:3, :3].T
        ball = (np.linalg.norm(everywhere_mm, axis=1) < radius_mm).sum()
        assert len(offsets_mm) == pytest.approx(ball, rel=0.3)


def test_without_clicks_the_mode_is_automatic(painter, tmp_path):
    save(tmp_path / "scan.nii.gz", np.zeros((20, 20, 20), np.int16))
    assert not segment(tmp_path / "none", tmp_path / "scan.nii.gz", **painter).any()
    assert not segment(
        tmp_path / "empty", tmp_path / "scan.nii.gz", clicks={"liver": []}, **painter
    ).any()


@pytest.mark.parametrize(
    ("clicks", "words"),
    [
        ({"spleen": [[1, 2, 3]]}, ["clicks", "'spleen'", "background, liver, lesion"]),
        ({"liver": [[1, 2, 20]]}, ["scan.nii.gz", "[1.0, 2.0, 20.0]", "liver", "[19, 19, 19]"]),
        ({"liver": [[1, 2]]}, ["clicks", "[1, 2]", "three numbers"]),
        ({"liver": 5}, ["clicks", "5 for liver", "three numbers"]),
    ],
)
def test_clicks_that_mean_nothing_end_with_a_message(clicks, words, painter, tmp_path):
    save(tmp_path / "scan.nii.gz", np.zeros((20, 20, 20), np.int16))
    with pytest.raises(Exception) as error:
        segment(tmp_path / "out", tmp_path / "scan.nii.gz", clicks=clicks, **painter)
    found = message(error.value)
    assert found is not None
    assert all(word in found for word in words), found


def test_clicks_for_several_scans_end_with_a_message(painter, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", np.zeros((20, 20, 20), np.int16))
    with pytest.raises(Exception) as error:
        segment(tmp_path / "out", tmp_path, clicks={"liver": [[1, 2, 3]]}, **painter)
    assert "2 scans" in str(message(error.value))


def two_balls(seed: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Draw a very bright ball, the liver, and a bright ball that only a click can tell."""
    generator = np.random.default_rng(seed)
    shape = (32, 16, 16)
    centres = [
        [x, *map(int, generator.integers(6, 10, 2))]
        for x in generator.permutation([8, 23]).tolist()
    ]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    certain, doubtful = (np.linalg.norm(grid - centre, axis=-1) < 5 for centre in centres)
    image = 220.0 * certain + 110.0 * doubtful + generator.normal(0, 15, shape)
    return image.astype(np.int16), (certain | (doubtful & (seed % 2 > 0))).astype(np.uint8), centres


SMALL = {
    "spacing": [3.0, 3.0, 3.0],
    "spatial_size": [32, 16, 16],
    "network_def#init_filters": 8,
    "network_def#blocks_down": [1, 1, 1],
    "network_def#blocks_up": [1, 1],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data and a network that was trained on it from the command line."""
    folder = tmp_path_factory.mktemp("deepedit")
    affine, items = np.diag([3.0, 3.0, 3.0, 1.0]), []
    for number in range(32):
        image, label, _ = two_balls(number)
        save(folder / f"volume-{number}.nii", image, affine)
        save(folder / f"label-{number}.nii", label, affine)
        items.append(
            {
                "image": f"volume-{number}.nii",
                "label": f"label-{number}.nii",
                "fold": int(number >= 8),
            }
        )
    (folder / "dataset.json").write_text(json.dumps({"training": items}))
    # The balls have no lesions.
    settings = {
        **SMALL,
        "classes#lesion": [],
        "max_epochs": 40,
        "val_interval": 40,
        "max_clicks": 2,
        "learning_rate": 0.002,
    }
    train = str(CONFIGS / "train.json")
    run = monai_bundle(
        *(
            "run",
            "training",
            "--config_file",
            train,
            "--bundle_root",
            folder,
            "--dataset_dir",
            folder,
        ),
        cwd=folder,
        batch_size=2,
        **settings,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_simulated_clicks_make_scans_better_that_were_not_trained_on(trained):
    with (trained / "eval" / "history.csv").open(newline="") as file:
        last = {
            name: float(value) for name, value in list(csv.DictReader(file))[-1].items() if value
        }
    # Who always takes the doubtful ball for liver, or never, has 1 and 2/3 in turn.
    assert last["val_dice_automatic"] < 0.92
    assert last["val_dice_clicks"] > 0.94
    assert last["val_mean_dice"] == pytest.approx(
        (last["val_dice_clicks"] + last["val_dice_automatic"]) / 2, abs=1e-6
    )
    model = json.loads((trained / "models" / "model.json").read_text())
    assert model["val_mean_dice"] == pytest.approx(last["val_mean_dice"])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_a_click_decides_where_it_is_and_changes_nothing_far_away(number, trained, tmp_path):
    _, _, centres = two_balls(number)
    shape, doubtful = (32, 16, 16), centres[1]
    distance = np.linalg.norm(np.argwhere(np.ones(shape)) - doubtful, axis=1).reshape(shape)

    def liver(clicks):
        folder = tmp_path / "-".join(["out", *clicks])
        settings = {"ckpt_dir": str(trained / "models"), "clicks": clicks, **SMALL}
        return segment(folder, trained / f"volume-{number}.nii", **settings) == 1

    automatic, yes, no = liver({}), liver({"liver": [doubtful]}), liver({"background": [doubtful]})
    assert yes[distance < 5].mean() > 0.9
    assert no[distance < 5].mean() < 0.1
    far = distance > 9
    assert automatic[far].sum() > 400
    for found in (yes, no):
        assert (found != automatic)[far].sum() < 0.1 * automatic[far].sum()
