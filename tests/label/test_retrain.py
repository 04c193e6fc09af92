"""Retraining as 3D Slicer runs it through MONAI Label's client, and what it learns from."""

from __future__ import annotations

import copy
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import torch
from helpers.bundle_runs import ROOT, make_scan, save
from helpers.label_bundles import copy_app, run_bundle, serve, tiny_bundle, write_weights
from helpers.waiting import wait_until
from monai.bundle import ConfigParser
from typer.testing import CliRunner

from liverseg import versions
from liverseg.errors import InputError
from liverseg.workbench.cli import app

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from monailabel.client import MONAILabelClient
from monailabel.datastore.local import LocalDatastore

from lib.bundle import read_bundle
from lib.train.publishing import publish_if_better
from lib.train.retrain import Retraining
from lib.train.scans import items, patient, split

TINY = {
    "network_def": "@networks#simple",
    "spacing": [6.0, 6.0, -1.0],
    "spatial_size": [48, 48],
    "amp": False,
    "retrain_configs": ["network_def", "spacing", "spatial_size", "amp"],
}
STEPS = 3
FAST = {"max_epochs": 20, "learning_rate": 0.001, "loss": "dice"}
CLASSES = {"background": 0, "liver": 1, "lesion": 2}


def write_label(file: Path, number: int) -> dict:
    """A label and its info as 3D Slicer saves it, whose values follow the order of its segments."""
    save(file, np.choose(make_scan(number)[1], [0, 2, 1]).astype(np.uint8))
    return {"label_info": [{"name": "Lesion", "idx": 1}, {"name": "liver", "idx": 2}]}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with the app, a bundle without weights, and scans."""
    root = tmp_path_factory.mktemp("retrain")
    copy_app(root)
    (root / "studies").mkdir()
    for number in range(4):
        save(root / "studies" / f"scan{number}.nii.gz", make_scan(number)[0])
    tiny_bundle(root / "bundles" / "learns", "fcn_liver", **TINY)
    return root


@pytest.fixture(scope="module")
def store(project, tmp_path_factory) -> LocalDatastore:
    """The studies, three of them labelled."""
    store = LocalDatastore(str(project / "studies"), extensions=["*.nii.gz"], auto_reload=False)
    for number in range(3):
        file = tmp_path_factory.mktemp("labels") / "label.nii.gz"
        info = write_label(file, number)
        store.save_label(f"scan{number}", str(file), "final", info)
    return store


def test_who_validates_is_drawn_once(tmp_path):
    file = tmp_path / "validation.json"
    with pytest.raises(InputError, match="found 1 scans"):
        split(file, {"a": "a"}, 0.2)
    names = {name: name for name in "abcdefghij"}
    training, validation, left_out = split(file, names, 0.3)
    assert len(validation) == 3
    assert sorted(training + validation) == list(names)
    assert left_out == []
    assert json.loads(file.read_text())["images"] == validation
    # Later labels train, whatever their number and the share that is asked for.
    later = split(file, {**names, "k": "k", "l": "l", "A": "A"}, 0.9)
    assert later == (sorted([*training, "k", "l", "A"]), validation, [])
    with pytest.raises(InputError, match="0 labelled scans of patients who train"):
        split(file, {name: name for name in validation}, 0.3)
    file.unlink()
    assert split(file, dict(reversed(names.items())), 0.3) == (training, validation, [])
    for content in ("{", "[]", "{}", '{"images": null}'):
        file.write_text(content)
        with pytest.raises(InputError, match=r"validation\.json: found .*: fix or remove it"):
            split(file, names, 0.3)


def test_nobody_trains_who_validates(tmp_path):
    file = tmp_path / "validation.json"
    scans = {f"{patient}{visit}": patient for patient in "abcdefghij" for visit in (1, 2)}
    with pytest.raises(InputError, match="2 scans of 1 patients"):
        split(file, {"a1": "a", "a2": "a"}, 0.2)
    training, validation, left_out = split(file, scans, 0.3)
    judges = {scans[name] for name in validation}
    assert (len(judges), len(validation), left_out) == (3, 6, [])
    assert not judges & {scans[name] for name in training}
    # A visit of somebody who validates neither trains nor changes who validates.
    later = {**scans, "new": next(iter(judges)), "other": "k"}
    assert split(file, later, 0.3) == (sorted([*training, "other"]), validation, ["new"])
    # Nor does who was drawn before patients were known of.
    file.write_text(json.dumps({"images": ["a1", "b2"]}))
    training, validation, left_out = split(file, scans, 0.3)
    assert (validation, left_out) == (["a1", "b2"], ["a2", "b1"])
    assert not {"a", "b"} & {scans[name] for name in training}


def test_whose_a_scan_is_its_info_says(tmp_path):
    for name in ("case.001", "case.002", "1.2.840.1"):
        save(tmp_path / f"{name}.nii.gz", make_scan(0, (4, 4, 4))[0])
    store = LocalDatastore(str(tmp_path), extensions=["*.nii.gz"], auto_reload=False)
    assert [patient(store, name) for name in ("case.001", "case.002", "1.2.840.1")] == [
        "case.001",
        "case.002",
        "1.2.840.1",
    ]
    store.update_image_info("case.002", {"patient": 7})
    store.update_image_info("case.001", {"PatientID": "UNK", "StudyInstanceUID": "1.2.3"})
    assert [patient(store, f"case.00{n}") for n in (1, 2)] == ["1.2.3", "7"]


def test_labels_mean_what_their_names_say(store, tmp_path):
    for classes, values in (
        (CLASSES, [0, 1, 2]),
        ({"background": 0, "spleen": 1, "liver": 2}, [0, 2, 2]),
        ({"background": 0, "spleen": 1}, [0, 0, 0]),
        ({"background": 0, "Tumour": 1, "hepar": 2}, [0, 2, 1]),
    ):
        (item,) = items(store, ["scan1"], classes, tmp_path / str(values))
        found = nib.load(item["label"])
        assert np.array_equal(found.dataobj, np.choose(make_scan(1)[1], values))
        assert np.array_equal(found.affine, nib.load(item["image"]).affine)
    # Numbered alike: the file itself.
    (item,) = items(store, ["scan1"], {"background": 0, "lesion": 1, "liver": 2}, tmp_path / "same")
    assert item["label"] == store.get_label_uri("scan1", "final")
    assert item["patient"] == "scan1"


def test_a_label_of_floats_trains_as_its_whole_numbers(store, tmp_path):
    whole = make_scan(3)[1]
    save(tmp_path / "label.nii.gz", whole * np.float32(0.9999999))
    named = [{"name": "lesion", "idx": 1}, {"name": "liver", "idx": 2}]
    store.save_label("scan3", str(tmp_path / "label.nii.gz"), "final", {"label_info": named})
    try:
        (item,) = items(store, ["scan3"], CLASSES, tmp_path / "labels")
        assert np.array_equal(nib.load(item["label"]).dataobj, np.choose(whole, [0, 2, 1]))
    finally:
        store.remove_label("scan3", "final")


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"params": None}, "found values 3 without a name"),
        ({"label_info": 3}, 'found {"label_info": 3}, expected'),
        ({"label_info": [{"name": "liver", "idx": "x"}]}, "save the label anew"),
        ({"params": {"label_names": ["liver"]}}, "save the label anew"),
        (
            {"label_info": [{"name": "liver", "idx": 1}, {"name": "cyst", "idx": 2}]},
            "found values 3 without a name",
        ),
        (
            {"label_info": [{"name": "liver", "idx": value} for value in (1, 3)]},
            "found values 2 without a name",
        ),
        (
            {
                "label_info": [
                    {"name": name, "idx": value}
                    for value, name in enumerate(["liver", "Segment_1", "x"], 1)
                ]
            },
            "found segments called 'Segment_1', 'x', expected names that are known, as lesion, "
            "liver, mass",
        ),
        (
            {"label_info": [{"name": "liver", "idx": 1}, {"name": "lesion", "idx": 1}]},
            "save the label anew",
        ),
    ],
)
def test_a_label_that_says_nothing_clear_is_named(store, tmp_path, info, problem):
    values = np.arange(make_scan(3)[1].size).reshape(make_scan(3)[1].shape) % 4
    save(tmp_path / "label.nii.gz", values.astype(np.uint8))
    store.save_label("scan3", str(tmp_path / "label.nii.gz"), "final", info)
    try:
        with pytest.raises(InputError, match="scan scan3, its final label: ") as caught:
            items(store, ["scan3"], CLASSES, tmp_path / "labels", ["mass effect"])
        assert problem in str(caught.value)
        # Several segments may have one name.
        named = [
            {"name": name, "idx": value}
            for value, name in enumerate(["lesion", "lesion", "liver"], 1)
        ]
        store.update_label_info("scan3", "final", {"label_info": named})
        (item,) = items(store, ["scan3"], CLASSES, tmp_path / "labels")
        assert np.array_equal(nib.load(item["label"]).dataobj, np.choose(values, [0, 2, 2, 1]))
        # Another organ is background on purpose, whether it is known everywhere or to another
        # bundle alone.
        names = ["liver", "Spleen", "Mass_effect"]
        named = [{"name": name, "idx": value} for value, name in enumerate(names, 1)]
        store.update_label_info("scan3", "final", {"label_info": named})
        (item,) = items(
            store, ["scan3"], {"background": 0, "liver": 1}, tmp_path / "labels", ["mass effect"]
        )
        assert np.array_equal(nib.load(item["label"]).dataobj, values == 1)
        save(tmp_path / "label.nii.gz", np.zeros_like(values, np.uint8))
        store.save_label("scan3", str(tmp_path / "label.nii.gz"), "final", {})
        with pytest.raises(InputError, match="scan3, its final label: found no segment"):
            items(store, ["scan3"], {"background": 0, "liver": 1}, tmp_path / "labels")
    finally:
        store.remove_label("scan3", "final")


def test_labels_that_lack_a_class_are_refused_before_a_training_starts(tmp_path):
    for number in range(3):
        save(tmp_path / f"scan{number}.nii.gz", make_scan(number)[0])
    store = LocalDatastore(str(tmp_path), extensions=["*.nii.gz"], auto_reload=False)
    names = {"label_info": [{"name": "liver", "idx": 1}, {"name": "lesion", "idx": 2}]}

    def save_label(scan: str, highest: int) -> None:
        file = tmp_path / "drawn" / "label.nii.gz"
        file.parent.mkdir(exist_ok=True)
        save(file, np.minimum(make_scan(int(scan[-1]))[1], highest))
        store.save_label(scan, str(file), "final", names)

    for number in range(3):
        save_label(f"scan{number}", 1)
    bundle = read_bundle(tiny_bundle(tmp_path / "bundles" / "lits", "mixed_unet_lits"))
    task = Retraining(bundle, tmp_path / "validation.json")
    _, scans = task.check({}, store)
    with pytest.raises(InputError, match=r"training: found no voxel of lesion in .* of 2 scans"):
        task.check_labels(scans, store)
    for scan in scans["training"]:
        save_label(scan, 2)
    with pytest.raises(InputError, match=r"validation: found no .* remove validation\.json"):
        task.check_labels(scans, store)
    # What was not asked for one model alone, such as all trainings of a server, fails by then.
    with pytest.raises(InputError, match="validation: found no voxel of lesion"):
        task({}, store)
    assert task.stats()["state"] == "failed"
    save_label(*scans["validation"], 2)
    task.check_labels(scans, store)


@pytest.fixture(scope="module")
def bundle(project) -> Path:
    """A bundle with random weights that were put there."""
    folder = tiny_bundle(project / "others" / "better", "fcn_liver", **TINY)
    write_weights(folder, 0)
    file = folder / "configs" / "fine_tune.json"
    file.write_text(
        json.dumps(
            {**json.loads(file.read_text()), "max_iterations": STEPS, "iterations_per_epoch": 1}
        )
    )
    return folder


@pytest.fixture(scope="module")
def task(project, bundle) -> Retraining:
    return Retraining(read_bundle(bundle), project / "studies" / "validation.json")


@pytest.mark.parametrize("name", ["cascade_lits", "mixed_unet_lits", "unet3d_liver"])
def test_each_network_of_a_chain_starts_from_its_own_weights(name, store, tmp_path):
    config = json.loads((ROOT / "bundles" / name / "configs" / "train.json").read_text())
    models = tiny_bundle(tmp_path / name, name) / "models"
    paths = []
    for stage in config["all_stages"]:
        parser = ConfigParser(
            {**copy.deepcopy(config), **stage, "pretrain_dir": str(models), "ckpt_dir": str(models)}
        )
        written = Path(parser.get_parsed_content("train#ckpt_dir"), "model.pt")
        paths.append(parser.get_parsed_content("load_pretrain"))
        assert Path(paths[-1]) == written
    assert len(set(paths)) == len(config["all_stages"])
    # One file for all of them is enough for inference.
    models.mkdir()
    (models / "model.pt").touch()
    task = Retraining(read_bundle(models.parent), tmp_path / "validation.json")
    with pytest.raises(InputError, match=f"found no .*{paths[-1]}, expected .* pretrained false"):
        task.check({}, store)
    assert task.check({"pretrained": False}, store)
    for path in map(Path, paths):
        path.parent.mkdir(parents=True)
        path.touch()
    assert task.check({}, store)


def test_a_wrong_option_gets_a_message(task):
    assert task.options({"max_epochs": "7", "pretrained": "false"})["max_epochs"] == 7
    assert task.options({"max_epochs": 7.0, "device": ["cpu"]})["max_epochs"] == 7
    wrong_values = {
        "loss": ["hinge", [], 5],
        "max_epochs": ["many", 0, 2.9, True, "1e999", 10**400, None],
        "learning_rate": [float("nan"), "nan", float("inf"), -1, 0],
        "val_split": [1],
        "device": ["abacus", [], [5], 5, ""],
    }
    for wrong in ({key: value} for key, values in wrong_values.items() for value in values):
        with pytest.raises(InputError, match=f"better, option {next(iter(wrong))}"):
            task.options(wrong)


def test_a_model_is_fine_tuned_by_defaults_of_its_own(task, tmp_path):
    """As `fcn_liver` has them: a rate of 1e-4 in train.json and of 1e-5 in fine_tune.json."""
    shown = task.config()
    assert (shown["learning_rate"], shown["max_epochs"]) == (1e-5, STEPS)
    # Clients send back what they were shown.
    for sent in ({}, shown):
        for pretrained, expected in ((True, (1e-5, STEPS)), (False, (1e-4, 50))):
            chosen = task.options({**sent, "pretrained": pretrained})
            assert (chosen["learning_rate"], chosen["max_epochs"]) == expected
    for pretrained in (True, False):
        chosen = task.options({"learning_rate": 0.003, "max_epochs": 7, "pretrained": pretrained})
        assert (chosen["learning_rate"], chosen["max_epochs"]) == (0.003, 7)
    untrained = Retraining(
        read_bundle(tiny_bundle(tmp_path / "new", "fcn_liver")), tmp_path / "validation.json"
    )
    assert untrained.config()["learning_rate"] == untrained.options({})["learning_rate"] == 1e-4
    assert untrained.config()["max_epochs"] == 50


@pytest.fixture(scope="module")
def published(bundle, task, store) -> SimpleNamespace:
    """What a training from scratch did to the bundle with random weights."""
    random = (bundle / "models" / "model.pt").read_bytes()
    stats = task({**FAST, "pretrained": False}, store)
    trained = (bundle / "models" / "model.pt").read_bytes()
    mask = run_bundle(bundle, Path(store.get_image_uri("scan0")), bundle.parent / "mask")
    settings = read_bundle(bundle).settings({})
    kept = versions.list_versions(bundle)
    return SimpleNamespace(
        random=random, stats=stats, trained=trained, mask=mask, settings=settings, versions=kept
    )


@pytest.fixture(scope="module")
def unchanged(bundle, task, store, published) -> SimpleNamespace:
    """What a training that learns nothing did then; it goes as fine_tune.json says."""
    stats = task({"learning_rate": 1e-30}, store)
    in_use = versions.version_in_use(bundle), (bundle / "models" / "model.pt").read_bytes()
    return SimpleNamespace(stats=stats, in_use=in_use)


def test_what_is_better_is_published(published):
    stats, (new, before, *_) = published.stats, published.versions
    assert stats["state"] == "published"
    assert stats["mean_dice"] > stats["mean_dice_in_use"]
    assert published.trained == (new.folder / "model.pt").read_bytes() != published.random
    assert (before.folder / "model.pt").read_bytes() == published.random
    assert stats["parent"] == before.name
    # An inference reads that version, whatever is published meanwhile.
    assert published.settings == {"ckpt_dir": str(new.folder)}
    # The labels were learned by their names: what the bundle says now is the liver with its lesion.
    liver = make_scan(0)[1] > 0
    mask = np.asanyarray(nib.load(published.mask).dataobj) > 0
    assert 2 * (mask & liver).sum() / (mask.sum() + liver.sum()) > 0.15


def test_what_learns_nothing_is_a_candidate(bundle, published, unchanged):
    stats = unchanged.stats
    assert stats["state"] == "candidate"
    assert "in no epoch was the model better" in stats["reason"]
    assert stats["epoch"] == stats["total_epochs"] == STEPS
    folder = bundle / "models" / "versions" / stats["model_version"]
    rows = list(csv.DictReader((folder / "training" / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(STEPS + 1))
    assert [float(row["learning_rate"]) / 1e-30 for row in rows[1:]] == pytest.approx(
        [0.75, 0.25, 0]
    )
    assert all(row["val_mean_dice"] == rows[0]["val_mean_dice"] for row in rows)
    assert stats["best_metric"] == float(rows[0]["val_mean_dice"])
    assert stats["parent"] == published.stats["model_version"]
    weights = torch.load(folder / "model.pt", weights_only=True)
    started = torch.load(published.versions[0].folder / "model.pt", weights_only=True)
    assert all(torch.equal(value, weights[key]) for key, value in started.items())
    assert unchanged.in_use == (published.stats["model_version"], published.trained)


def test_two_versions_are_compared(bundle, published, unchanged):
    shown = CliRunner().invoke(
        app,
        ["models", "compare", str(bundle), unchanged.stats["model_version"]],
        env={"COLUMNS": "160"},
    )
    dice = f"{published.stats['mean_dice']:.4f}"
    assert any(line.count(dice) == 2 for line in shown.output.splitlines()), shown.output


def test_weights_that_somebody_copied_there_are_compared_with(bundle, published, unchanged):
    """On one more scan too, without a liver: it counts for no model."""
    name, dice = unchanged.stats["model_version"], published.stats["mean_dice"]
    version = versions.find_version(bundle, name).update(parent=None)
    file = version.folder / "datalist.json"
    lists = json.loads(file.read_text())
    empty = version.folder / "empty.nii.gz"
    save(empty, np.zeros_like(make_scan(0)[1]))
    first_scan, *others = lists["training"]
    validation = [*lists["validation"], {**first_scan, "label": str(empty)}]
    file.write_text(json.dumps({"training": others, "validation": validation}))
    (bundle / "models" / "model.pt").unlink()
    (bundle / "models" / "model.pt").write_bytes(published.trained)
    compared = publish_if_better(bundle, version)
    assert compared.state == "candidate"
    assert compared.record["mean_dice"] == compared.record["mean_dice_in_use"] == dice
    copied = versions.find_version(bundle, versions.version_in_use(bundle))
    assert copied.record["reason"] == "found in models/"
    copied.update(training=version.record["validation"])
    assert "has learnt 1 of these scans" in publish_if_better(bundle, version).record["reason"]
    # By hand, after its record was read.
    versions.publish(bundle, version.name)
    by_hand = publish_if_better(bundle, version)
    assert by_hand.state == "published"
    assert "by hand" in by_hand.record["reason"]
    assert versions.rollback(bundle) == copied.name


def test_a_failed_training_leaves_the_model_in_use(bundle, task, store, tmp_path):
    before = (bundle / "models" / "model.pt").read_bytes()
    save(tmp_path / "label.nii.gz", (make_scan(3)[1] > 0).astype(np.uint8)[1:])
    store.save_label("scan3", str(tmp_path / "label.nii.gz"), "final", {})
    with pytest.raises(InputError, match=r"the training ended early .*scan3"):
        task(FAST, store)
    store.remove_label("scan3", "final")
    stats = task.stats()
    assert stats["state"] == "failed"
    assert "scan3" in stats["reason"]
    assert "total_time" in stats
    assert (bundle / "models" / "model.pt").read_bytes() == before


@pytest.fixture
def client(project, store, tmp_path) -> Iterator[MONAILabelClient]:
    """MONAI Label's client; all scans are labelled, and the bundle has random weights."""
    write_weights(project / "bundles" / "learns", 7)
    names = ("scan0", "scan1", "scan2")
    split(project / "studies" / "validation.json", {name: name for name in names}, 0.2)
    with serve(project, MONAI_LABEL_AUTO_UPDATE_SCORING="false") as server:
        client = MONAILabelClient(server.url, str(tmp_path))
        file = tmp_path / "label.nii.gz"
        client.save_label("scan3", str(file), params=write_label(file, 3))
        yield client


def stats_of(client) -> dict:
    return client.info()["train_stats"]["learns"]


@pytest.mark.slow
def test_a_scan_is_uploaded_chosen_and_segmented(project, client, tmp_path):
    assert client.info()["models"]["learns"]["state"] == "ready"
    scan = tmp_path / "scan9.nii.gz"
    save(scan, make_scan(9)[0])
    assert client.upload_image(str(scan), "scan9")["image"] == "scan9"
    datastore = f"{client.get_server_url()}/datastore"
    requests.delete(f"{datastore}/label?id=scan3&tag=final", timeout=60).raise_for_status()
    assert client.next_sample("first", {})["id"] == "scan3"
    file = tmp_path / "label.nii.gz"
    client.save_label("scan3", str(file), params=write_label(file, 3))
    assert client.next_sample("first", {})["id"] == "scan9"
    session = client.create_session(str(scan))["session_id"]
    of_session, _ = client.infer("learns", "", {}, session_id=session)
    found, _ = client.infer("learns", "scan9", {})
    assert np.array_equal(nib.load(of_session).dataobj, nib.load(found).dataobj)
    client.remove_session(session)
    requests.delete(f"{datastore}/image?id=scan9", timeout=60).raise_for_status()


@pytest.mark.slow
def test_a_training_is_watched_and_its_model_is_used(project, client, tmp_path):
    bundle, scan = project / "bundles" / "learns", project / "studies" / "scan0.nii.gz"
    before, _ = client.infer("learns", "scan0", {})
    address = f"{client.get_server_url()}/train/learns"
    answer = requests.post(address, json={"lose": "dice"}, timeout=60)
    assert answer.status_code == 400
    assert "'lose'" in answer.json()["detail"]
    client.train_start("learns", {**FAST, "pretrained": False})
    seen = []

    def ended() -> bool:
        name, stats = next(iter(client.info()["train_stats"].items()))
        seen.extend([stats] if name == "learns" and stats else [])
        return client.train_status()["status"] not in ("SUBMITTED", "RUNNING")

    wait_until(ended)
    stats = stats_of(client)
    assert client.train_status()["status"] == "DONE"
    assert stats["state"] == "published"
    assert stats["epoch"] == stats["total_epochs"] == FAST["max_epochs"]
    epochs = [one["epoch"] for one in seen]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) > 2
    assert any("time_left" in one and "total_time" not in one for one in seen)
    validation = client.info()["trainers"]["learns"]["validation"]
    assert stats["validation"] == validation
    assert sorted(stats["training"] + validation) == ["scan0", "scan1", "scan2", "scan3"]
    assert "scan3" not in validation
    found, _ = client.infer("learns", "scan0", {})
    expected = run_bundle(bundle, scan, tmp_path / "expected")
    assert np.array_equal(nib.load(found).dataobj, nib.load(expected).dataobj)
    assert not np.array_equal(nib.load(found).dataobj, nib.load(before).dataobj)


@pytest.mark.slow
def test_a_training_is_cancelled(project, client):
    bundle = project / "bundles" / "learns"
    in_use = (bundle / "models" / "model.pt").read_bytes()
    client.train_start("learns", {**FAST, "max_epochs": 5000})
    # Of an epoch with a validation, and into the next ones.
    wait_until(
        lambda: stats_of(client).get("state") == "training" and stats_of(client)["epoch"] >= 6
    )
    (training,) = (one for one in children(project) if "training" in words(one))
    assert client.train_stop()["status"] == "STOPPED"
    _, alive = psutil.wait_procs([training], timeout=120)
    assert not alive
    stats = stats_of(client)
    assert stats["state"] == "stopped"
    version = versions.find_version(bundle, stats["model_version"])
    history = version.folder / "training" / "history.csv"
    rows = list(csv.DictReader(history.read_text().splitlines()))
    best = max(float(row["val_mean_dice"]) for row in rows if row["val_mean_dice"])
    saved = json.loads((version.folder / "model.json").read_text())["val_mean_dice"]
    assert saved == best == stats["best_metric"]
    assert (bundle / "models" / "model.pt").read_bytes() == in_use
    # It took as long as it wrote.
    os.utime(history, (stats["start_ts"] + 60,) * 2)
    assert stats_of(client)["total_time"] == "0:01:00"
    # Its best epoch can be chosen.
    assert client.infer("learns", "scan0", {"version": version.name})[0]


@pytest.mark.slow
def test_a_training_ends_with_its_server(project, store, tmp_path):
    bundle = project / "bundles" / "learns"
    write_weights(bundle, 7)
    with serve(project, MONAI_LABEL_AUTO_UPDATE_SCORING="false") as server:
        client = MONAILabelClient(server.url, str(tmp_path))
        client.train_start("learns", {**FAST, "max_epochs": 5000})
        wait_until(lambda: any("training" in words(one) for one in children(project)))
        tasks = [one for one in psutil.Process().children(recursive=True) if "train" in words(one)]
        assert len(tasks) == 1
        tasks += children(project)
    # The server has ended, and nothing of it goes on.
    _, alive = psutil.wait_procs(tasks, timeout=120)
    for one in alive:
        one.kill()
    assert not alive
    assert versions.list_versions(bundle)[0].state == "stopped"


def words(process: psutil.Process) -> list[str]:
    """The command of a process; nothing of one that has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def children(project: Path) -> list[psutil.Process]:
    """The processes that run a bundle of this project."""
    every = psutil.Process().children(recursive=True)
    bundles = [one for one in every if "monai.bundle" in words(one)]
    return [one for one in bundles if str(project) in " ".join(words(one))]
