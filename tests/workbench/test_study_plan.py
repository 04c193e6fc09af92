from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers.bundle_runs import ROOT, write_dataset
from monai.bundle import ConfigParser
from typer.testing import CliRunner

from liverseg.errors import InputError
from liverseg.workbench.study.cli import app
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.plan import Plan, make_plan, make_run
from liverseg.workbench.study.run import literal, steps
from liverseg.workbench.study.spec import PAPERS, find_study, read_study

BUNDLES = ROOT / "bundles"
PAPERS_AB = ("paper_a.yaml", "paper_b.yaml")


@pytest.fixture
def folder(tmp_path) -> Path:
    write_dataset(tmp_path / "scans")
    return tmp_path


def study_file(folder: Path, **changes) -> Path:
    """A study of two networks and losses in two tables, with `changes`; None removes a key."""
    where = {"data": "ct", "network": "A", "loss": "dice", "task": "liver", "metric": "mean_iou"}
    content = {
        "data": {"ct": {"dataset_dir": str(folder / "scans"), "labels": {"liver": [1, 2]}}},
        "networks": {"A": {"bundle": "deeplabv3_liver"}, "B": {"bundle": "unet_liver"}},
        "losses": {"mine": {"loss": "@losses#iou_xy", "iou_xy_alpha": 0.7}},
        "settings": {"max_epochs": 2, "spacing": [6.0, 6.0, -1.0]},
        "folds": [0, 1],
        "tables": {
            "networks": {
                "where": where,
                "rows": {"a": {"network": "A"}, "b": {"network": "B"}},
                "columns": {"IoU": {}, "Dice": {"metric": "dice:liver"}},
            },
            "losses": {
                "where": where,
                "rows": {"dice": {}, "mine": {"loss": "mine"}},
                "columns": {"raw": {}, "clean": {"postprocessing": "clean_slices"}},
                "reference": "dice",
            },
        },
    } | changes
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump(
            {key: value for key, value in content.items() if value is not None}, sort_keys=False
        )
    )
    return path


def plan_from(folder: Path, path: Path) -> Plan:
    return make_plan(read_study(path, BUNDLES), StudyFolder(folder / "out"))


def plan_of(folder: Path, **changes) -> Plan:
    return plan_from(folder, study_file(folder, **changes))


def test_a_training_that_two_tables_need_is_one_run(folder):
    plan = plan_of(folder)
    found = [(run.network, run.loss, run.fold, list(run.evaluations)) for run in plan.runs.values()]
    both, raw = ["none", "clean_slices"], ["none"]
    assert sorted(found) == [
        ("A", "dice", 0, both),
        ("A", "dice", 1, both),
        ("A", "mine", 0, both),
        ("A", "mine", 1, both),
        ("B", "dice", 0, raw),
        ("B", "dice", 1, raw),
    ]
    places = plan.tables["losses"]["places"]
    assert places["dice"]["raw"]["parts"] == plan.tables["networks"]["places"]["a"]["IoU"]["parts"]
    assert places["dice"]["raw"]["reference"] is None
    assert places["mine"]["clean"]["reference"] == ["dice", "clean"]


def test_the_shipped_studies_hold_the_papers_trainings(folder, monkeypatch):
    plan = plan_from(folder, find_study(Path("studies/quick.yaml")))
    first = [run for run in plan.runs.values() if run.fold == 0]
    assert (
        sum(run.data == "ct" for run in first) == 5 + 5
    )  # networks, then the losses that Table 8 did not need
    assert sum(run.network == "DeepLabV3" and run.data == "mr" for run in first) == 3
    assert (
        sum(run.network != "DeepLabV3" and run.data == "mr" for run in first) == 3 + 5 + 1 + 4 * 3
    )
    assert len(plan.runs) - len(first) == 13 + 9
    # The papers' own studies plan the same ones, on data that has to be there: here LiTS and
    # 3D-IRCADb are one.
    for name, count in (
        ("paper_a.yaml", 13),
        ("paper_b.yaml", 26),
        ("paper_c.yaml", 13),
        ("paper_d.yaml", 6),
        ("paper_e.yaml", 5),
    ):
        with pytest.raises(InputError, match=r"data/\w+/.*there is no such datalist"):
            plan_from(folder, find_study(Path(name)))
        content = yaml.safe_load(find_study(Path(name)).read_text())
        for entry in content["data"].values():
            entry["dataset_dir"] = str(folder / "scans")
            entry.pop("num_folds", None)
            entry.pop("num_scans", None)
        (folder / name).write_text(yaml.safe_dump(content | {"folds": [0]}))
        cells = plan_from(folder, folder / name).runs.values()
        assert len(cells) == count
        own = {run.loss: run.settings["iou_xy_alpha"] for run in cells if "iou_" in run.loss}
        assert own == ({"iou_15_05": 1.5, "iou_05_15": 0.5} if name in PAPERS_AB else {})
        # Nothing is chosen on the scans that the tables are about; Table 5 of C has both.
        if name == "paper_c.yaml":
            for run in cells:
                sections = {settings.get("section") for settings in run.evaluations.values()}
                assert sections == ({None, "test"} if run.network == "Iterated" else {"test"})
            continue
        assert all(not run.settings["keep_best"] and run.settings["patience"] == 0 for run in cells)


@pytest.mark.parametrize("name", ["studies/quick.yaml", "paper_a.yaml", "paper_a_short.yaml"])
def test_furtados_second_step_is_algorithm_2_after_algorithm_1(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    for data in ("chaos_ct", "chaos_mr"):
        write_dataset(folder / "data" / data)
    study = read_study(find_study(Path(name)), BUNDLES)
    for data in study.data.values():
        data.num_folds = data.num_scans = None
    study.folds = [0]
    plan = make_plan(study, StudyFolder(folder / "out"))
    for table, row in (
        ("A7", "Post-processing time, both algorithms (s per liver)"),
        ("A10", "2D postprocessing"),
        ("A11 steps", "2D postprocessing"),
    ):
        for place in plan.tables[table]["places"][row].values():
            assert place["evaluation"] == "clean_volume_and_slices"
            ((cell,),) = place["parts"]
            assert plan.runs[cell].loss == "cross_entropy_per_pixel"
    # The settings of the two steps hold in their chain.
    transform = _postprocessing(plan.runs[cell])
    of_volume, of_slices = (one.transform for one in transform.transforms)
    quick = name == "studies/quick.yaml"
    assert of_volume.radius == of_slices.radius == (1 if quick else 3)
    assert of_slices.element == ("disk" if quick else "matlab_disk")


def _postprocessing(run):
    parser = ConfigParser()
    parser.read_config(run.bundle.folder / "configs" / "train.json")
    (chain,) = (value for key, value in run.evaluations.items() if key.startswith("clean"))
    for key, value in {**run.settings, **chain}.items():
        parser[key] = value
    return parser.get_parsed_content("postprocessing")


def test_a_model_is_made_by_several_ids_and_evaluated_in_several_ways(folder):
    plan = plan_from(folder, find_study(Path("studies/quick_c.yaml")))
    (iterated,) = (run for run in plan.runs.values() if run.network == "Iterated")
    found = [
        (step.name, step.trains, step.done.relative_to(iterated.folder)) for step in steps(iterated)
    ]
    evaluations = [
        f"none_round-{number}{section}" for number in range(3) for section in ("", "_test")
    ]
    assert found == [
        ("training", True, Path("training/training.done")),
        ("iterate", True, Path("training/iterate.done")),
        *((f"evaluation_{name}", False, Path("evaluation", name, "done")) for name in evaluations),
    ]
    for step, section in zip(list(steps(iterated))[-2:], ("validation", "test"), strict=True):
        arguments = step.arguments
        assert arguments[arguments.index("--evaluated_round") + 1] == "2"
        assert arguments[arguments.index("--section") + 1] == section
    # What only an evaluation uses is no setting of a training.
    given = [{word for word in step.arguments if word.startswith("--")} for step in steps(iterated)]
    assert ["--liver_postprocessing" in words for words in given] == [False] * 2 + [True] * 6
    assert all("--augmentation" in words for words in given)
    of_round = plan.tables["C5"]["places"]["N = 2"]
    assert of_round["Dice, validation"]["evaluation"] == "none_round-2"
    assert of_round["Dice, test"]["evaluation"] == "none_round-2_test"


def test_a_table_of_test_scans_needs_some(folder):
    table = {
        "where": {"data": "ct", "network": "A", "loss": "dice", "task": "liver", "section": "test"},
        "rows": {"r": {}},
        "columns": {
            "c": {"metric": "mean_iou"},
            "old": {"metric": "iou:liver", "section": "validation"},
        },
    }
    plan = plan_of(folder, tables={"t": table}, folds=[0])
    (run,) = plan.runs.values()
    assert {name: settings.get("section") for name, settings in run.evaluations.items()} == {
        "none_test": "test", "none": None,
    }  # fmt: skip
    datalist = folder / "scans" / "dataset.json"
    content = json.loads(datalist.read_text())
    datalist.write_text(json.dumps(content | {"test": []}))
    with pytest.raises(InputError, match=r"section 'test' .* is empty: add at least one scan"):
        plan_of(folder, tables={"t": table}, folds=[0])


def test_the_name_of_a_run_follows_all_that_decides_its_result(folder):
    def name(**changes) -> str:
        study = read_study(study_file(folder, **changes), BUNDLES)
        choice = {
            "data": "ct",
            "network": "A",
            "loss": "dice",
            "task": "liver",
            "fold": 0,
            "seed": 0,
        }
        return make_run(study, StudyFolder(folder), choice).name

    before = name()
    assert re.fullmatch(r"ct_A_dice_liver_fold0_seed0_[0-9a-f]{8}", before)
    assert name(folds=[0]) == name(tables={"A9": None}) == before
    assert name(settings={"max_epochs": 3, "spacing": [6.0, 6.0, -1.0]}) != before
    (folder / "scans").rename(folder / "moved")
    moved = {"ct": {"dataset_dir": str(folder / "moved"), "labels": {"liver": [1, 2]}}}
    assert name(data=moved) == before
    moved["ct"]["labels"] = {"liver": [1]}
    assert name(data=moved) != before
    datalist = folder / "moved" / "dataset.json"
    content = json.loads(datalist.read_text())
    content["training"].pop()
    datalist.write_text(json.dumps(content))
    moved["ct"]["labels"] = {"liver": [1, 2]}
    assert name(data=moved) != before


def test_a_row_with_one_number_in_a_column_of_another_metric(folder):
    table = {
        "where": {"data": "ct", "network": "A", "loss": "dice", "task": "liver"},
        "rows": {"all": {}, "cleaning": {"column": "time", "metric": "postprocessing_seconds"}},
        "columns": {"time": {"metric": "training_minutes"}, "IoU": {"metric": "mean_iou"}},
    }
    places = plan_of(folder, tables={"t": table}).tables["t"]["places"]
    assert {column: place["metric"] for column, place in places["all"].items()} == {
        "time": "training_minutes",
        "IoU": "mean_iou",
    }
    assert [place["metric"] for place in places["cleaning"].values()] == ["postprocessing_seconds"]


def test_one_network_for_each_class(folder):
    data = {"mr": {"dataset_dir": str(folder / "scans"), "labels": {"liver": [1], "spleen": [2]}}}
    table = {
        "where": {"data": "mr", "network": "A", "loss": "dice", "task": "each"},
        "rows": {"background": {"metric": "iou:background"}, "spleen": {"metric": "iou:spleen"}},
        "columns": {"uniclass": {}, "multiclass": {"task": "all"}},
    }
    plan = plan_of(folder, data=data, tables={"t": table}, folds=[0])
    classes = {run.task: run.settings["classes"] for run in plan.runs.values()}
    assert classes == {
        "liver": {"background": None, "liver": [1]},
        "spleen": {"background": None, "spleen": [2]},
        "all": {"background": None, "liver": [1], "spleen": [2]},
    }
    places = plan.tables["t"]["places"]
    found = [("background", "uniclass"), ("spleen", "uniclass"), ("spleen", "multiclass")]
    tasks = [
        [plan.runs[name].task for part in places[row][column]["parts"] for name in part]
        for row, column in found
    ]
    assert tasks == [["liver", "spleen"], ["spleen"], ["all"]]


def test_the_dry_run_lists_the_bundles_own_commands(folder):
    arguments = [
        "run",
        str(study_file(folder)),
        "--dry-run",
        "--out",
        str(folder / "out"),
        "--bundles",
        str(BUNDLES),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (folder / "out").exists()
    commands = [
        shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")
    ]
    assert (
        [command[5] for command in commands].count("--config_file")
        == len(commands)
        == 6 + 4 * 2 + 2
    )
    training = next(command for command in commands if "training" in command and "0.7" in command)
    values = dict(zip(training[5::2], training[6::2], strict=True))
    assert values["--loss"] == "@losses#iou_xy"
    assert values["--iou_xy_alpha"] == "0.7"
    assert values["--classes"] == '{"background": None, "liver": [1, 2]}'
    assert values["--resume"] == "True"
    assert result.stdout.startswith("# 6 trainings")
    evaluations = [command for command in commands if "evaluating" in command]
    assert all(command[command.index("--section") + 1] == "validation" for command in evaluations)


def test_a_command_gets_no_setting_of_an_entry_that_it_does_not_choose(folder):
    settings = {
        "max_epochs": 2,
        "postprocessings#clean_slices#radius": 1,
        "losses#dice#batch": False,
        "network_def#dropout": 0.1,
    }
    plan = plan_of(folder, settings=settings)
    run = next(run for run in plan.runs.values() if run.network == "A" and run.loss == "dice")
    given = {step.name: {word for word in step.arguments if "#" in word} for step in steps(run)}
    of_training = {"--losses#dice#batch", "--network_def#dropout", "@losses#dice"}
    found = {
        name: {word for word in words if word.startswith("--") and "masks_dir" not in word}
        for name, words in given.items()
    }
    of_training.discard("@losses#dice")
    assert found["training"] == of_training
    assert found["evaluation_none"] == of_training
    assert found["evaluation_clean_slices"] == {
        *of_training, "--postprocessings#clean_slices#radius"
    }  # fmt: skip
    other = next(run for run in plan.runs.values() if run.loss == "mine")
    assert "--losses#dice#batch" not in next(steps(other)).arguments


def test_masks_go_where_the_report_handler_of_the_bundle_is(folder):
    run = next(iter(plan_of(folder).runs.values()))
    _, evaluation, *_ = steps(run)
    name = next(word for word in evaluation.arguments if word.endswith("masks_dir"))
    handlers = run.bundle.evaluate["validate#handlers"]
    assert handlers[int(name.split("#")[2])]["_target_"] == "liverseg.handlers.SegmentationReport"


def test_an_evaluation_is_done_that_ended_well_with_the_same_settings(folder):
    run = next(iter(plan_of(folder).runs.values()))
    evaluation = next(step for step in steps(run) if not step.trains)
    assert not evaluation.is_done()
    evaluation.done.parent.mkdir(parents=True)
    # What a command that failed, or was killed, may leave.
    (evaluation.done.parent / "summary.json").write_text("{}")
    assert not evaluation.is_done()
    evaluation.done.write_text(evaluation.settings)
    assert evaluation.is_done()
    for settings in run.evaluations.values():
        settings["roc"] = True
    assert not next(step for step in steps(run) if not step.trains).is_done()


def test_literal_is_what_python_reads():
    value = {"a": None, "b": [1, 2.5, True], "c": {"d": 'x"y'}}
    assert eval(literal(value)) == value


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"netwroks": {}},
            r"found the key netwroks, expected only data, differences, .*perhaps to networks",
        ),
        ({"data": None}, r"study.yaml: found no data, expected it"),
        (
            {"data": {"ct": {"phantoms": {"cases": "many"}, "labels": {"liver": [1]}}}},
            r"ct: phantoms: cases: found 'many', expected a whole number",
        ),
        (
            {"tables": {"A8": {"paper": {"FCN": [0.9]}}}},
            r"tables: A8: paper: FCN: found 1 numbers, expected 4",
        ),
        ({"networks": None}, r"found no networks"),
        ({"networks": {"A": {"bundel": "x"}}}, r"networks: A: found the key bundel"),
        (
            {"networks": {"A": {"bundle": "fcn_liver", "run": ["trian"]}}},
            r"networks: A: run: found \['trian'\], expected ids",
        ),
        (
            {"evaluations": {"flips": {"flip": [[0]]}}},
            r"flips: .*_liver: flip: found no flip in the config",
        ),
        (
            {"networks": {"A": {"bundle": "resnet"}}},
            r"there is no bundle .*resnet: name one of .*deeplabv3_liver",
        ),
        (
            {"settings": {"max_epoch": 3}},
            r"settings: .*: max_epoch: found no .* perhaps to --max_epochs",
        ),
        (
            {"settings": {"optimizer": "@optimizers#adm"}},
            r"found @optimizers#adm, expected one of adam, sgd",
        ),
        (
            {"settings": {"max_epochs": 0}},
            r"settings: .*: max_epochs: found 0, expected a whole number of 1 or more",
        ),
        (
            {"losses": {"mine": {"loss": "@losses#iou_zz"}}},
            r"losses: mine: .*loss: found @losses#iou_zz, expected one",
        ),
        ({"losses": {"mine": "iou"}}, r"losses: mine: found 'iou', expected names with values"),
        ({"settings": [3]}, r"settings: found \[3\], expected names with values"),
        ({"data": ["ct"]}, r"data: found \['ct'\], expected names with values"),
        (
            {"networks": ["unet_liver"]},
            r"networks: found \['unet_liver'\], expected names with values",
        ),
        ({"losses": ["dice"]}, r"losses: found \['dice'\], expected names with values"),
        ({"evaluations": ["a"]}, r"evaluations: found \['a'\], expected names with values"),
        (
            {"evaluations": {"a": None}},
            r"evaluations: a: found nothing, expected names with values",
        ),
        (
            {"networks": {"A": {"bundle": "fcn_liver", "settings": ["x"]}}},
            r"A: settings: found \['x'\]",
        ),
        ({"networks": {"A": {"bundle": 5}}}, r"networks: A: bundle: found 5, expected text"),
        ({"networks": {"A": {"bundle": "fcn"}}}, r"networks: A: there is no bundle"),
        (
            {"networks": {"A": {"bundle": "fcn_liver", "run": "training"}}},
            r"networks: A: run: found 'training'",
        ),
        (
            {"networks": {"A": {"bundle": "fcn_liver", "run": [["training"]]}}},
            r"networks: A: run: 0: found \['training'\], expected text",
        ),
        (
            {"tables": {"mine": {"rows": ["r"], "columns": {"c": {}}}}},
            r"tables: mine: rows: found \['r'\]",
        ),
        (
            {"tables": {"mine": {"where": ["x"], "rows": {"r": {}}, "columns": {"c": {}}}}},
            r"mine: where: found \['x'\]",
        ),
        (
            {"tables": {"mine": {"rows": {"r": 3}, "columns": {"c": {}}}}},
            r"mine: rows: r: found 3, expected keys with values",
        ),
        ({"folds": 5}, r"folds: found 5, expected a list, as in \[0, 1\]"),
        ({"folds": [7]}, r"there is no fold 7"),
        ({"seeds": [True]}, r"seeds: 0: found True, expected a whole number"),
        ({"seeds": []}, r"seeds: found \[\], expected entries, 1 or more"),
        ({"folds": [0, 0]}, r"folds: found \[0, 0\], expected each one once"),
        ({"seeds": [1, 0, 1]}, r"seeds: found \[1, 0, 1\], expected each one once"),
        (
            {"tables": {"B4": {"folds": [0, 0]}}},
            r"tables: B4: folds: found \[0, 0\], expected each one once",
        ),
        (
            {"networks": {"A": {"bundle": "fcn_liver", "settings": None}}},
            r"networks: A: settings: found nothing, expected names with values",
        ),
        (
            {"tables": {"mine": {"where": None, "rows": {"r": {}}, "columns": {"c": {}}}}},
            r"mine: where: found nothing, expected keys with values",
        ),
        (
            {
                "data": {
                    "ct": {"phantoms": {}, "labels": {"liver": [1]}, "settings": {"max_epoch": 3}}
                }
            },
            r"data: ct: settings: .*: max_epoch: found no",
        ),
        (
            {"networks": {"A": {"bundle": "fcn_liver", "settings": {"max_epochs": 0}}}},
            r"networks: A: settings: fcn_liver: max_epochs: found 0",
        ),
        (
            {"tables": {"mine": {"rows": {"r": {}}, "columns": {"c": {}}, "reference": "dise"}}},
            r"mine: reference: found dise, expected the label of a row or column",
        ),
        ({"keep_models": "no"}, r"keep_models: found 'no', expected true or false"),
        ({"tables": {"A12": None}}, r"there is no such table in the papers: choose one of A7, A8"),
        ({"tables": {"A9": {"colums": {}}}}, r"A9: found the key colums, .*perhaps to columns"),
        (
            {"tables": {"A9": {"surfaces": "row"}}},
            r"tables: A9: surfaces: found 'row', expected 'rows' or 'columns'",
        ),
        (
            {"tables": {"A9": {"rows": {"mean": {"average": False}}}}},
            r"rows: mean: average: found False, expected True",
        ),
        ({"tables": ["B4", "B4"]}, r"tables: found \['B4', 'B4'\], expected each one once"),
        ({"tables": ["A9"]}, r"tables: A9: .*network: found DeepLabV3, expected one of A, B"),
        (
            {"data": {"ct": {"labels": {"liver": [1]}}}},
            r"expected one of dataset_dir, datalist and phantoms",
        ),
        (
            {"data": {"ct": {"phantoms": {}, "dataset_dir": "scans", "labels": {"liver": [1]}}}},
            r"expected one of dataset_dir, datalist and phantoms",
        ),
        (
            {"data": {"ct": {"phantoms": {}, "labels": 1}}},
            r"labels: found 1, expected names with values",
        ),
        (
            {"data": {"ct": {"phantoms": {"size": 3}, "labels": {"liver": [1]}}}},
            r"phantoms: found the key size",
        ),
        (
            {"data": {"ct": {"dataset_dir": "nowhere", "labels": {"liver": [1]}}}},
            r"nowhere/dataset.json: there is no such",
        ),
        (
            {"data": {"ct": {"phantoms": {"folds": 2}, "labels": {"liver": [1]}}}, "folds": [2]},
            r"have the folds 0 to 1",
        ),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(folder, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        plan_of(folder, **changes)


@pytest.mark.parametrize("key", ["settings", "losses", "evaluations", "folds"])
def test_a_section_with_nothing_after_it(folder, key):
    path = study_file(folder, **{key: None})
    path.write_text(f"{path.read_text()}{key}:\n")
    with pytest.raises(InputError, match=f"study.yaml: {key}: found nothing, expected .* as in"):
        read_study(path, BUNDLES)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ({"loss": "dicee"}, r"loss: found dicee, expected one of .*cross_entropy.*mine"),
        ({"task": "spleen"}, r"task: found spleen, expected one of all, each, liver"),
        ({"postprocessing": "polish"}, r"postprocessing: found polish, expected one of none"),
        ({"metric": "auc:liver"}, r"metric: found auc:liver without roc, expected roc: true"),
        ({"metric": "iou:spleen"}, r"metric: found iou:spleen"),
        ({"metric": "detection_recall"}, r"metric: found detection_recall"),
        (
            {"metrik": "x"},
            r"where: found the key metrik, expected only .*: correct it, perhaps to metric",
        ),
        ({"data": "mr"}, r"data: found mr, expected one of ct"),
        ({"section": "tset"}, r"section: found tset, expected one of validation, test"),
        (
            {"metric": None},
            r"r / c: found no metric, expected one from where, the row or the column",
        ),
    ],
)
def test_a_wrong_place_of_a_table_is_named(folder, where, sentence):
    good = {"data": "ct", "network": "A", "loss": "dice", "task": "liver", "metric": "mean_iou"}
    table = {"where": good | where, "rows": {"r": {}}, "columns": {"c": {}}}
    with pytest.raises(InputError, match=sentence):
        plan_of(folder, tables={"t": table})


def test_a_column_of_the_best(folder):
    where = {"data": "ct", "network": "A", "task": "liver", "metric": "dice:liver"}
    table = {
        "where": where,
        "rows": {"liver": {}, "most": {"max": True}},
        "columns": {"dice": {"loss": "dice"}, "mine": {"loss": "mine"}, "best": {"best": True}},
    }
    found = plan_of(folder, tables={"t": table}).tables["t"]
    assert found["chosen"] == ["best"]
    assert found["derived"] == {"most": {"max": True}}
    assert list(found["places"]["liver"]) == ["dice", "mine"]
    table["where"]["metric"] = "hd95_mm:liver"
    with pytest.raises(InputError, match=r"best: found hd95_mm:liver in liver, expected a metric"):
        plan_of(folder, tables={"t": table})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: [", "not readable as YAML"),
        ("", "broken.yaml: found nothing, expected keys like data"),
        ("- data", "found list, expected keys like data"),
        ("data: {}\nfolds: [0]\nfolds: [1]", "found the key folds twice"),
        ("data:\n  ct: {labels: 1}\n  ct: {labels: 2}", "found the key ct twice"),
        ("data:", "data: found nothing, expected names with values"),
        ("data: {}", "data: found {}, expected entries, 1 or more"),
        ("data: {1: {}}", "data: 1: found 1, expected text"),
        ("[a]: 1\ndata: {}", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_study(folder, text, sentence):
    (folder / "broken.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_study(folder / "broken.yaml", BUNDLES)


def test_a_study_that_is_not_there():
    with pytest.raises(InputError, match=r"or one of paper_a.yaml, .*, quick.yaml"):
        find_study(Path("fast.yaml"))


def test_every_table_of_the_papers_has_a_number_or_null_in_every_place():
    papers = yaml.safe_load(PAPERS.read_text())
    names = {
        "A7",
        "A8",
        "A9",
        "A10",
        "A11",
        "B1",
        "B2",
        "B3",
        "B",
        "B4",
        "C",
        "C3",
        "C4",
        "C5",
        "C6",
        "D1",
        "E",
    }
    assert {name.split()[0] for name in papers} == names
    for table in papers.values():
        assert list(table["paper"]) == list(table["rows"])
        assert {len(numbers) for numbers in table["paper"].values()} == {len(table["columns"])}
    # The averages of Furtado n.d. are those of the rows above them, uniclass with the background of
    # .99 that Table 4 leaves out.
    for name, column in (("B1", 0), ("B1", 1), ("B3", 3), ("B4", 3), ("B4", 5)):
        numbers = [papers[name]["paper"][row][column] for row in papers["B1"]["rows"]]
        values = [0.99 if value is None else value for value in numbers[:-1]]
        assert sum(values) / len(values) == pytest.approx(numbers[-1], abs=0.006)


def test_a_study_may_be_based_on_one_beside_it_or_a_shipped_one(folder):
    shipped = folder / "copy.yaml"
    shipped.write_text("base: quick.yaml\nfolds: [1]\nnetworks: {UNet: {settings: {amp: false}}}\n")
    study = read_study(shipped, BUNDLES)
    assert (study.folds, study.seeds) == ([1], [0])
    assert study.networks["UNet"].settings == {"network_def#first_filters": 16, "amp": False}
    assert study.networks["UNet"].bundle == "unet_liver"
    beside = folder / "beside.yaml"
    beside.write_text("base: copy.yaml\nseeds: [3]\n")
    study = read_study(beside, BUNDLES)
    assert (study.folds, study.seeds) == ([1], [3])


@pytest.mark.parametrize("base", ["none.yaml", "own.yaml", "other.yaml"])
def test_a_base_that_is_none_is_refused(folder, base):
    (folder / "own.yaml").write_text(f"base: {base}\n")
    (folder / "other.yaml").write_text("base: own.yaml\n")
    with pytest.raises(InputError, match=r"base: found \w+\.yaml, expected another study"):
        read_study(folder / "own.yaml", BUNDLES)
