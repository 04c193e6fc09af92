from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.bundle_runs import write_dataset
from scipy.stats import wilcoxon

from liverseg.data import load_datalist
from liverseg.errors import InputError
from liverseg.metrics import pooled_metrics
from liverseg.workbench.study import plots
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.report import place_lines, remarks, write_report
from liverseg.workbench.study.results import (
    OF_CASES,
    OF_CONVERGENCE,
    OF_TRAINING,
    check_metric,
    read_results,
)
from liverseg.workbench.study.spec import PAPERS
from liverseg.workbench.study.tables import StudyTable, compute_table, wilcoxon_p

CLASSES = ["background", "liver", "spleen"]
RUN = {
    "data": "ct", "network": "A", "loss": "dice", "task": "liver", "fold": 0,
    "dataset": {"dataset_dir": "nowhere"},
}  # fmt: skip


def write_cell(
    out: Path, name: str, ious: dict[str, list[float]], pooled: dict[str, float], cleaning="none"
) -> Path:
    """Write the files that a bundle leaves, with each case's IoU, and each class's in `pooled`."""
    folder = out / "cells" / name
    evaluation = folder / "evaluation" / cleaning
    evaluation.mkdir(parents=True)
    (folder / "training").mkdir(exist_ok=True)
    rows = [
        {"case": case, "class": CLASSES[1 + index], "iou": iou, "dice": 2 * iou / (1 + iou)}
        for case, values in ious.items()
        for index, iou in enumerate(values)
    ]
    pd.DataFrame(rows).to_csv(evaluation / "cases.csv", index=False)
    summary = {
        "pooled": {
            "global_accuracy": 0.9,
            "mean_iou": float(np.mean(list(pooled.values()))),
            "classes": {key: {"iou": iou} for key, iou in pooled.items()},
        },
        "seconds": {
            "inference_per_slice": {"mean": 0.02},
            "postprocessing_per_case": {"mean": 1.5},
            "segmentation_per_case": {"mean": 2.5},
        },
    }
    (evaluation / "summary.json").write_text(json.dumps(summary))
    facts = {"seconds": 90, "peak_memory_gb": 1.5, "peak_gpu_memory_gb": None}
    (folder / "training" / "metrics.json").write_text(json.dumps(facts))
    (folder / "training" / "history.csv").write_text(
        "epoch,iteration,loss,seconds\n1,4,0.9,1\n2,8,0.5,2\n"
    )
    return folder


def place(metric: str, *cells: str, reference=None, evaluation="none") -> dict:
    return {
        "metric": metric,
        "evaluation": evaluation,
        "parts": [list(cells)],
        "reference": reference,
    }


def table_plan(places: dict, derived: dict | None = None, paper: dict | None = None) -> dict:
    rows = [*places, *(derived or {})]
    columns = list(next(iter(places.values())))
    return {
        "title": "Title", "rows": rows, "columns": columns,
        "places": places, "derived": derived or {}, "paper": paper or {},
    }  # fmt: skip


def table_of(out: Path, plan: dict) -> StudyTable:
    runs = {path.name: {} for path in (out / "cells").iterdir()}
    return compute_table(read_results(StudyFolder(out), runs), "t", plan)


def numbers_of(run: Path, **facts) -> dict[str, float]:
    """The values of a run's whole fold, by metric and class."""
    results = read_results(StudyFolder(run.parents[1]), {run.name: facts})
    results = results[results["case"] == ""]
    names = (results["metric"] + ":" + results["class"]).str.removesuffix(":")
    return dict(zip(names, results["value"], strict=True))


def test_mean_sd_difference_and_test_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.5, 0.8, 12)
    clean = raw + rng.uniform(-0.02, 0.1, 12)
    for fold in (0, 1):
        part = slice(6 * fold, 6 * fold + 6)
        for name, values, liver in (("raw", raw, (0.70, 0.74)), ("clean", clean, (0.75, 0.77))):
            cases = {f"/scans/{fold}{index}.nii": [iou] for index, iou in enumerate(values[part])}
            write_cell(tmp_path, f"{name}{fold}", cases, {"background": 0.98, "liver": liver[fold]})
    plan = table_plan(
        {
            "raw": {"IoU": place("iou:liver", "raw0", "raw1")},
            "clean": {"IoU": place("iou:liver", "clean0", "clean1", reference=["raw", "IoU"])},
        },
        derived={"gain": {"difference": ["raw", "clean"]}},
        paper={"raw": [0.88], "clean": [0.92], "gain": [4]},
    )
    values = table_of(tmp_path, plan).values
    assert values["raw", "IoU"].mean == pytest.approx(0.72)
    assert values["raw", "IoU"].sd == pytest.approx(
        0.02 * 2**0.5
    )  # of a sample of two: |difference| / √2
    assert values["raw", "IoU"].difference_to_paper_pp == pytest.approx(-16)
    assert values["raw", "IoU"].p_value is None
    assert values["clean", "IoU"].difference_pp == pytest.approx(4)
    assert values["clean", "IoU"].pairs == 12
    assert values["clean", "IoU"].p_value == pytest.approx(wilcoxon(clean, raw).pvalue)
    assert values["gain", "IoU"].mean == pytest.approx(4)
    assert values["gain", "IoU"].sd == pytest.approx(100 * 0.02 / 2**0.5)


def test_cases_are_paired_by_image_and_seeds_averaged():
    # Six pairs, all better: two-sided p is 2 / 2⁶.
    ours = pd.Series({str(index): 0.8 + index / 100 for index in range(6)})
    others = pd.Series({str(i): 0.7 + i / 200 for i in reversed(range(6))} | {"other": 0.1})
    assert wilcoxon_p(ours, others) == (pytest.approx(2 / 64), 6)
    assert wilcoxon_p(ours, ours) == (1.0, 6)
    assert wilcoxon_p(ours[:1], others) == (None, 1)
    assert wilcoxon_p(ours.where(ours.index != "5"), others)[1] == 5


def test_cases_of_two_seeds_count_once(tmp_path):
    for seed, shift in ((0, 0.0), (1, 0.1)):
        for name, base in (("a", 0.5), ("b", 0.6)):
            cases = {f"{index}.nii": [base + shift + index / 50] for index in range(4)}
            write_cell(tmp_path, f"{name}{seed}", cases, {"background": 1, "liver": base + shift})
    plan = table_plan(
        {
            "a": {"c": place("iou:liver", "a0", "a1")},
            "b": {"c": place("iou:liver", "b0", "b1", reference=["a", "c"])},
        }
    )
    value = table_of(tmp_path, plan).values["b", "c"]
    assert value.pairs == 4
    assert value.cases["3.nii"] == pytest.approx(0.6 + 0.05 + 0.06)


def test_averages_and_ranks_over_organs_and_networks(tmp_path):
    cases = {"1.nii": [0.6, 0.4], "2.nii": [0.8, 0.2]}
    write_cell(tmp_path, "multi", cases, {"background": 0.99, "liver": 0.7, "spleen": 0.2})
    write_cell(
        tmp_path, "liver", {"1.nii": [0.9], "2.nii": [0.8]}, {"background": 0.97, "liver": 0.8}
    )
    write_cell(
        tmp_path, "spleen", {"1.nii": [0.5], "2.nii": [0.5]}, {"background": 0.95, "liver": 0.5}
    )
    each = place("iou:background", "liver")
    each["parts"] = [["liver"], ["spleen"]]
    plan = table_plan(
        {
            "Background": {"multi": place("iou:background", "multi"), "uni": each},
            "Liver": {
                "multi": place("iou:liver", "multi"),
                "uni": place("iou:liver", "liver", reference=["Liver", "multi"]),
            },
        },
        derived={"Average": {"average": True}, "Rank": {"rank": True}},
    )
    each["reference"] = ["Background", "multi"]
    values = table_of(tmp_path, plan).values
    assert values["Background", "uni"].mean == pytest.approx(0.96)
    assert values["Average", "multi"].mean == pytest.approx((0.99 + 0.7) / 2)
    assert values["Average", "uni"].mean == pytest.approx((0.96 + 0.8) / 2)
    assert values["Average", "uni"].difference_pp == pytest.approx(100 * (0.88 - 0.845))
    assert values["Average", "uni"].cases.to_dict() == pytest.approx({"1.nii": 0.9, "2.nii": 0.8})
    assert [values["Rank", column].mean for column in ("multi", "uni")] == [2, 1]


def test_bars_name_their_metric(tmp_path, monkeypatch):
    write_cell(tmp_path, "cell", {"1.nii": [0.5]}, {"background": 1, "liver": 0.6})
    path = tmp_path / "cells/cell/evaluation/none/summary.json"
    summary = json.loads(path.read_text()) | {"cases": {}}
    summary["cases"]["liver"] = {metric: {"mean": 0.7} for metric in OF_CASES}
    path.write_text(json.dumps(summary))
    monkeypatch.setattr(plots, "to_png", lambda figure: figure)
    for metric, name in (("dice:liver", "Dice"), ("iou:liver", "IoU"), ("hd95_mm:liver", None)):
        rows = {"a": {"c": place(metric, "cell")}}
        table = table_of(tmp_path, table_plan(rows, {"Average": {"average": True}}))
        figure = plots.bars_png(table)
        assert (figure and figure.axes[0].get_ylabel()) == name


def test_largest_and_smallest_of_a_column(tmp_path):
    for fold, (liver, spleen) in enumerate(((0.7, 0.6), (0.5, 0.8))):
        pooled = {"background": 0.9, "liver": liver, "spleen": spleen}
        write_cell(tmp_path, f"c{fold}", {f"{fold}.nii": [0.5, 0.5]}, pooled)
    rows = {name: {"c": place(f"iou:{name}", "c0", "c1")} for name in ("liver", "spleen")}
    derived = {"Mean": {"average": True}, "Max": {"max": True}, "Min": {"min": True}}
    values = table_of(tmp_path, table_plan(rows, derived)).values
    # Of the means .6 and .7 over folds, not of a fold.
    assert values["Max", "c"].mean == pytest.approx(0.7)
    assert values["Min", "c"].mean == pytest.approx(0.6)
    assert values["Min", "c"].sd == values["liver", "c"].sd
    # As in Shen et al. 2018: of the column's eight classes.
    printed = yaml.safe_load(PAPERS.read_text())["D1"]["paper"]
    for index in range(6):
        classes = [printed[row][index] for row in list(printed)[:8]]
        assert printed["Maximum"][index] == max(classes)
        # The artery's 0.892 is no minimum, as 0.802 would not be.
        assert printed["Minimum"][index] == min(classes)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_best_column_is_chosen_on_other_folds_than_the_one_it_is_evaluated_on(tmp_path, seeds):
    by_fold = {"A": (0.9, 0.5, 0.5), "B": (0.61, 0.8, 0.6), "C": (0.55, 0.6, 0.7)}
    runs, row = {}, {}
    for column, ious in by_fold.items():
        names = []
        for fold, iou in enumerate(ious):
            for seed in range(seeds):
                names.append(f"{column}{fold}{seed}")
                pooled = {"background": 1, "liver": iou + (seed - (seeds - 1) / 2) / 50}
                write_cell(tmp_path, names[-1], {f"{fold}.nii": [0.5]}, pooled)
                runs[names[-1]] = {"fold": fold}
        reference = None if column == "A" else ["r", "A"]
        row[column] = place("iou:liver", *names, reference=reference)
    plan = table_plan({"r": row}) | {"columns": [*by_fold, "best"], "chosen": ["best"]}
    table = compute_table(read_results(StudyFolder(tmp_path), runs), "t", plan)
    # Means over folds 1 and 2: B .7, C .65, A .5; over 0 and 2: A .7; over 0 and 1: B .705, A .7.
    best = table.values["r", "best"]
    assert best.runs.reshape(3, seeds).mean(1) == pytest.approx([0.61, 0.5, 0.6])
    assert best.difference_pp == pytest.approx(100 * (1.71 - 1.9) / 3)
    line = "best: r: B in fold 0; A in fold 1; B in fold 2."
    assert table.choices == remarks(table) == [line]
    # One fold has no other to choose on.
    for cell in row.values():
        cell["parts"] = [cell["parts"][0][:seeds]]
    table = compute_table(read_results(StudyFolder(tmp_path), runs), "t", plan)
    assert ("r", "best") not in table.values
    assert remarks(table) == [
        "best: needs two folds, to choose on other ones than it is evaluated on."
    ]


def test_times_memory_and_single_cases(tmp_path):
    cases = {"/b/2.nii": [0.5], "/a/1.nii": [0.7]}
    for cleaning in ("none", "balls"):
        write_cell(tmp_path, "cell", cases, {"background": 1, "liver": 0.6}, cleaning)
    wanted = {
        "training_minutes": 1.5, "epochs": 2, "iterations": 8, "memory_mb": 1500,
        "seconds_per_slice": 0.02, "seconds_per_case": 2.5, "case_iou:1": 0.5, "case_iou:2": 0.7,
    }  # fmt: skip
    row = {metric: place(metric, "cell") for metric in wanted}
    assert all(check_metric(metric, ["liver"]) for metric in wanted)
    row["cleaning"] = place("postprocessing_seconds", "cell", evaluation="balls")
    table = table_of(tmp_path, table_plan({"row": row}))
    assert {column: value.mean for (_, column), value in table.values.items()} == pytest.approx(
        wanted | {"cleaning": 1.5}
    )
    assert table.notes == ["1 is 2.nii", "2 is 1.nii"]


def test_a_training_by_stages_is_all_of_them(tmp_path):
    folder = (
        write_cell(tmp_path, "cell", {"1.nii": [0.5]}, {"background": 1, "liver": 0.6}) / "training"
    )
    (folder / "lesion").mkdir()
    for name in ("metrics.json", "history.csv"):
        (folder / name).rename(folder / "lesion" / name)
    (folder / "liver").mkdir()
    facts = {"seconds": 30, "peak_memory_gb": 2.5, "peak_gpu_memory_gb": None}
    (folder / "liver" / "metrics.json").write_text(json.dumps(facts))
    (folder / "liver" / "history.csv").write_text("epoch,iteration,loss,seconds\n1,5,0.9,1\n")
    numbers = numbers_of(folder.parent)
    assert {metric: numbers[metric] for metric in OF_TRAINING} == pytest.approx(
        {
            "training_minutes": 2,
            "training_hours": 2 / 60,
            "epochs": 3,
            "iterations": 13,
            "memory_mb": 2500,
        }
    )


def test_convergence_is_within_two_percent_of_the_last_accuracy_to_stay(tmp_path):
    folder = write_cell(tmp_path, "cell", {"1.nii": [0.5]}, {"background": 1, "liver": 0.6})
    # 0.93 is more than 2 % of 0.95 away, so the 0.94 before it does not count.
    curve = ["1,10,0.9,,60", "2,20,0.8,0.94,120", "3,30,0.7,,180", "4,40,0.6,0.93,240"]
    curve += ["5,50,0.5,0.932,300", "6,60,0.4,0.96,360", "7,70,0.3,0.95,420"]
    text = "epoch,iteration,loss,val_accuracy,seconds\n" + "\n".join(curve) + "\n"
    (folder / "training" / "history.csv").write_text(text)
    numbers = numbers_of(folder)
    assert {metric: numbers[metric] for metric in OF_CONVERGENCE} == pytest.approx(
        {
            "converged_minutes": 5,
            "converged_epochs": 5,
            "converged_iterations": 50,
            "final_validation_accuracy": 0.95,
        }
    )
    # In epochs of the paper, whose 40 slices are 10 iterations of 4.
    protocol = {"samples": 40, "batch_size": 4}
    assert numbers_of(folder, protocol=protocol)["converged_epochs"] == 5.0
    assert numbers_of(folder, protocol={**protocol, "samples": 80})["converged_epochs"] == 2.5


def test_figures_of_lesions_are_those_of_the_whole_fold(tmp_path):
    folder = write_cell(tmp_path, "cell", {"1.nii": [0.5]}, {"background": 1, "lesion": 0.6})
    path = folder / "evaluation" / "none" / "summary.json"
    lesions = {
        "detection_precision": 0.6,
        "detection_recall": 0.7,
        "burden_rmse": 0.02,
        "burden_max_error": 0.05,
    }
    summary = json.loads(path.read_text()) | {"lesions": lesions}
    summary["pooled"]["classes"]["lesion"]["dice"] = 0.75
    summary["targets"] = {
        "liver": {"accuracy": 0.9, "iou": 0.7, "mean_iou": 0.8},
        "lesion": {"accuracy": 0.95, "iou": 0.5, "mean_iou": 0.6},
    }
    path.write_text(json.dumps(summary))
    wanted = lesions | {
        "dice_global:lesion": 0.75, "target_accuracy:lesion": 0.95, "target_iou:lesion": 0.5,
        "target_mean_iou:liver": 0.8,
    }  # fmt: skip
    numbers = numbers_of(folder)
    assert {metric: numbers[metric] for metric in wanted} == wanted
    assert all(check_metric(metric, ["liver", "lesion"]) for metric in wanted)
    own = {metric for metric in wanted if check_metric(metric, ["liver"])}
    assert own == {"target_mean_iou:liver"}


def test_precision_recall_and_specificity_of_a_class(tmp_path):
    folder = write_cell(tmp_path, "cell", {"1.nii": [0.5]}, {"background": 1, "liver": 0.6})
    path = folder / "evaluation" / "none" / "summary.json"
    summary = json.loads(path.read_text())
    summary["pooled"] = pooled_metrics(np.array([[90, 8], [4, 36]]), CLASSES[:2])
    path.write_text(json.dumps(summary))
    wanted = {
        "precision:liver": 36 / 44, "recall:liver": 36 / 40, "specificity:liver": 90 / 98,
        "specificity:background": 36 / 40,
    }  # fmt: skip
    plan = table_plan({"a": {metric: place(metric, "cell") for metric in wanted}})
    values = table_of(tmp_path, plan).values
    assert {column: value.mean for (_, column), value in values.items()} == pytest.approx(wanted)
    assert place_lines(values["a", "precision:liver"]) == ["0.818"]
    assert all(check_metric(metric, ["liver"]) for metric in wanted)
    assert not check_metric("precision:spleen", ["liver"])
    assert not check_metric("precision", ["liver"])


def test_a_missing_cell_leaves_its_place_empty_and_is_named(tmp_path):
    write_cell(tmp_path, "there0", {"1.nii": [0.5]}, {"background": 1, "liver": 0.5})
    plan = table_plan(
        {
            "a": {"c": place("iou:liver", "there0", "away1")},
            "b": {"c": place("iou:liver", "there0", reference=["a", "c"])},
        },
        paper={"a": [0.9], "b": [0.8]},
    )
    (tmp_path / "plan.json").write_text(
        json.dumps({"phantoms": False, "cells": {"there0": RUN}, "tables": {"own": plan}})
    )
    write_report(StudyFolder(tmp_path))
    markdown = (tmp_path / "tables" / "own.md").read_text()
    assert "| a |  |" in markdown
    assert "| b | 0.500<br>paper 0.80 (−30.0 pp) |" in markdown
    assert "Missing: away1: evaluation/none/cases.csv is not there." in markdown
    table = pd.read_csv(tmp_path / "tables" / "own.csv", index_col=0)
    assert np.isnan(table.loc["a", "c"])
    assert table.loc["b", "c"] == 0.5
    with pytest.raises(InputError, match=r"found no plan.json, expected the folder of a study"):
        write_report(StudyFolder(tmp_path / "cells"))


def test_the_papers_numbers_stand_beside_ours(tmp_path):
    """Compare a sample of what METHODS.md and the papers print with the layouts of every study."""
    papers = yaml.safe_load(PAPERS.read_text())

    def printed(table: str, row: str, column: str) -> float:
        return papers[table]["paper"][row][list(papers[table]["columns"]).index(column)]

    assert printed("A7", "U-Net", "Training time (min)") == 789
    assert printed("A8", "FCN", "Weighted IoU") == 0.92
    assert printed("A9", "dice", "IoU liver") == 0.84
    assert printed("A10", "2D postprocessing", "IoU Seq 2") == 0.848
    assert printed("A11 losses", "crossE", "MRI IoU liver") == 0.86
    assert printed("B1", "Spleen", "FCN") == 0.74
    assert printed("B2", "iou0515", "Mean sensitivity") == 0.94
    assert printed("B3", "Liver", "IoU (α 1.5, β 0.5)") == 0.68
    assert printed("B4", "Right kidney", "uniclass IoU") == 0.50
    assert printed("C5", "N = 5", "Dice, validation") == 0.9511
    assert printed("C5", "N = 5", "Dice, test") == 0.9331
    assert printed("C5", "N = 7", "Mean IoU, validation") == 0.9680
    assert printed("C6", "3D-IRCADb-01", "Accuracy lesion") == 0.9524
    assert printed("C6", "LiTS", "Mean IoU lesion") == 0.8718
    assert printed("E", "Mixed U-Net, 3-D CRF", "Dice lesion") == 0.65


def test_rounds_are_curves_of_both_sections_and_of_the_paper(tmp_path, monkeypatch):
    places = {}
    for number in range(3):
        for section, iou in (("", 0.5 + number / 10), ("_test", 0.4)):
            cases = {f"{index}.nii": [iou] for index in range(2)}
            pooled = {"background": 1.0, "liver": iou}
            write_cell(tmp_path, "cell", cases, pooled, f"none_round-{number}{section}")
        places[f"N = {number}"] = {
            "Mean IoU, validation": place("mean_iou", "cell", evaluation=f"none_round-{number}"),
            "Mean IoU, test": place("mean_iou", "cell", evaluation=f"none_round-{number}_test"),
            "Dice, test": place("dice:liver", "away"),
        }
    table = table_of(tmp_path, table_plan(places, paper={row: [0.8, None, 0.9] for row in places}))
    monkeypatch.setattr(plots, "to_png", lambda figure: figure)
    (axes,) = plots.rounds_png(table).axes  # There is no Dice yet.
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    expected = {
        "Mean IoU, validation": [0.75, 0.8, 0.85],
        "Mean IoU, validation (paper)": [0.8] * 3,
        "Mean IoU, test": [0.7] * 3,
    }
    assert lines.keys() == expected.keys()
    for label, values in expected.items():
        assert lines[label].tolist() == [
            [number, pytest.approx(value)] for number, value in enumerate(values)
        ]
    # Another table has bars.
    places["all"] = places.pop("N = 2")
    assert plots.rounds_png(table_of(tmp_path, table_plan(places))) is None


@pytest.mark.parametrize("section", ["validation", "test"])
def test_the_page_shows_tables_and_pictures(tmp_path, section):
    import nibabel as nib

    from liverseg.io.masks import MaskFolder

    scans = write_dataset(tmp_path / "scans")
    items = load_datalist(scans / "dataset.json", section, 0)
    evaluation = {"validation": "none", "test": "none_test"}[section]
    folder = write_cell(
        tmp_path, "cell", {item["image"]: [0.9 - index / 2] for index, item in enumerate(items)},
        {"background": 1, "liver": 0.8}, evaluation,
    )  # fmt: skip
    masks = MaskFolder(folder / "evaluation" / evaluation / "masks", "pred")
    for item in items:
        mask = nib.load(item["label"])
        masks.save(item["image"], np.asarray(mask.dataobj), mask.affine)
    cell = {
        **RUN, "dataset": {"dataset_dir": str(scans)},
        "settings": {"classes": {"background": None, "liver": [1, 2]}},
    }  # fmt: skip
    plan = table_plan({"a": {"IoU": place("iou:liver", "cell", evaluation=evaluation)}})
    content = {"phantoms": True, "cells": {"cell": cell}, "tables": {"own": plan}}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    page = write_report(StudyFolder(tmp_path)).read_text()
    assert "0.800" in page
    assert "synthetic drawings" in page
    pictures = {path.name for path in (tmp_path / "plots").iterdir()}
    assert pictures == {
        "own_bars.png",
        "ct_liver_curves.png",
        "ct_liver_best.png",
        "ct_liver_worst.png",
    }
    assert all(f'src="plots/{name}"' in page for name in pictures)
    assert f"best case {Path(items[0]['image']).name}, IoU 0.900" in page
    # A case that the datalist holds no more, for the data has been moved, has no picture.
    cell["dataset"]["dataset_dir"] = str(write_dataset(tmp_path / "moved"))
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert "best case" not in write_report(StudyFolder(tmp_path)).read_text()
