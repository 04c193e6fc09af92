"""What the configs of cascade_lits must agree on: training a plane, evaluating and inferring it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.bundle_runs import BUNDLE, monai_bundle_here, write_dataset
from monai.bundle import ConfigParser
from scipy.ndimage import median_filter

from liverseg.errors import message
from liverseg.networks import CascadeNetworks, cascade_weights
from liverseg.networks.cascade import PLANE_AXES

CONFIGS = BUNDLE.parent / "cascade_lits" / "configs"
SPACING = [1.1, 1.2, 1.3]


def config(*names: str, **settings) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([CONFIGS / name for name in names])
    for key, value in {"bundle_root": str(CONFIGS.parent), "spacing": SPACING, **settings}.items():
        parser[key] = value
    return parser


@pytest.mark.parametrize("plane", PLANE_AXES)
def test_inference_looks_at_a_plane_as_it_was_trained(plane):
    grid = config("train.json", stage="tune", plane=plane).get_parsed_content("grid")
    assert [{"R": 0, "A": 1, "S": 2}[letter] for letter in grid["axcodes"]] == list(
        PLANE_AXES[plane]
    )
    assert grid["spacing"] == [1.1, 1.2, -1]  # of x and y; slices along z stay where they are
    assert grid["slice_spacing"] == [
        -1,
        -1 if plane == "axial" else 1.3,
        -1,
    ]  # then the columns, which are z
    inferer = config("inference.json").get_parsed_content("inferer#inferer")
    assert inferer.slices[plane].spacing == tuple(grid["slice_spacing"][:2])
    assert inferer.region_grid.spacing == tuple(grid["spacing"][:2])


def test_evaluation_segments_as_inference_does():
    inference, evaluation = config("inference.json"), config("train.json", "evaluate.json")
    pairs = {
        "inferer#inferer": "validate#inferer",
        "cascade": "cascade",
        "liver_postprocessing": "liver_postprocessing",
        "localisers": "localisers",
        "slice_inferers": "slice_inferers",
        "cascade_inferer": "cascade_inferer",
        "liver_localised": "liver_localised",
    }
    for one, other in pairs.items():
        assert inference[one] == evaluation[other]


def test_training_localises_as_inference_does():
    training, inference = config("train.json"), config("inference.json")
    for target in ("liver", "lesion"):
        transform = training[f"targets#{target}#prior"]
        assert transform["keys"] == "@keys"
        trained = transform["localiser"]
        used = inference[f"localisers#{target}"]
        assert used.pop("_mode_") == "callable"
        assert {trained.pop(key) is None for key in ("network", "weights")} == {False}
        if target == "lesion":
            # Training reads of the lesions' mask only its box: it crops to the liver, and learns
            # without a finding too.
            assert (
                trained.pop("postprocessing")
                == f"${used.pop('postprocessing')} if @prior == 'box' else None"
            )
        assert used == trained


def test_every_stage_has_its_place_and_none_is_forgotten():
    stages = json.loads((CONFIGS / "train.json").read_text())["all_stages"]
    expected = [
        {"target": target, **stage}
        for target in ("liver", "lesion")
        for stage in (
            {"stage": "localise"},
            *({"stage": "tune", "plane": plane} for plane in PLANE_AXES),
        )
    ]
    assert stages == expected


def test_every_training_ends_with_one_file_of_what_all_stages_have_written():
    content = json.loads((CONFIGS / "train.json").read_text())
    written = {}
    for stage in content["all_stages"]:
        parser = config("train.json", ckpt_dir="weights", **stage)
        written[f"{stage['target']}_{parser.get_parsed_content('part')}"] = (
            parser.get_parsed_content("train#ckpt_dir").rstrip("/") + "/model.pt"
        )
    parser = config("train.json", ckpt_dir="weights")
    assert parser.get_parsed_content("stage_models") == written
    assert cascade_weights("weights") == written
    assert list(CascadeNetworks(torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(2, 1, 1))) == list(
        written
    )
    assert "run" not in json.loads((CONFIGS / "multi_gpu_train.json").read_text())
    merge = "$@liverseg.networks.merge_weights(@stage_models, os.path.join(@ckpt_dir, 'model.pt'))"
    assert content["run"][-1] == content["rounds"][-1] == merge


def test_what_segments_is_part_of_what_is_checked_and_exported():
    for parser in (config("inference.json"), config("train.json", "evaluate.json")):
        some = {**parser["cascade"]}
        assert (some.pop("targets"), some.pop("planes")) == ("@segmented_targets", "@planes")
        assert some == parser["network_def"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"stage": "tuning"}, "stage: found 'tuning', expected one of localise, tune"),
        ({"target": "spleen"}, "target: found 'spleen', expected one of liver, lesion"),
        ({"plane": "oblique"}, "plane: found 'oblique', expected one of axial, coronal, sagittal"),
    ],
)
def test_an_unknown_stage_or_plane_is_one_message(tmp_path, monkeypatch, setting, words):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--config_file", CONFIGS / "train.json"]
    with pytest.raises(RuntimeError) as error:
        monai_bundle_here(monkeypatch, "run", *arguments, **setting)
    assert message(error.value).startswith(words)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ({"background": [0], "liver": [1], "lesion": [2]}, ("lesion", "liver")),
        # As the study of the liver alone has them.
        ({"background": None, "liver": [1, 2]}, (None, None)),
    ],
)
def test_lesions_are_counted_where_there_is_a_class_of_them(classes, expected):
    parser = config("train.json", "evaluate.json", classes=classes)
    found = tuple(parser.get_parsed_content(name) for name in ("lesion_class", "organ_class"))
    assert found == expected


# The setting of IJIES 2022, on slices of 64 pixels.
PAPER = {
    "fit": "resize",
    "spatial_size": [64, 64],
    "localise_size": [64, 64],
    "batch_size": 2,
    "slices_per_volume": 2,
    "foreground_ratio": 0,
    "augmentation": "@augmentations#none",
    "localise_postprocessing": "@localise_postprocessings#none",
    "localise_crf": "@localise_crfs#none",
    "localise_network#first_filters": 4,
    "localise_network#dropout_everywhere": True,
    "tune_network#first_filters": 4,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("cascade"))


def paper_config(scans, tmp_path, **settings) -> ConfigParser:
    """The config of a training, with a localisation network of random weights on disk."""
    settings = {**PAPER, "dataset_dir": str(scans), "ckpt_dir": str(tmp_path), **settings}
    parser = config("train.json", **settings)
    torch.manual_seed(0)
    for target in ("liver", "lesion"):
        weights = tmp_path / target / "localise" / "model.pt"
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(parser.get_parsed_content("localise_network").state_dict(), weights)
    return parser


def whole_slices(scans, plane: str) -> torch.Tensor:
    """All slices of all scans as the paper prepares them: window, z-score, median, their size."""
    found = []
    for path in sorted(scans.glob("volume-*.nii")):
        volume = np.clip(nib.load(path).get_fdata(), -100, 200)
        volume = (volume - volume.mean()) / volume.std()
        volume = median_filter(volume, (3, 3, 1), mode="nearest").transpose(PLANE_AXES[plane])
        slices = torch.from_numpy(volume).permute(2, 0, 1)[:, None]
        found.append(F.interpolate(slices, (64, 64), mode="area"))
    return torch.cat(found).float()


@pytest.mark.parametrize("target", ["liver", "lesion"])
@pytest.mark.parametrize("plane", PLANE_AXES)
def test_whole_slices_are_neither_cropped_nor_changed(scans, tmp_path, target, plane):
    parser = paper_config(scans, tmp_path, target=target, stage="tune", plane=plane)
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == (4, 2, 64, 64)
    assert batch["label"].shape == (4, 1, 64, 64)
    known = whole_slices(scans, plane)
    for image in batch["image"][:, :1]:
        assert (known - image).abs().amax((1, 2, 3)).min() < 1e-4


@pytest.mark.parametrize("stage", ["localise", "tune"])
def test_a_step_of_whole_slices_trains(scans, tmp_path, stage):
    parser = paper_config(scans, tmp_path, stage=stage)
    # Patches of a half, a quarter and an eighth divide the slice.
    assert all(size % 8 == 0 for size in parser["spatial_size"])
    network = parser.get_parsed_content("network").train()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    optimizer = parser.get_parsed_content("optimizer")
    loss = parser.get_parsed_content("loss")(network(batch["image"]), batch["label"].float())
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert any(
        not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)
    )


@pytest.mark.parametrize("plane", PLANE_AXES)
def test_whole_slices_are_segmented_as_they_were_trained(plane):
    settings = {"fit": "resize", "spatial_size": [64, 48], "localise_size": [32, 48]}
    inferer = config("inference.json", **settings).get_parsed_content("inferer#inferer")
    assert inferer.slices[plane].size == (64, 48)
    assert inferer.slices[plane].spacing == inferer.region_grid.spacing == (-1, -1)
    assert inferer.margin_mm is None
    for target, localiser in inferer.localise.items():
        found = localiser(network=torch.nn.Identity(), prior="none")
        assert found.crop_margin_mm is None, target
        assert (found.inferer.size, found.inferer.spacing) == ((32, 48), (-1, -1))
