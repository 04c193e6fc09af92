"""How long the shipped studies train, against the papers' own numbers, by hand."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers.bundle_runs import ROOT

from liverseg.errors import InputError
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.length import compare_lengths, shorter_line
from liverseg.workbench.study.plan import make_plan
from liverseg.workbench.study.report import write_report
from liverseg.workbench.study.spec import find_study, read_study

# Scans, folds, series of a patient, and scans for testing, of each data set that a study reads.
SIZES = {
    "chaos_ct": (20, 5, 1, 0),
    "chaos_mr": (20, 5, 3, 0),
    "btcv": (30, 5, 1, 0),
    "lits": (131, 5, 1, 13),
    "lits_10": (131, 10, 1, 0),
    "ircadb": (20, 5, 1, 2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Data sets as large as the real ones, whose scans are one small file each."""
    folder = tmp_path_factory.mktemp("papers")
    for name, (patients, folds, series, test) in SIZES.items():
        (folder / name).mkdir()
        items = []
        for number in range(patients * series):
            item = {key: f"{key}_{number}.nii" for key in ("image", "label")}
            for file in item.values():
                nib.save(
                    nib.Nifti1Image(np.ones((4, 4, 2), np.uint8), np.eye(4)), folder / name / file
                )
            patient = number // series
            items.append({**item, "patient": f"p{patient}", "fold": patient % folds})
        labels = {str(n): f"class {n}" for n in range(14)}
        training, tested = items[test:], [{**item} for item in items[:test]]
        for item in tested:
            del item["fold"]
        for number, item in enumerate(training):
            item["fold"] = number // series % folds
        content = {"labels": labels, "training": training, "test": tested}
        (folder / name / "dataset.json").write_text(json.dumps(content))
    return folder


@functools.cache
def lengths_of(name: str, data: Path) -> dict[tuple[str, str, str], dict]:
    path = find_study(Path(name))
    content = yaml.safe_load(path.read_text())
    merged = yaml.safe_load((path.parent / content.get("base", name)).read_text())
    content.setdefault("data", {})
    for key, entry in merged["data"].items():
        of_data = content["data"].setdefault(key, {})
        of_data["dataset_dir"] = str(data / Path(entry["dataset_dir"]).name)
    own = data / f"own_{name}"
    if "base" in content:
        (data / content["base"]).write_text((path.parent / content["base"]).read_text())
    own.write_text(yaml.safe_dump(content))
    plan = make_plan(read_study(own, ROOT / "bundles"), StudyFolder(data / "out"))
    rows = compare_lengths(plan)
    return {(row["data"], row["network"], row["stage"]): row for row in rows}


def falling_sum(rate: float, factor: float, period: int, steps: int) -> float:
    """The sum of a rate over `steps` that falls by `factor` after each `period` of them."""
    return sum(rate * factor ** (step // period) for step in range(steps))


@pytest.mark.parametrize(
    ("name", "key", "iterations", "samples", "rates"),
    [
        # 500 epochs of 80 % of 2874 slices, 8 a step; 0.0005, 0.8 times that every 10 epochs.
        ("paper_a.yaml", ("ct", "UNet", ""), 143688, 1149500, falling_sum(5e-4, 0.8, 2874, 143688)),
        # The same of 80 % of 1594 slices.
        (
            "paper_a.yaml", ("mr", "DeepLabV3", ""), 79688, 637500,
            falling_sum(5e-4, 0.8, 1594, 79688),
        ),
        # Table 7: 2600 iterations in 5 epochs, in which the learning rate does not fall.
        ("paper_a_short.yaml", ("ct", "DeepLabV3", ""), 2600, 20800, 2600 * 5e-4),
        # Table 7: 16260 in 30 epochs, in which it falls twice.
        ("paper_a_short.yaml", ("ct", "FCN", ""), 16260, 130080, 5420 * 5e-4 * (1 + 0.8 + 0.64)),
        ("paper_a_short.yaml", ("mr", "DeepLabV3", ""), 797, 6375, 797 * 5e-4),
        # 500 epochs of 1275 slices, 32 a step; 0.005, 0.9 times that every 20 epochs.
        (
            "paper_b.yaml", ("mr", "DeepLabV3-MRI", ""), 19922, 637500,
            falling_sum(5e-3, 0.9, 797, 19922),
        ),
        (
            "paper_b_short.yaml", ("mr", "UNet", ""), 16260, 520320,
            falling_sum(5e-3, 0.9, 797, 16260),
        ),
        # 10,000 iterations of three crops, at both learning rates.
        ("paper_d.yaml", ("ct", "UNet3D-0.001", ""), 10000, 30000, 10.0),
        ("paper_d.yaml", ("ct", "UNet3D-0.01", ""), 10000, 30000, 100.0),
        # 20 epochs of 30600 and of 35550 slices, 32 a step. Of 117 scans with 8 slices each, the
        # last of 30 steps has one, so 638 and 741 epochs see fewer slices than 612000 and 711000.
        ("paper_e.yaml", ("ct", "MixedUNet", "liver"), 19125, 638 * 117 * 8, 0.19125),
        ("paper_e.yaml", ("ct", "MixedUNet", "lesion"), 22219, 741 * 117 * 8, 0.22219),
        # 100 epochs of 70 % of 58638 axial slices, 4 a step; 512 coronal slices of each scan.
        (
            "paper_c.yaml", ("axial", "Cascade", "liver_localise"), 1026175, 4104700, 102.6175,
        ),
        (
            "paper_c.yaml", ("axial", "CascadeCrop", "liver_tune_axial"), 1026175, 4104700,
            102.6175,
        ),
        (
            "paper_c.yaml", ("planes", "Cascade", "liver_tune_coronal"), 1173750, 4695000, 117.375,
        ),
        # The same of 2823, and 256 coronal slices of each scan.
        ("paper_c.yaml", ("ircadb", "Cascade", "lesion_tune_axial"), 49400, 197600, 4.94),
        ("paper_c.yaml", ("ircadb", "Cascade", "liver_tune_sagittal"), 89600, 358400, 8.96),
        ("paper_c_short.yaml", ("lits", "Cascade", "lesion_localise"), 102617, 410470, 10.2617),
        ("paper_c_short.yaml", ("ircadb", "Cascade", "liver_localise"), 4940, 19760, 0.494),
    ],
)  # fmt: skip
def test_a_study_trains_as_long_as_its_paper(data, name, key, iterations, samples, rates):
    ours = lengths_of(name, data)[key]["ours"]
    # Steps are counted in whole epochs of the bundles.
    assert ours["iterations"] == pytest.approx(iterations, rel=0.007)
    assert ours["samples"] == pytest.approx(samples, rel=0.007)
    assert ours["learning_rate_sum"] == pytest.approx(rates, rel=0.007)


@pytest.mark.parametrize("name", [f"paper_{letter}.yaml" for letter in "abcde"])
def test_the_page_says_what_the_paper_trains(data, name):
    for row in lengths_of(name, data).values():
        for key, length in row["paper"].items():
            last_steps = name == "paper_e.yaml" and key == "samples"
            assert row["ours"][key] == pytest.approx(length, rel=0.025 if last_steps else 0.007)


def test_the_short_studies_say_how_much_shorter_they_are(data):
    row = lengths_of("paper_a_short.yaml", data)["ct", "DeepLabV3", ""]
    assert row["paper"]["iterations"] == 143688
    assert row["ours"]["iterations"] / row["paper"]["iterations"] == pytest.approx(0.0181, rel=0.01)


def rows_of(*shares: float) -> list[dict]:
    """The lengths of networks that train these shares of a paper's 100,000 iterations."""
    paper = {"iterations": 100000, "samples": 800000, "learning_rate_sum": 50.0}
    return [
        {
            "data": "ct", "network": f"N{index}", "stage": "", "paper": paper,
            "ours": {key: type(value)(share * value) for key, value in paper.items()},
        }
        for index, share in enumerate(shares)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ((0.0181,), "This study trains 0.018 of the paper's iterations: where"),
        (
            (0.0181, 1.0, 0.113),
            "This study trains 0.018 to 1 of the paper's iterations, depending on data set and",
        ),
        ((0.979,), "This study trains 0.98 of the paper's iterations: where"),
        ((0.981, 1.006), None),
        ((2.0,), None),
        ((), None),
    ],
)
def test_the_top_of_the_page_says_where_a_study_is_shorter(tmp_path, shares, line):
    rows = rows_of(*shares)
    found = shorter_line(rows)
    assert found is None if line is None else found.startswith(line)
    content = {"phantoms": False, "lengths": rows, "tables": {}, "cells": {}}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    page = write_report(StudyFolder(tmp_path)).read_text()
    assert page.count('class="notice"') == (line is not None)
    assert ("Beside the paper" in page) == bool(shares)
    # A share beside the paper's number, for all three, where it is another.
    assert page.count(" of it<") == 3 * sum(not 0.98 <= share <= 1.02 for share in shares)


def test_differences_are_listed_on_the_page(tmp_path):
    content = {"phantoms": False, "differences": ["A < B."], "tables": {}, "cells": {}}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    page = write_report(StudyFolder(tmp_path)).read_text()
    assert "Differences from the paper:</p>\n<ul><li>A &lt; B.</li></ul>" in page
    assert "slices or crops seen" not in page


def test_folds_of_another_study_are_refused(data, tmp_path):
    path = find_study(Path("paper_e.yaml"))
    content = yaml.safe_load(path.read_text())
    content["data"]["ct"]["dataset_dir"] = str(data / "lits")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = read_study(tmp_path / "study.yaml", ROOT / "bundles")
    with pytest.raises(InputError, match=r"found 5 folds, expected the 10 of .*--folds 10"):
        make_plan(study, StudyFolder(tmp_path / "out"))
