"""The 2-D bundles are one training with different networks: everything in which their configs differ is listed here."""

from __future__ import annotations

import json

import pytest
from helpers.bundle_runs import BUNDLE

# The first-level keys that may differ from those of deeplabv3_liver.
DIFFERENT = {
    "unet_liver": {
        "train.json": {"network_def", "learning_rate", "experiment_name"},
        "fine_tune.json": {"learning_rate"},
        "inference.json": {"network_def"},
    },
    "fcn_liver": {
        "train.json": {"network_def", "networks", "learning_rate", "experiment_name"},
        "fine_tune.json": {"learning_rate"},
        "inference.json": {"network_def", "networks", "retrain_configs"},
    },
    "deeplabv3_abdomen_mr": {
        "train.json": {"classes", "modality", "loss", "losses#per_organ#losses", "experiment_name"},
        "evaluate.json": {"mask_cleaning"},
        "inference.json": {"num_classes", "modality", "mask_cleaning", "output_postfix"},
    },
}
CONFIGS = (
    "train.json",
    "fine_tune.json",
    "evaluate.json",
    "inference.json",
    "multi_gpu_train.json",
)


def read(name: str, config: str) -> dict:
    return json.loads((BUNDLE.parent / name / "configs" / config).read_text())


def differences(one: dict, other: dict, below: str = "") -> set[str]:
    """The paths of values that differ; in `losses` to the third level, elsewhere to the first."""
    found = set()
    for key in one.keys() | other.keys():
        path, values = f"{below}{key}", [one.get(key), other.get(key)]
        deeper = (
            path.startswith("losses")
            and path.count("#") < 2
            and all(isinstance(v, dict) for v in values)
        )
        if deeper:
            found |= differences(*values, below=f"{path}#")
        elif values[0] != values[1]:
            found.add(path)
    return found


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", DIFFERENT)
def test_differs_in_nothing_but_what_is_listed(name, config):
    assert differences(read(BUNDLE.name, config), read(name, config)) == DIFFERENT[name].get(
        config, set()
    )


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", DIFFERENT)
def test_keys_stand_in_the_same_order(name, config):
    """So that a reader who knows one of the files finds the way in the others."""
    one, other = (list(read(bundle, config)) for bundle in (BUNDLE.name, name))
    assert [key for key in one if key in other] == [key for key in other if key in one]
