"""Which trained model replaces the one in use."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from scipy import stats

from liverseg.errors import InputError
from liverseg.networks.weights import read_state_dict
from liverseg.versions import (
    Version,
    evaluate,
    find_version,
    list_versions,
    publish,
    version_in_use,
)

# A difference of the mean Dice below this is nobody's gain, however sure it is.
LEAST = 0.005
# One scan does not tell how much such differences vary, so it has to show a difference that is
# large in itself.
LEAST_OF_ONE_SCAN = 0.02
# Of ten models that are as good as the one in use, about one may replace it: that harms nobody.
CONFIDENCE = 0.9


def compare(new: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, float]:
    """Compare two models, paired over the scans.

    With the differences d of n scans, mean(d) must be above LEAST and

    t · sd(d) / √n,

    t being the 90 % quantile of Student's t with n − 1 degrees of freedom: a one-sided paired
    t-test. Of a single scan, it must be above LEAST_OF_ONE_SCAN.

    Args:
        new: Dice of the new model by scan.
        other: of the other, for the same scans.

    Returns:
        The mean over the scans of the Dice of the new model minus that of the other, and what it
        must be larger than: the least that these scans can tell apart.
    """
    differences = pd.Series(new) - pd.Series(other)
    scans, needed = len(differences), LEAST_OF_ONE_SCAN
    if scans > 1:
        quantile = stats.t.ppf(CONFIDENCE, scans - 1)
        needed = max(LEAST, float(quantile * differences.std(ddof=1) / math.sqrt(scans)))
    return float(differences.mean()), needed


def publish_if_better(bundle: Path, version: Version) -> Version:
    """Compare with the model in use on the same scans, and with any that is put into use then.

    A training that changed nothing of the weights it started from is not compared.

    Args:
        bundle: the bundle's folder.
        version: what was trained, with its `settings.json` and `datalist.json`.

    Returns:
        The version, as it is recorded: published or a candidate, with the reason.

    Raises:
        InputError: as `liverseg.versions.evaluate`, and for labels without any class of the bundle.
    """
    if _is_unchanged(bundle, version):
        reason = (
            "not published: in no epoch was the model better on the validation scans than the one "
            "it started from"
        )
        return _ended(version, state="candidate", reason=reason)
    new = case_dice(bundle, version.folder, version, version.folder / "evaluation")
    reached = sum(new.values()) / len(new)
    version, reason = version.update(mean_dice=reached), "the first model"
    worse: set[str | None] = {None}
    while version.state != "published":
        if publish(bundle, version.name, worse):
            return _ended(version, state="published", reason=f"published: {reason}")
        name = version_in_use(bundle)
        if name is None:
            continue
        in_use = find_version(bundle, name)
        other = case_dice(bundle, in_use.folder, version, version.folder / "evaluation_in_use")
        before = sum(other.values()) / len(other)
        difference, needed = compare(new, other)
        is_better = difference > needed
        reason = (
            f"mean Dice {reached:.4f} on the validation scans, {before:.4f} of {name}, which was "
            f"in use: a difference of {difference:+.4f} over {len(new)} scans, where more than "
            f"{needed:.4f} is needed"
        )
        learnt = set(in_use.record.get("training", ())) & set(version.record.get("validation", ()))
        if learnt:
            reason += (
                f"; {name} has learnt {len(learnt)} of these scans, so that its figure is too high"
            )
        version = version.update(mean_dice_in_use=before)
        if version.state != "published" and not is_better:
            return _ended(version, state="candidate", reason=f"not published: {reason}")
        worse.add(name)
    return _ended(version, reason="published by hand while it was evaluated")


def _ended(version: Version, **facts: str) -> Version:
    return version.update(end_ts=int(time.time()), **facts)


def case_dice(bundle: Path, weights: Path, version: Version, output_dir: Path) -> dict[str, float]:
    """By scan, the mean Dice over the classes in its label, the same for any weights."""
    evaluate(bundle, weights, version, output_dir)
    cases = pd.read_csv(output_dir / "cases.csv")
    # In another scan, Dice would only be there for the weights that find the class, and 0 for any
    # number of voxels.
    dice = cases[cases["reference_volume_ml"] > 0].groupby("case")["dice"].mean()
    if dice.empty:
        raise InputError(
            "validation: found no class of the bundle in its labels, expected some: label them "
            "again."
        )
    return {str(case): float(value) for case, value in dice.items()}


def _is_unchanged(bundle: Path, version: Version) -> bool:
    """Whether all weights are those that the training started from."""
    start = next(
        (one for one in list_versions(bundle) if one.name == version.record.get("parent")), None
    )
    files = [file for file in version.files() if file.suffix == ".pt"]
    if start is None or not all((start.folder / file).is_file() for file in files):
        return False
    for file in files:
        before, after = (read_state_dict(one.folder / file) for one in (start, version))
        if before.keys() != after.keys() or not all(
            torch.equal(value, after[key]) for key, value in before.items()
        ):
            return False
    return True
