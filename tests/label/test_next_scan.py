"""Which scan comes next, for one annotator and for several."""

from __future__ import annotations

import errno
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import AFFINE, make_scan, save
from helpers.label_bundles import tiny_bundle, write_weights
from monai.bundle import ConfigParser
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.networks import cascade_weights

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from fastapi import HTTPException

from lib.bundle import read_bundle
from lib.infer.segment import Segmentation
from lib.score.entropy import EntropyMeter, mean_entropy
from lib.score.next_scan import First, HighestScore, Random
from lib.score.scores import DiceScores, Disagreement, Uncertainty, disagreement
from lib.store.local import LockedDatastore

SIMPLE = {
    "network_def": "@networks#simple",
    "spacing": [-1, -1, -1],
    "sw_batch_size": 3,
    "amp": False,
}
TWO_D = {"stage_network#first_filters": 4, "spatial_size": [32, 32], "amp": False}

CASCADE = {
    "localise_spacing": [-1, -1],
    "spacing": [-1, -1, -1],
    "tune_network#first_filters": 4,
    "localise_network#first_filters": 4,
    "localise_crf": "@localise_crfs#none",
    "liver_postprocessing": "@liver_postprocessings#none",
    "amp": False,
}
TILES = {
    **{"stage_networks#liver#width": 4, "stage_networks#lesion#width": 4},
    **{
        "spatial_size": [28, 28, 28],
        "lesion_spatial_size": [20, 20, 20],
        "lesion_spacing": [6, 6, 10],
    },
    **{"segmented_targets": ["liver", "lesion"], "amp": False},
}


def write_cascade(folder, seed) -> None:
    """Random weights of all networks, where they are looked for."""
    parser = ConfigParser(read_bundle(folder).config)
    parser.update({"bundle_root": str(folder)})
    networks = parser.get_parsed_content("network")
    torch.manual_seed(seed)
    for name, path in cascade_weights(folder / "models").items():
        state = {
            key: torch.randn_like(value) if value.ndim > 1 else value
            for key, value in networks[name].state_dict().items()
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)


STUDIES = "studies #1"


def make_store(folder, names="abcd") -> LockedDatastore:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        save(folder / f"{name}.nii.gz", make_scan(number)[0])
    return LockedDatastore(str(folder), extensions=["*.nii.gz", "*.nii"])


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / STUDIES)


def ask(strategy, store, client=None, **request):
    answer = strategy({"strategy": "s", "client_id": client, **request}, store)
    return answer and answer["id"]


def label(store, image, tmp_path, values=None):
    save(tmp_path / "label.nii.gz", make_scan(0)[1] if values is None else values)
    store.save_label(image, str(tmp_path / "label.nii.gz"), "final", {})


# --- whose turn it is


def test_skipped_scans_come_last_and_two_annotators_get_different_scans(store, tmp_path):
    first = First("", 60)
    assert [ask(first, store, "one"), ask(first, store, "two")] == ["a", "b"]
    assert ask(first, store, "one") == "c"  # a skipped, b is another's
    assert ask(first, store, "two") == "a"  # free since its annotator went on
    assert ask(first, store, "one") == "b"
    assert ask(first, store, "one") == "d"
    assert (
        ask(first, store, "one") == "c"
    )  # a is another's; of all that were skipped it is the one longest ago
    for image in "bc":
        label(store, image, tmp_path)
    assert ask(first, store, "one") == "d"
    label(store, "d", tmp_path)
    assert ask(first, store, "one") is None
    assert ask(first, store, "two") == "a"


def test_a_scan_is_free_again_after_a_while_and_after_a_restart_it_is_not(store, tmp_path):
    ask(First("", 60), store, "one")
    again = LockedDatastore(str(tmp_path / STUDIES), extensions=["*.nii.gz"])
    assert ask(Random("", 60), again, "two") != "a"
    assert ask(First("", 0), again, "three") == "a"


def test_who_ask_at_once_get_different_scans(tmp_path):
    names = [chr(97 + number) for number in range(12)]
    store = make_store(tmp_path, names)
    update = store.update_image_info
    # A slow disk.
    store.update_image_info = lambda *args: time.sleep(0.02) or update(*args)
    with ThreadPoolExecutor(12) as threads:
        got = list(threads.map(lambda client: ask(First("", 60), store, client), range(12)))
    assert sorted(got) == names


def test_chance_is_that_of_the_seed(store, tmp_path):
    strategy = Random("", 0)
    orders = [
        [ask(strategy, store, f"client {seed}", seed=seed) for _ in range(4)] for seed in range(5)
    ]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(map(tuple, orders))) > 1
    assert [ask(strategy, store, "another", seed=3) for _ in range(2)] == orders[3][:2]
    label(store, orders[3][0], tmp_path)
    assert [ask(strategy, store, "a third", seed=3) for _ in range(3)] == orders[3][1:]


def test_another_process_writes_no_old_list_back(store, tmp_path):
    other = LockedDatastore(str(tmp_path / STUDIES), extensions=["*.nii.gz"])
    label(store, "a", tmp_path)
    other.update_image_info("b", {"uncertainty": {"value": 1}})
    third = LockedDatastore(str(tmp_path / STUDIES), extensions=["*.nii.gz"], read_only=True)
    assert third.get_labeled_images() == ["a"]
    assert sorted(store.list_images()) == list("abcd")
    assert store.get_image_info("b")["uncertainty"] == {"value": 1}


def test_a_removed_scan_is_not_the_next(store):
    unlabeled = store.get_unlabeled_images
    # Between two looks at the list.
    store.get_unlabeled_images = lambda *args: (unlabeled(*args), store.remove_image("a"))[0]
    assert ask(First("", 60), store) == "b"


# --- how unsure


def preprocessed(folder, scan):
    """Scan as the network sees it, and the network with its weights."""
    parser = ConfigParser(read_bundle(folder).config)
    parser.update({"bundle_root": str(folder), "dataset#data": []})
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt"))
    image = parser.get_parsed_content("preprocessing")({"image": str(scan)})["image"].as_tensor()[0]
    low, high = np.percentile(image[::2, ::2, ::2], [1, 99])
    return image, network, image > low + 0.1 * (high - low)


def turned(x: torch.Tensor, degrees: float) -> torch.Tensor:
    """In the plane of H and W about the centre, by scipy."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(x.ndim)
    matrix[2:4, 2:4] = [[cosine, sine], [-sine, cosine]]
    centre = (np.array(x.shape) - 1) / 2
    found = ndimage.affine_transform(
        x.double().numpy(), matrix, centre - matrix @ centre, order=1, mode="nearest"
    )
    return torch.from_numpy(found)


def entropy_over_turns(network, x, body) -> float:
    """Of the mean softmax, in the body, for all of (N, C, H, W) or (N, C, H, W, D) at once."""
    with torch.no_grad():
        probabilities = [network(x).softmax(1)]
        probabilities += [
            turned(network(turned(x, angle).float()).softmax(1), -angle) for angle in (10, -10)
        ]
    mean = sum(probabilities).double() / 3
    entropy = -(mean * mean.clamp_min(1e-300).log()).sum(1) / math.log(mean.shape[1])
    return float(entropy[body].mean())


def test_uncertainty_is_the_entropy_of_the_mean_over_turns_in_the_body(tmp_path):
    folder = tiny_bundle(tmp_path / "simple", "fcn_liver", **SIMPLE)
    write_weights(folder, 0)
    voxels = np.full((48, 40, 8), -1000, np.int16)
    voxels[8:40, 6:34] = make_scan(0)[0][8:40, 6:34]
    save(tmp_path / "scan.nii.gz", voxels)
    image, network, body = preprocessed(folder, tmp_path / "scan.nii.gz")
    assert body.float().mean() == pytest.approx(32 * 28 / (48 * 40))
    expected = entropy_over_turns(network, image.permute(2, 0, 1)[:, None], body.permute(2, 0, 1))
    assert 0.01 < expected < 0.99
    assert mean_entropy(read_bundle(folder), str(tmp_path / "scan.nii.gz")) == pytest.approx(
        expected, rel=1e-5
    )


def test_uncertainty_of_a_network_that_takes_clicks_is_that_without_any(tmp_path):
    convolution = {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 4,
        "out_channels": 3,
        "kernel_size": 3,
        "padding": 1,
    }
    settings = {
        "network_def": convolution,
        "spacing": [-1, -1, -1],
        "spatial_size": [48, 40, 8],
        "amp": False,
    }
    folder = tiny_bundle(tmp_path / "clicks", "deepedit_liver", **settings)
    write_weights(folder, 0)
    save(tmp_path / "scan.nii.gz", make_scan(0)[0])
    image, network, body = preprocessed(folder, tmp_path / "scan.nii.gz")
    expected = entropy_over_turns(
        network, torch.cat([image[None], torch.zeros(3, *image.shape)])[None], body[None]
    )
    assert 0.01 < expected < 0.99
    assert mean_entropy(read_bundle(folder), str(tmp_path / "scan.nii.gz")) == pytest.approx(
        expected, rel=1e-5
    )


def test_uncertainty_of_networks_with_dropout_is_over_draws_of_it(tmp_path):
    """Two networks, of which each counts alike, and the second only sees what the first finds."""
    folder = tiny_bundle(tmp_path / "two_d", "mixed_unet_lits", **TWO_D)
    write_weights(folder, 0)
    save(tmp_path / "scan.nii.gz", make_scan(0)[0])
    bundle, scan = read_bundle(folder), str(tmp_path / "scan.nii.gz")
    meters = []
    settings = {"postprocessing": None, "dataset#data": [{"image": scan}]}
    Segmentation(bundle).run(
        settings, lambda evaluator: meters.append(EntropyMeter(evaluator, "image"))
    )
    (meter,) = meters
    each = [float(meter.entropies[part] / meter.voxels[part]) for part in meter.voxels]
    assert len(each) == 2
    assert meter.mean() == pytest.approx(sum(each) / 2)
    assert meter.mean() == mean_entropy(bundle, scan)
    without = tiny_bundle(
        tmp_path / "without", "mixed_unet_lits", **TWO_D, **{"stage_network#dropout": 0.0}
    )
    (without / "models").mkdir()
    (without / "models" / "model.pt").write_bytes((folder / "models" / "model.pt").read_bytes())
    assert meter.mean() != pytest.approx(mean_entropy(read_bundle(without), scan), rel=1e-3)


def test_a_scan_of_nothing_has_no_body(tmp_path):
    folder = tiny_bundle(tmp_path / "simple", "fcn_liver", **SIMPLE)
    write_weights(folder, 0)
    save(tmp_path / "scan.nii.gz", np.full((16, 16, 4), -1000, np.int16))
    with pytest.raises(InputError, match="brighter than air"):
        mean_entropy(read_bundle(folder), str(tmp_path / "scan.nii.gz"))


@pytest.mark.parametrize(
    ("source", "tiny", "write", "networks"),
    [
        ("mixed_unet_lits", TWO_D, write_weights, 2),
        ("cascade_lits", CASCADE, write_cascade, 8),
        ("unet3d_liver", TILES, write_weights, 2),
    ],
)
def test_measuring_changes_no_mask(tmp_path, source, tiny, write, networks):
    """Nor does it get in the way of Grad-CAM and of a network that sees more than it labels."""
    folder = tiny_bundle(tmp_path / source, source, **tiny)
    write(folder, 0)
    save(tmp_path / "scan.nii.gz", make_scan(0)[0])
    masks, meters = [], []
    for name, watch in {
        "no": None,
        "yes": lambda evaluator: meters.append(EntropyMeter(evaluator, "image")),
    }.items():
        settings = {
            "output_dir": str(tmp_path / name),
            "dataset#data": [{"image": str(tmp_path / "scan.nii.gz")}],
        }
        Segmentation(read_bundle(folder)).run(settings, watch)
        masks.append(nib.load(next((tmp_path / name).glob("*.nii.gz"))).get_fdata())
    assert len(meters[0].voxels) == networks
    assert np.array_equal(masks[0], masks[1])
    assert masks[0].any()


def test_disagreement_is_one_minus_the_dice_of_what_both_know():
    one, other = np.zeros((2, 4, 4, 4), np.uint8)
    one[:2], other[1:3] = 1, 2
    organs, liver = {"spleen": 1, "liver": 2}, {"liver": 1}
    assert disagreement([(one, liver), (other, organs)]) == pytest.approx(0.5)
    assert disagreement([(one, liver), (one, liver)]) == 0
    assert disagreement([(one, liver), (one, liver), (other, organs)]) == pytest.approx(1 / 3)
    assert disagreement([(one * 0, liver), (other * 0, organs)]) == 0
    lesions = one.copy()
    lesions[0] = 2
    assert disagreement([(lesions, {"liver": 1, "lesion": 2}), (one, liver)]) == 0
    with pytest.raises(InputError, match="common class"):
        disagreement([(one, liver), (one, {"spleen": 1})])


# --- scores that are kept


def test_scores_are_kept_until_the_weights_change_and_choose_the_next_scan(store, tmp_path):
    folder = tiny_bundle(tmp_path / "simple", "fcn_liver", **SIMPLE)
    bundle = read_bundle(folder)
    scores = Uncertainty("uncertainty", "", {"simple": bundle})
    uncertain = HighestScore("", 0, scores)
    with pytest.raises(HTTPException, match="a bundle with weights"):
        ask(uncertain, store)
    assert scores.pending(store) == []
    write_weights(folder, 0)
    save(tmp_path / "studies #1" / "d.nii.gz", np.zeros((4, 4, 4, 2), np.int16))
    answer = uncertain({"strategy": "uncertain"}, store)
    assert answer["score"] is None
    done = scores({}, store)
    assert done["scored"] == 3
    assert list(done["failed"]) == ["d"]
    assert scores.pending(store) == []
    values = {image: score.get("value") for image, score in scores.current(store).items()}
    assert values["a"] == pytest.approx(
        mean_entropy(bundle, str(tmp_path / "studies #1" / "a.nii.gz"))
    )
    expected = sorted("abc", key=lambda image: -values[image])
    assert [ask(uncertain, store, "one") for _ in range(4)] == [*expected, "d"]
    assert scores({}, store) == {"scored": 0, "failed": {}}
    write_weights(folder, 1)
    assert sorted(scores.pending(store)) == list("abcd")
    scores({}, store)
    again = {image: score.get("value") for image, score in scores.current(store).items()}
    assert all(values[image] != again[image] for image in "abc")


def test_a_scan_that_is_removed_meanwhile_does_not_end_the_rest(store, tmp_path):
    folder = tiny_bundle(tmp_path / "simple", "fcn_liver", **SIMPLE)
    write_weights(folder, 0)
    bundle = read_bundle(folder)

    class Removing(Uncertainty):
        def score(self, image, datastore):
            for other in {"a": "b", "c": "c"}.get(image, ""):
                store.remove_image(other)
            return super().score(image, datastore)

    done = Removing("uncertainty", "", {"simple": bundle})({}, store)
    assert done["scored"] == 2
    assert sorted(done["failed"]) == ["b", "c"]
    assert "value" in store.get_image_info("d")["uncertainty"]

    label(store, "a", tmp_path)
    Path(store.get_label_uri("a", "final")).unlink()
    scores = DiceScores("dice", "", {"simple": bundle})
    assert scores.pending(store) == ["a"]
    assert "labels/final/a.nii.gz" in scores({}, store)["failed"]["a"]


def test_a_bundle_that_is_trained_by_half_neither_segments_nor_scores(tmp_path):
    half, whole = tmp_path / "a_half", tmp_path / "whole"
    write_cascade(tiny_bundle(half, "cascade_lits", **CASCADE), 0)
    write_weights(tiny_bundle(whole, "fcn_liver", **SIMPLE), 0)
    bundles = {folder.name: read_bundle(folder) for folder in (half, whole)}
    scores = Uncertainty("uncertainty", "", bundles)
    assert bundles["a_half"].state() == "ready"
    assert [bundle.name for bundle in scores.models()] == ["a_half"]
    lesion = half / "models" / "lesion"
    # What rounds of a training leave are no weights of the network.
    (lesion / "axial" / "rounds" / "1").mkdir(parents=True)
    (lesion / "axial" / "model.pt").rename(lesion / "axial" / "rounds" / "1" / "model.pt")
    assert bundles["a_half"].state().startswith("weights missing (models/lesion/axial/model.pt)")
    (lesion / "localise" / "model.pt").unlink()
    assert "models/lesion/localise/model.pt and 1 more" in bundles["a_half"].state()
    assert bundles["a_half"].weights() == []
    assert [bundle.name for bundle in scores.models()] == ["whole"]
    assert Disagreement("disagreement", "", bundles).models() == []
    # One file of all networks is enough, and it is what is used then.
    (half / "models" / "model.pt").touch()
    assert bundles["a_half"].weights() == [half / "models" / "model.pt"]
    assert bundles["a_half"].state() == "ready"


def test_what_says_nothing_of_a_scan_is_no_score(store, tmp_path):
    """As want of memory or disk; a scan that cannot be read stays without a score."""
    folder = tiny_bundle(tmp_path / "simple", "fcn_liver", **SIMPLE)
    write_weights(folder, 0)
    save(tmp_path / "studies #1" / "b.nii.gz", np.zeros((4, 4, 4, 2), np.int16))
    full = InputError("the mask could not be saved.")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    broken = [BrokenPipeError(32, "Broken pipe"), RuntimeError("can't allocate memory"), full, None]

    class Failing(Uncertainty):
        def score(self, image, datastore):
            error = broken["acdb".index(image)]
            if error is not None:
                raise error
            return super().score(image, datastore)

    scores = Failing("uncertainty", "", {"simple": read_bundle(folder)})
    done = scores({}, store)
    assert done["scored"] == 0
    assert sorted(done["failed"]) == ["a", "b", "c", "d"]
    assert "Broken pipe" in done["failed"]["a"]
    assert sorted(scores.pending(store)) == ["a", "c", "d"]
    broken[:3] = None, None, None
    assert scores({}, store) == {"scored": 3, "failed": {}}


def test_without_its_server_nothing_is_scored_any_more(store, tmp_path, monkeypatch):
    """A child whose parent has ended belongs to another process."""
    folder = tiny_bundle(tmp_path / "simple", "fcn_liver", **SIMPLE)
    write_weights(folder, 0)
    scores = Uncertainty("uncertainty", "", {"simple": read_bundle(folder)})
    pending = scores.pending(store)
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(RuntimeError, match="The server that asked for scores is gone"):
        scores({}, store)
    assert scores.pending(store) == pending[1:]


def test_models_that_disagree_are_all_asked(store, tmp_path):
    bundles = {}
    for name in ("one", "other"):
        folder = tiny_bundle(tmp_path / name, "fcn_liver", **SIMPLE)
        bundles[name] = read_bundle(folder)
    scores = Disagreement("disagreement", "", bundles)
    write_weights(tmp_path / "one", 0)
    with pytest.raises(HTTPException, match="several bundles"):
        ask(HighestScore("", 0, scores), store)
    write_weights(tmp_path / "other", 0)
    scores({}, store)
    assert {score["value"] for score in scores.current(store).values()} == {0}
    write_weights(tmp_path / "other", 1)
    scores({}, store)
    assert all(score["value"] > 0 for score in scores.current(store).values())


def test_dice_is_given_for_each_class(store, tmp_path):
    folder = tiny_bundle(tmp_path / "two_d", "mixed_unet_lits", **TWO_D)
    write_weights(folder, 0)
    bundle = read_bundle(folder)
    path, _ = Segmentation(bundle)({"image": store.get_image_uri("a")})
    mask = np.asanyarray(nib.load(path).dataobj).astype(np.uint8)
    values = mask.copy()
    values[:20] = 0
    label(store, "a", tmp_path, values)
    scores = DiceScores("dice", "", {"two_d": bundle})
    assert scores.pending(store) == ["a"]
    scores({}, store)
    expected = {
        name: 2
        * np.sum((mask == value) & (values == value))
        / (np.sum(mask == value) + np.sum(values == value))
        for name, value in {"liver": 1, "lesion": 2}.items()
    }
    kept = scores.current(store)["a"]
    assert kept["dice"] == pytest.approx(expected)
    assert kept["value"] == pytest.approx(sum(expected.values()) / 2)
    assert 0 < kept["dice"]["lesion"] < 1
    assert scores.pending(store) == []

    # As a client that numbers otherwise, and stores the axes in another order.
    numbered = nib.Nifti1Image(np.array([0, 2, 1], np.uint8)[values], AFFINE)
    nib.save(
        numbered.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), tmp_path / "label.nii.gz"
    )
    names = [{"name": "Lesion", "idx": 1}, {"name": "liver", "idx": 2}]
    store.save_label("a", str(tmp_path / "label.nii.gz"), "final", {"label_info": names})
    scores({}, store)
    assert scores.current(store)["a"]["dice"] == pytest.approx(expected)
    write_weights(tiny_bundle(tmp_path / "liver", "fcn_liver", **SIMPLE), 1)
    liver = read_bundle(tmp_path / "liver")
    path, _ = Segmentation(liver)({"image": store.get_image_uri("a")})
    mask = np.asanyarray(nib.load(path).dataobj) > 0
    dice = 2 * np.sum(mask & (values > 0)) / (np.sum(mask) + np.sum(values > 0))
    assert 0 < dice < 1
    assert DiceScores("dice", "", {"liver": liver}).score("a", store)["dice"] == pytest.approx(
        {"liver": dice}
    )

    label(store, "a", tmp_path, values * 0)
    assert scores.pending(store) == ["a"]
    label(store, "a", tmp_path, values[:-1])
    assert "shape" in scores({}, store)["failed"]["a"]
