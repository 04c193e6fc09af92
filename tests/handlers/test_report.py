from __future__ import annotations

import json
import logging
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.two_ranks import run_two_ranks
from monai.data import DataLoader, Dataset, DistributedSampler, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted, Compose, EnsureChannelFirstd, LoadImaged

import liverseg
from liverseg.engines import ScanDataset, ScanEvaluator
from liverseg.errors import InputError
from liverseg.handlers import SegmentationReport, timing
from liverseg.io.masks import MaskFolder, find_mask
from liverseg.metrics import bf_scores, case_metrics, lesion_metrics

NAMES = ["background", "liver", "lesion"]
SPACING_MM = (0.8, 0.9, 2.5)
METRICS = ["dice", "iou", "hd95_mm", "assd_mm", "volume_ml", "reference_volume_ml"]
METRICS += ["volume_error_ml", "volume_error_percent"]


class ImageIsTheAnswer(torch.nn.Module):
    """Logits of three classes from an image that holds the class to predict."""

    def forward(self, image):
        return torch.cat([(image == c).float() for c in range(3)], dim=1)


def write_case(
    folder: Path, name: str, prediction: np.ndarray, reference: np.ndarray
) -> dict[str, str]:
    case = {}
    for key, array in (("image", prediction), ("label", reference)):
        path = folder / f"{name}_{key}.nii.gz"
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([*SPACING_MM, 1])), path)
        case[key] = str(path)
    return case


def make_cases(folder: Path) -> list[dict[str, str]]:
    """Three cases: a fair one, one where the lesion is missed, one without anything found."""
    cases = []
    for name, shift, lesion in (("b", 1, True), ("a", 2, False), ("c", 0, False)):
        reference = np.zeros((20, 16, 6), int)
        reference[4:14, 3:12, 1:5] = 1
        reference[8:11, 6:9, 2:4] = 2
        prediction = np.roll(reference, shift, 0)
        if not lesion:
            prediction[prediction == 2] = 1
        if name == "c":
            prediction[:] = 0
        cases.append(write_case(folder, name, prediction, reference))
    return cases


class Clock:
    now_s = 0.0


class Slow:
    """Takes a second of a clock for each call."""

    def __init__(self, run, clock):
        self.run = run
        self.clock = clock

    def __call__(self, *args):
        self.clock.now_s += 1
        return self.run(*args)


def evaluate(cases, report, sampler=None, postprocessing=None, inferer=None, tolerant=False):
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    dataset = ScanDataset(cases, load) if tolerant else Dataset(cases, load)
    evaluator = (ScanEvaluator if tolerant else SupervisedEvaluator)(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            dataset, batch_size=1 if tolerant else 2, sampler=sampler(dataset) if sampler else None
        ),
        network=ImageIsTheAnswer(),
        inferer=inferer,
        postprocessing=postprocessing or AsDiscreted("pred", argmax=True),
        val_handlers=[report],
    )
    evaluator.run()


def read(output_dir: Path):
    return pd.read_csv(output_dir / "cases.csv"), json.loads(
        (output_dir / "summary.json").read_text()
    )


def test_report_of_an_evaluation(tmp_path, caplog):
    cases = make_cases(tmp_path)
    output_dir = tmp_path / "new" / "eval"
    with caplog.at_level(logging.INFO):
        evaluate(cases, SegmentationReport(output_dir, NAMES))
    table, summary = read(output_dir)
    assert sorted(path.name for path in output_dir.glob("[!.]*")) == ["cases.csv", "summary.json"]

    assert list(table.columns) == ["case", "class", *METRICS]
    volumes = {
        case["image"]: [nib.load(case[key]).get_fdata().astype(int) for key in case]
        for case in cases
    }
    assert table["case"].tolist() == [name for name in sorted(volumes) for _ in range(2)]
    for _, row in table.iterrows():
        expected = case_metrics(*volumes[row["case"]], SPACING_MM, NAMES)[row["class"]]
        assert row[METRICS].to_dict() == pytest.approx(expected, rel=1e-6, nan_ok=True)

    assert summary["number_of_cases"] == 3
    predictions = np.stack([prediction for prediction, _ in volumes.values()])
    references = np.stack([reference for _, reference in volumes.values()])
    pooled = summary["pooled"]
    assert pooled["global_accuracy"] == pytest.approx((predictions == references).mean())
    ious = [
        ((predictions == c) & (references == c)).sum()
        / ((predictions == c) | (references == c)).sum()
        for c in range(3)
    ]
    assert [pooled["classes"][name]["iou"] for name in NAMES] == pytest.approx(ious)
    assert pooled["mean_iou"] == pytest.approx(np.mean(ious))
    images = [np.nanmean(score) for pair in volumes.values() for score in bf_scores(*pair, 3)]
    assert pooled["mean_bf_score"] == pytest.approx(np.mean(images))

    for name in NAMES[1:]:
        values = summary["cases"][name]
        rows = table[table["class"] == name]
        for metric in METRICS:
            known = [value for value in rows[metric] if not math.isnan(value)]
            assert values[metric]["count"] == len(known)
            assert values[metric]["mean"] == (pytest.approx(np.mean(known)) if known else None)
            assert values[metric]["median"] == (pytest.approx(np.median(known)) if known else None)
            assert values[metric]["sd"] == (
                pytest.approx(np.std(known, ddof=1)) if len(known) > 1 else None
            )
    assert summary["cases"]["lesion"]["hd95_mm"]["count"] == 1
    assert summary["cases"]["liver"]["empty_predictions"] == 1
    assert summary["cases"]["lesion"]["empty_predictions"] == 2
    assert summary["cases"]["lesion"]["empty_references"] == 0
    assert summary["versions"] == {
        "torch": torch.__version__,
        "monai": monai.__version__,
        "liverseg": liverseg.__version__,
    }
    lines = [record.getMessage() for record in caplog.records if "3 cases" in record.getMessage()]
    assert len(lines) == 1
    assert f"mean IoU {pooled['mean_iou']:.4f}" in lines[0]


COUNTS = ["reference_lesions", "predicted_lesions", "true_positive_lesions"]
SHARES = ["detection_precision", "detection_recall", "burden", "reference_burden"]


@pytest.fixture
def lesion_cases(tmp_path):
    cases = make_cases(tmp_path)
    found = np.zeros((20, 16, 6), int)
    found[2:9, 2:9, 1:5], found[4:6, 4:6, 2:4] = 1, 2
    return [*cases, write_case(tmp_path, "d", found, found)]


@pytest.fixture
def with_lesions(lesion_cases, tmp_path):
    classes = {"lesion_class": "lesion", "organ_class": "liver"}
    evaluate(lesion_cases, SegmentationReport(tmp_path / "eval", NAMES, **classes))
    return read(tmp_path / "eval")


@pytest.fixture
def without_lesions(lesion_cases, tmp_path):
    evaluate(lesion_cases, SegmentationReport(tmp_path / "plain", NAMES))
    return read(tmp_path / "plain")


def test_lesions_are_counted_in_the_rows_of_their_class(lesion_cases, with_lesions, tmp_path):
    table, _ = with_lesions
    assert table[table["class"] == "liver"][[*COUNTS, *SHARES]].isna().all(axis=None)
    rows = table[table["class"] == "lesion"].set_index("case")
    for case in lesion_cases:
        prediction, reference = (nib.load(case[key]).get_fdata() for key in ("image", "label"))
        expected = lesion_metrics(prediction == 2, reference == 2)
        for mask, name in ((prediction, "burden"), (reference, "reference_burden")):
            expected[name] = (mask == 2).sum() / (mask > 0).sum() if mask.any() else math.nan
        found = rows.loc[case["image"], [*COUNTS, *SHARES]].to_dict()
        assert found == pytest.approx(expected, nan_ok=True)
    # The lesion of the fair case, moved by one of its three voxels, has an intersection over union
    # of exactly a half.
    assert rows["true_positive_lesions"].tolist() == [0, 0, 0, 1]
    # Whole numbers and an empty cell.
    assert ",1,0,0,,0.0," in (tmp_path / "eval" / "cases.csv").read_text()


def test_a_liver_is_measured_with_its_lesions(lesion_cases, with_lesions, without_lesions):
    (table, _), (plain, _) = with_lesions, without_lesions
    assert list(table.columns) == [*plain.columns, *COUNTS, *SHARES]
    others = table["class"] != "liver"
    pd.testing.assert_frame_equal(table.loc[others, plain.columns], plain[others])
    livers = table[~others].set_index("case")
    for case in lesion_cases:
        prediction, reference = (nib.load(case[key]).get_fdata() > 0 for key in ("image", "label"))
        voxels = prediction.sum() + reference.sum()
        expected = 2 * (prediction & reference).sum() / (voxels or math.nan)
        assert livers.loc[case["image"], "dice"] == pytest.approx(expected, nan_ok=True)


def test_lesions_of_all_cases_are_pooled(with_lesions, without_lesions):
    (table, summary), (_, plain_summary) = with_lesions, without_lesions
    rows = table[table["class"] == "lesion"]
    pooled = summary.pop("lesions")
    errors = (rows["burden"] - rows["reference_burden"]).dropna()
    assert pooled == pytest.approx(
        {
            "reference_lesions": 4,
            "predicted_lesions": 2,
            "true_positive_lesions": 1,
            "detection_precision": 1 / 2,
            "detection_recall": 1 / 4,
            "burden_rmse": math.sqrt((errors**2).mean()),
            "burden_max_error": errors.abs().max(),
        }
    )
    lesions = summary["cases"]["lesion"]
    recall = {"mean": 0.25, "sd": 0.5, "median": 0, "count": 4}
    assert lesions["detection_recall"] == recall
    assert lesions["detection_precision"]["count"] == 2
    assert lesions["dice"] == plain_summary["cases"]["lesion"]["dice"]
    assert summary.keys() == plain_summary.keys()


@pytest.mark.parametrize("key", ["lesion_class", "organ_class"])
@pytest.mark.parametrize("name", ["tumour", "background"])
def test_lesions_of_no_class_are_refused(tmp_path, key, name):
    with pytest.raises(InputError, match=f"{key}: found '{name}', expected one of liver, lesion"):
        SegmentationReport(tmp_path, NAMES, **{key: name})


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but while a `Slow` is called."""
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now_s)
    return clock


def test_time_is_counted_where_it_is_spent(tmp_path, clock):
    cases = make_cases(tmp_path)
    argmax = Slow(AsDiscreted("pred", argmax=True), clock)
    evaluate(cases, SegmentationReport(tmp_path / "post", NAMES), postprocessing=argmax)
    inferer = Slow(SimpleInferer(), clock)
    evaluate(cases, SegmentationReport(tmp_path / "network", NAMES), inferer=inferer)
    post, network = (read(tmp_path / name)[1]["seconds"] for name in ("post", "network"))
    # Each scan is postprocessed alone.
    assert post["postprocessing_per_case"] == pytest.approx(
        {"mean": 1, "sd": 0, "median": 1, "count": 3}
    )
    assert post["inference_per_slice"]["mean"] == 0
    assert post["segmentation_per_case"] == post["postprocessing_per_case"]
    # Batches of two scans and one, each of six slices: 1 s shared by two, 1 s for the third.
    assert network["inference_per_slice"]["mean"] == pytest.approx(2 / 3 / 6)
    assert network["inference_per_slice"]["median"] == pytest.approx(1 / 2 / 6)
    assert network["postprocessing_per_case"]["mean"] == 0
    assert network["segmentation_per_case"]["mean"] == pytest.approx(2 / 3)
    assert network["segmentation_per_case"]["median"] == pytest.approx(1 / 2)
    inferer, argmax = Slow(SimpleInferer(), clock), Slow(AsDiscreted("pred", argmax=True), clock)
    report = SegmentationReport(tmp_path / "both", NAMES)
    evaluate(cases, report, postprocessing=argmax, inferer=inferer)
    both = read(tmp_path / "both")[1]["seconds"]
    # A second of the first batch's inferer and two postprocessings of a second each, shared by
    # its two scans; a second of each for the third.
    assert both["segmentation_per_case"]["mean"] == pytest.approx((3 / 2 + 3 / 2 + 2) / 3)


def test_masks_lie_on_the_grid_of_the_label(tmp_path):
    cases = make_cases(tmp_path)
    (tmp_path / "other").mkdir()
    same_name = write_case(
        tmp_path / "other", "a", np.full((20, 16, 6), 2), np.full((20, 16, 6), 2)
    )
    evaluate(
        [*cases, same_name],
        SegmentationReport(tmp_path / "eval", NAMES, masks_dir=tmp_path / "masks"),
    )
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 4
    for case in [*cases, same_name]:
        mask = nib.load(find_mask(tmp_path / "masks", case["image"]))
        assert np.array_equal(mask.dataobj, nib.load(case["image"]).dataobj)
        assert mask.get_data_dtype() == np.uint8
        assert np.allclose(mask.affine, np.diag([*SPACING_MM, 1]))


def test_masks_in_the_folder_of_the_report_keep_their_record(tmp_path):
    cases = make_cases(tmp_path)
    # As an inference leaves them.
    MaskFolder(tmp_path / "eval", "liver").save(
        "/d/a.nii", np.zeros((3, 4, 2), np.uint8), np.eye(4)
    )
    for _ in range(2):
        evaluate(cases, SegmentationReport(tmp_path / "eval", NAMES, masks_dir=tmp_path / "eval"))
        masks = sorted(path.name for path in (tmp_path / "eval").glob("*.nii.gz"))
        assert masks == [
            "a_image_pred.nii.gz",
            "a_liver.nii.gz",
            "b_image_pred.nii.gz",
            "c_image_pred.nii.gz",
        ]
        summary = read(tmp_path / "eval")[1]
        assert sorted(scan["mask"] for scan in summary["scans"]) == masks
        assert summary["number_of_cases"] == 3


def test_a_summary_that_cannot_be_read_stops_before_the_first_case(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    missing = [{"image": "missing.nii.gz", "label": "missing.nii.gz"}]
    with pytest.raises(InputError, match=r"summary\.json: not readable"):
        evaluate(missing, SegmentationReport(tmp_path, NAMES))


def test_a_second_run_starts_afresh_and_replaces_the_files(tmp_path):
    cases = make_cases(tmp_path)
    report = SegmentationReport(tmp_path / "eval", NAMES)
    evaluate(cases, report)
    evaluate(cases[:1], report)
    table, summary = read(tmp_path / "eval")
    assert (len(table), summary["number_of_cases"]) == (2, 1)
    assert summary["cases"]["liver"]["dice"]["sd"] is None


def test_a_scan_that_fails_is_in_no_figure(tmp_path):
    cases = make_cases(tmp_path)
    evaluate(cases, SegmentationReport(tmp_path / "right", NAMES))
    gone = {"image": "/gone.nii.gz", "label": cases[0]["label"]}
    wrong = write_case(tmp_path, "wrong", np.full((20, 16, 6), 7), np.full((20, 16, 6), 7))
    report = SegmentationReport(tmp_path / "eval", NAMES, masks_dir=tmp_path / "masks")
    with pytest.raises(InputError, match=r"^2 of 5 scans failed"):
        evaluate([gone, cases[0], wrong, *cases[1:]], report, tolerant=True)
    (right, summary), (table, other) = read(tmp_path / "right"), read(tmp_path / "eval")
    pd.testing.assert_frame_equal(right, table)
    assert summary.pop("failures") == []
    assert [failure["image"] for failure in other["failures"]] == [gone["image"], wrong["image"]]
    assert "from 7 to 7, expected 0 to 2" in other.pop("failures")[1]["error"]
    assert summary.pop("seconds").keys() == other.pop("seconds").keys()
    assert json.dumps(summary) == json.dumps(other)
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 3


def test_where_all_scans_fail_there_is_no_figure(tmp_path):
    gone = [{"image": f"/gone/{number}.nii.gz", "label": "/gone.nii.gz"} for number in range(2)]
    with pytest.raises(InputError, match=r"^2 of 2 scans failed"):
        evaluate(gone, SegmentationReport(tmp_path / "eval", NAMES), tolerant=True)
    assert list((tmp_path / "eval").iterdir()) == []


def test_warnings_of_scan_and_label_are_in_the_summary(tmp_path):
    def warn(item):
        item["image"].meta["warnings"], item["label"].meta["warnings"] = "one.", "three."
        item["image"].meta["flags"] = "modality: two."
        return AsDiscreted("pred", argmax=True)(item)

    cases = make_cases(tmp_path)[:1]
    evaluate(cases, SegmentationReport(tmp_path / "eval", NAMES), postprocessing=warn)
    assert read(tmp_path / "eval")[1]["warnings"] == {
        cases[0]["image"]: ["one.", "two.", "label: three."]
    }


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    # Three cases and two that fail on two ranks, both of which meet one that fails; the sampler
    # gives one case twice.
    cases = [
        *make_cases(tmp_path),
        *({"image": f"/gone/{n}.nii", "label": f"/gone/{n}.nii"} for n in range(2)),
    ]
    one = SegmentationReport(tmp_path / "one", NAMES, lesion_class="lesion", organ_class="liver")
    with pytest.raises(InputError, match=r"^2 of 5 scans failed"):
        evaluate(cases, one, tolerant=True)
    arguments = [json.dumps(cases), str(tmp_path / "two"), str(tmp_path / "meeting_point")]
    run_two_ranks(__file__, *arguments)
    (one, summary), (two, other) = read(tmp_path / "one"), read(tmp_path / "two")
    pd.testing.assert_frame_equal(one, two)
    assert summary.pop("seconds").keys() == other.pop("seconds").keys()
    assert len(summary["failures"]) == 2
    for written in (summary, other):
        written["failures"].sort(key=lambda failure: failure["image"])
    assert json.dumps(summary) == json.dumps(other)


def test_folder_that_cannot_be_written_stops_before_the_first_case(tmp_path):
    (tmp_path / "file").write_text("in the way")
    missing = [{"image": "missing.nii.gz", "label": "missing.nii.gz"}]
    with pytest.raises(InputError, match=r"file.eval: the folder cannot be written"):
        evaluate(missing, SegmentationReport(tmp_path / "file" / "eval", NAMES))


def test_different_grids_name_both_shapes_and_the_file(tmp_path):
    case = write_case(tmp_path, "odd", np.zeros((8, 8, 4)), np.zeros((8, 8, 5)))
    with pytest.raises(InputError, match=r"odd_image.nii.gz: .*\(8, 8, 4\).*\(8, 8, 5\)"):
        evaluate([case], SegmentationReport(tmp_path / "eval", NAMES))
    assert list((tmp_path / "eval").iterdir()) == []


def test_label_value_outside_the_classes_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"_image.nii.gz: .* from 0 to 2, expected 0 to 1"):
        evaluate(
            make_cases(tmp_path), SegmentationReport(tmp_path / "eval", ["background", "liver"])
        )


def test_references_without_a_voxel_are_refused(tmp_path):
    cases = [write_case(tmp_path, name, np.ones((8, 8, 4)), np.zeros((8, 8, 4))) for name in "ab"]
    with pytest.raises(
        InputError,
        match=r"the labels of all 2 cases hold no voxel of liver, lesion.*check which of",
    ):
        evaluate(cases, SegmentationReport(tmp_path / "eval", NAMES))
    assert list((tmp_path / "eval").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "expected_words"),
    [
        (lambda item: item, "one channel of class indices"),
        (lambda item: {**item, "pred": item["pred"][:1] * 0.5}, "not class indices"),
        (lambda item: {**item, "label": item["label"].as_tensor()}, "without an affine"),
        (lambda item: {**item, "image": item["image"].as_tensor()}, "names no file"),
        (lambda item: {**item, "image": MetaTensor(item["image"].as_tensor())}, "names no file"),
    ],
)
def test_output_that_is_no_label_map_is_refused(tmp_path, change, expected_words):
    with pytest.raises(InputError, match=expected_words):
        evaluate(
            make_cases(tmp_path),
            SegmentationReport(tmp_path / "eval", NAMES),
            postprocessing=change,
        )


if __name__ == "__main__":  # one rank of test_two_processes_write_what_one_writes
    cases, output_dir, meeting_point, rank = sys.argv[1:]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=int(rank), world_size=2
    )
    # The error is the first rank's, with which torchrun ends all.
    with pytest.raises(InputError, match="scans failed") if rank == "0" else nullcontext():
        evaluate(
            json.loads(cases),
            SegmentationReport(output_dir, NAMES, lesion_class="lesion", organ_class="liver"),
            sampler=lambda dataset: DistributedSampler(dataset, shuffle=False),
            tolerant=True,
        )
    torch.distributed.destroy_process_group()
