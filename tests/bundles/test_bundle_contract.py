"""What every folder under bundles/ keeps to, so that MONAI's tools and MONAI Label can use it."""

from __future__ import annotations

import json
import logging
import re
import sys
from importlib import metadata
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, create_workflow, verify_metadata, verify_net_in_out

from liverseg.errors import message
from liverseg.io.masks import class_names
from liverseg.settings import read_setting

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
CONFIGS = [
    "metadata.json",
    "train.json",
    "fine_tune.json",
    "evaluate.json",
    "inference.json",
    "multi_gpu_train.json",
    "logging.conf",
]
FILES = [
    *(f"configs/{name}" for name in CONFIGS),
    "docs/README.md",
    "docs/data_license.txt",
    "LICENSE",
]
# What train.json and inference.json name alike and need not agree on; where training goes by
# stages, also the others.
OWN = {"imports", "load", "output_dir", "postprocessing", "initialize", "run"}
OWN_OF_STAGES = {"network"}
# Eight networks of full size take seconds to make, and their width is not what is looked at.
NARROW = {
    "cascade_lits": {"localise_network#first_filters": 4, "tune_network#first_filters": 4},
    "unet3d_abdomen": {"networks#paper#width": 4, "networks#quality#init_filters": 8},
    "unet3d_liver": {"stage_networks#liver#width": 4, "stage_networks#lesion#width": 4},
}


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request, monkeypatch):
    """Each bundle in turn; what its configs change in this process is put back."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield request.param
    monai.utils.set_determinism(None)


def config(bundle, name):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / name)
    parser["bundle_root"] = str(bundle)
    return parser


def without_initial_weights(parser):
    """Return the network, and what is chosen among: training and inference must have the same."""
    content = parser.get()
    # One that is chosen from several is text.
    single = [content["stage_network"]] if isinstance(content.get("stage_network"), dict) else []
    networks = [parser["network_def"], *single, *content.get("networks", {}).values()]
    return [
        {key: value for key, value in network.items() if not key.startswith("encoder_weights")}
        if isinstance(network, dict)
        else network
        for network in networks
    ]


def lists_in(value):
    """All lists of a config, however deep."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from lists_in(item)
    if isinstance(value, list):
        yield value


def test_there_are_bundles():
    assert BUNDLES


def test_has_its_files(bundle):
    assert [name for name in FILES if not (bundle / name).is_file()] == []


def test_configs_are_json_and_made_for_one_version_of_liverseg(bundle):
    contents = {path.name: path.read_text() for path in sorted((bundle / "configs").glob("*.json"))}
    assert all(isinstance(json.loads(text), dict) for text in contents.values())
    required = {name: re.findall(r"require\('([\d.]+)'\)", text) for name, text in contents.items()}
    assert len(required["train.json"]) == len(required["inference.json"]) == 1
    assert len({version for versions in required.values() for version in versions}) == 1


def test_metadata_names_what_is_installed(bundle):
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    named = {
        "monai": content["monai_version"],
        "torch": content["pytorch_version"],
        "numpy": content["numpy_version"],
    }
    named |= content["required_packages_version"]
    assert named == {name: metadata.version(name).split("+")[0] for name in named}
    assert content["version"] in content["changelog"]


def test_metadata_fits_the_schema(bundle):
    if not SCHEMA.is_file():
        pytest.skip(f"MONAI's schema is not there: {SCHEMA}")
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=SCHEMA)


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_network_takes_and_gives_what_metadata_says(bundle, name):
    files = {
        "meta_file": bundle / "configs" / "metadata.json",
        "config_file": bundle / "configs" / name,
    }
    # The smallest image that the metadata allows, in the config as it is.
    verify_net_in_out(
        "network_def", **files, device="cpu", bundle_root=str(bundle), **NARROW.get(bundle.name, {})
    )


def test_metadata_says_which_sizes_and_values_there_are(bundle):
    """With random weights, the network needs the stated multiple and keeps the stated range."""
    content = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    image, pred = content["inputs"]["image"], content["outputs"]["pred"]
    assert image["format"] == {"CT": "hounsfield", "MR": "magnitude"}[image["modality"]]
    assert (pred["format"], pred["spatial_shape"]) == ("segmentation", image["spatial_shape"])
    settings = NARROW.get(bundle.name, {})

    def run(*shape, **tier):
        parser = config(bundle, "inference.json")
        parser.update({**settings, **tier})
        torch.manual_seed(0)
        network = parser.get_parsed_content("network_def").eval()
        with torch.no_grad():
            return network(torch.rand(1, image["num_channels"], *shape))

    (size,) = set(image["spatial_shape"])
    axes, multiple = len(image["spatial_shape"]), 1 if size == "*" else int(size.removesuffix("*n"))
    shape = [multiple * n for n in (5, 3, 2)[:axes]]
    logits = run(*shape)
    assert logits.shape == (1, pred["num_channels"], *shape)
    # Logits are any numbers; the schema has no word for that but none.
    assert pred["value_range"] == []
    assert not 0 <= logits.min() <= logits.max() <= 1
    if multiple > 1:
        # Of a bundle's two networks, one takes any size.
        tier = {"tier": "quality"} if "tier" in config(bundle, "inference.json") else {}
        assert run(*shape, **tier).shape == logits.shape
        with pytest.raises((RuntimeError, ValueError)):
            run(*(length + multiple // 2 for length in shape), **tier)
    labels = list(pred["channel_def"].values())
    assert list(pred["channel_def"]) == [str(value) for value in range(pred["num_channels"])]
    assert [name.replace(" ", "_") for name in labels] == list(
        config(bundle, "train.json").get_parsed_content("classes")
    )


def test_training_and_inference_see_the_same(bundle):
    train, infer = config(bundle, "train.json"), config(bundle, "inference.json")
    assert train.get_parsed_content("num_classes") == infer.get_parsed_content("num_classes")
    assert without_initial_weights(train) == without_initial_weights(infer)
    own = OWN | (OWN_OF_STAGES if "stage" in train.get() else set())
    both = set(train.get()) & set(infer.get()) - {"num_classes", "network_def", "networks"} - own
    assert {"spacing", "hu_window", "postprocessings"} <= both
    assert {key for key in both if train[key] != infer[key]} == set()


@pytest.mark.parametrize(
    "names",
    [
        ["train.json"],
        ["train.json", "fine_tune.json"],
        ["train.json", "evaluate.json"],
        ["train.json", "multi_gpu_train.json"],
    ],
)
def test_what_can_be_run_refers_to_nothing_that_is_not_there(bundle, names):
    parser = ConfigParser()
    parser.read_config([bundle / "configs" / name for name in names])
    for run_id in ("initialize", "run", "finalize", "training", "evaluating", "iterate", "rounds"):
        if run_id in parser.get():
            parser.get_parsed_content(run_id, instantiate=False, eval_expr=False)


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_has_the_properties_that_monai_asks_for(bundle, name, dataset, tmp_path, caplog):
    settings = {}
    if name == "train.json":
        # The labels have no more than two values above 0.
        classes = config(bundle, name).get("classes")
        settings["classes"] = dict(zip(classes, [[0], [1, 2], *[[]] * 9], strict=False))
    workflow = create_workflow(
        config_file=str(bundle / "configs" / name),
        workflow_type="train" if name == "train.json" else "infer",
        **settings,
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "output"),
        ckpt_dir=str(tmp_path / "models"),
    )
    workflow.initialize()
    with caplog.at_level(logging.WARNING):
        assert workflow.check_properties() == [], caplog.text
    workflow.finalize()


@pytest.mark.parametrize("names", [["train.json", "evaluate.json"], ["inference.json"]])
def test_settings_are_shipped_as_they_may_be_given(bundle, names):
    parser = ConfigParser(
        ConfigParser.load_config_files([bundle / "configs" / name for name in names])
    )
    for key, value in parser.get().items():
        assert read_setting(key, value, parser.get(), parser) == value


def test_what_retraining_takes_over_is_a_setting_of_both(bundle):
    train, inference = (config(bundle, name).get() for name in ("train.json", "inference.json"))
    names = inference["retrain_configs"]
    assert "spacing" in names
    assert [name for name in names if name not in train or name not in inference] == []


def test_tracking_looks_where_the_training_writes(bundle):
    content = config(bundle, "train.json").get()
    handlers = {
        handler["_target_"].rpartition(".")[2]: handler
        for handler in content["train"]["handlers"]
        if isinstance(handler, dict)
    }
    # Each reads what those before it have written.
    assert list(handlers)[-5:] == [
        "Checkpoints",
        "TensorBoardStatsHandler",
        "RunSummary",
        "Overlays",
        "Tracking",
    ]
    folders = {handlers[name]["output_dir"] for name in ("RunSummary", "Overlays", "Tracking")}
    validation = content["validate"]["handlers"][0]
    assert folders == {handlers["TensorBoardStatsHandler"]["log_dir"]} == {validation["log_dir"]}
    assert handlers["Tracking"]["ckpt_dir"] == handlers["Checkpoints"]["ckpt_dir"]
    assert content["experiment_name"] == bundle.name


def test_every_scan_is_checked_where_it_is_loaded(bundle):
    """There its intensities are still those of the file."""
    loads = {"train.json": 0, "evaluate.json": 0, "inference.json": 0}
    for name in loads:
        for transforms in lists_in(json.loads((bundle / "configs" / name).read_text())):
            targets = [item.get("_target_") for item in transforms if isinstance(item, dict)]
            if "liverseg.transforms.LoadVolumed" in targets:
                place = targets.index("liverseg.transforms.LoadVolumed") + 1
                assert transforms[place] == {
                    "_target_": "liverseg.transforms.CheckPlausibilityd",
                    "keys": "@image_key",
                    "modality": "@modality",
                }
                loads[name] += 1
    assert loads["train.json"] == loads["inference.json"] == 1


def test_every_mask_of_the_liver_is_checked_before_it_is_saved(bundle):
    content = json.loads((bundle / "configs" / "inference.json").read_text())
    assert (
        "liver"
        in class_names(json.loads((bundle / "configs" / "metadata.json").read_text())).values()
    )
    assert content["preprocessing"]["transforms"].startswith("$[*@load, ")
    loads = [item["_target_"] for item in content["load"]]
    # While the intensities and the order of the axes are those of the file.
    assert loads[:3] == [
        f"liverseg.transforms.{n}" for n in ("LoadVolumed", "CheckPlausibilityd", "SampleVoxelsd")
    ]
    inverted, flagged, saved = content["save_mask"]["transform"]["transforms"]
    assert (inverted["_target_"], saved["_target_"]) == ("Invertd", "liverseg.transforms.SaveMaskd")
    assert flagged == {
        "_target_": "liverseg.transforms.FlagMaskd",
        "keys": "pred",
        "class_names": "$@masks.class_names",
        "modality": "@modality",
    }
    assert "@save_mask" in content["handlers"]


def test_the_last_epoch_is_validated_whatever_the_interval(bundle):
    handlers = config(bundle, "train.json")["train#handlers"]
    targets = [one["_target_"].rpartition(".")[2] for one in handlers]
    # `Checkpoints` does it where the handler before it has not.
    assert targets.index("ValidationHandler") < targets.index("Checkpoints")
    evaluators = [handlers[targets.index("ValidationHandler")]["validator"]]
    evaluators.append(handlers[targets.index("Checkpoints")]["evaluator"])
    assert evaluators == ["@validate#evaluator"] * 2


@pytest.mark.parametrize("section", ["training", "validation"])
def test_a_class_without_a_voxel_stops_a_training_before_it_begins(bundle, section, tmp_path):
    parser = config(bundle, "train.json")
    classes = parser.get_parsed_content("classes")
    *_, missing = classes
    items = []
    for fold in range(2):
        # The last class is only in one of the two.
        there = (fold == 0) == (section == "training")
        shown = [values[0] for name, values in classes.items() if there or name != missing]
        label = np.zeros((2, 4, 5), np.uint8)
        label.reshape(-1)[: len(shown)] = shown
        for file in (f"{fold}.nii.gz", f"{fold}_label.nii.gz"):
            nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / file)
        items.append({"image": f"{fold}.nii.gz", "label": f"{fold}_label.nii.gz", "fold": fold})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    parser["dataset_dir"] = str(tmp_path)
    data = {"training": "train#dataset#data", "validation": "validate#dataset#data"}
    whole = "validation" if section == "training" else "training"
    assert len(parser.get_parsed_content(data[whole])) == 1
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content(data[section])
    assert f"dataset.json: {section}: found no voxel of {missing} (" in message(error.value)
