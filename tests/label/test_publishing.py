"""The rule by which a model replaces the one in use; Student's t as tables print it."""

from __future__ import annotations

import pytest
import torch

from liverseg import versions

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from lib.train import publishing
from lib.train.publishing import compare


@pytest.mark.parametrize(
    ("differences", "needed", "is_better"),
    [
        # sd 0.01: 1.886 · 0.01 / √3
        ([0.03, 0.01, 0.02], 0.01089, True),
        # sd 0.02, and the same mean as the next
        ([0.03, -0.01, 0.01], 0.02177, False),
        ([0.01, 0.01, 0.01], 0.005, True),
        # sd 0.01414: 3.078 · 0.01414 / √2
        ([0.01, 0.03], 0.03078, False),
        # sd 0.002: 1.638 · 0.002 / 2 is less than anybody's gain
        ([0.002, 0.002, 0.006, 0.006], 0.005, False),
        ([0.006, 0.006, 0.006, 0.0061], 0.005, True),
        ([0.019], 0.02, False),
        ([0.021], 0.02, True),
        # A learning rate of 0, and what makes one scan much better and another worse.
        ([0.0, 0.0, 0.0], 0.005, False),
        ([0.002], 0.02, False),
        ([0.2, -0.02, -0.02, -0.02, -0.02], 0.06746, False),
    ],
)
def test_a_model_is_better_by_more_than_the_scans_can_tell_apart(differences, needed, is_better):
    other = {f"scan{number}": 0.9 for number in range(len(differences))}
    new = {
        name: 0.9 + difference
        for (name, _), difference in zip(other.items(), differences, strict=True)
    }
    # In any order: they are paired by name.
    difference, limit = compare(dict(reversed(new.items())), other)
    assert difference == pytest.approx(sum(differences) / len(differences))
    assert limit == pytest.approx(needed, abs=2e-5)
    assert (difference > limit) is is_better


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle whose versions have the Dice that their weights say."""
    folder = tmp_path / "bundle"

    def case_dice(bundle, weights, version, output_dir):
        dice = torch.load(weights / "model.pt", weights_only=True)["dice"].tolist()
        return {f"scan{number}": value for number, value in enumerate(dice)}

    monkeypatch.setattr(publishing, "case_dice", case_dice)
    return folder


def add(bundle, dice, **facts):
    version = versions.new_version(bundle, state="candidate", **facts)
    torch.save({"dice": torch.tensor(dice)}, version.folder / "model.pt")
    return version


def test_what_is_within_the_noise_is_not_published(bundle):
    first = publishing.publish_if_better(bundle, add(bundle, [0.9, 0.8, 0.7]))
    assert (first.state, first.record["reason"]) == ("published", "published: the first model")
    # sd 0.02: 0.0218 is needed.
    noisy = publishing.publish_if_better(bundle, add(bundle, [0.93, 0.79, 0.71], parent=first.name))
    assert noisy.state == "candidate"
    assert noisy.record["reason"] == (
        f"not published: mean Dice 0.8100 on the validation scans, 0.8000 of {first.name}, which "
        "was in use: a difference of +0.0100 over 3 scans, where more than 0.0218 is needed"
    )
    assert versions.version_in_use(bundle) == first.name
    better = publishing.publish_if_better(
        bundle, add(bundle, [0.93, 0.81, 0.72], parent=first.name)
    )
    assert better.state == "published"
    assert (
        "a difference of +0.0200 over 3 scans, where more than 0.0109 is needed"
        in better.record["reason"]
    )
    assert versions.version_in_use(bundle) == better.name


def test_what_the_training_did_not_change_is_not_even_compared(bundle, monkeypatch):
    start = publishing.publish_if_better(bundle, add(bundle, [0.9, 0.8]))
    worse = add(bundle, [0.5, 0.4])
    versions.publish(bundle, worse.name)
    monkeypatch.setattr(publishing, "case_dice", None)
    same = publishing.publish_if_better(bundle, add(bundle, [0.9, 0.8], parent=start.name))
    assert same.state == "candidate"
    assert "in no epoch was the model better" in same.record["reason"]
    assert versions.version_in_use(bundle) == worse.name


def test_a_model_put_into_use_meanwhile_is_compared_with_too(bundle, monkeypatch):
    start = publishing.publish_if_better(bundle, add(bundle, [0.5, 0.4]))
    other = add(bundle, [0.9, 0.8])
    evaluate = publishing.case_dice

    def meanwhile(bundle, weights, version, output_dir):
        if weights == start.folder:
            versions.publish(bundle, other.name)
        return evaluate(bundle, weights, version, output_dir)

    monkeypatch.setattr(publishing, "case_dice", meanwhile)
    found = publishing.publish_if_better(bundle, add(bundle, [0.8, 0.7], parent=start.name))
    assert found.state == "candidate"
    assert other.name in found.record["reason"]
    assert versions.version_in_use(bundle) == other.name
