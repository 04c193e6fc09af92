from __future__ import annotations

import base64
import io
import json
import math
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.waiting import SECONDS
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted
from PIL import Image

from liverseg.errors import InputError
from liverseg.handlers import SegmentationReport
from liverseg.outputs.overlays import axial_pngs, load_scan, plane_png
from liverseg.outputs.surface import surface_png
from liverseg.transforms import LoadVolumed
from liverseg.workbench.report import html
from liverseg.workbench.report.curves import curves_png

HISTORY = """epoch,iteration,loss,learning_rate,val_mean_dice,seconds
1,5,1.2,1e-3,,3.1
2,10,0.5,1e-3,0.75,6.0
"""
FACTS = {
    "best_val_mean_dice": 0.75,
    "best_epoch": 2,
    "epochs": 2,
    "seconds": 6.0,
    "peak_gpu_memory_gb": None,
    "versions": {"torch": "2.13", "liverseg": "0.1"},
}
SPACING_MM = (2.0, 3.0, 5.0)


class Page(HTMLParser):
    """The parts of the page that the tests read."""

    def __init__(self, text):
        super().__init__()
        self.images, self.tables, self.links, self.text = [], {}, [], []
        self.table, self.cell = None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [
            value for name, value in attributes.items() if name in ("src", "href", "srcset", "data")
        ]
        if tag == "img":
            self.images.append(attributes)
        elif tag == "table":
            self.table = self.tables.setdefault(attributes.get("id", attributes.get("class")), [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
            self.cell = tag
        elif tag == "small":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        if tag == self.cell:
            self.cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self.cell:
            self.table[-1][-1] += data


class ImageIsTheAnswer(torch.nn.Module):
    """Logits of two classes from an image that holds the class to predict."""

    def forward(self, image):
        return torch.cat([1 - image, image], dim=1)


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def block(shape, *bounds):
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(*bound) for bound in bounds)] = 1
    return volume


@pytest.fixture
def run(tmp_path, write_nifti):
    """Write what a demo leaves: a history, two evaluations of two cases, scan, mask and label."""
    affine = np.diag([*SPACING_MM, 1])
    shape = (40, 32, 12)
    evaluations = {}
    for name, shift in (("raw", 4), ("3-D", 1)):
        cases = []
        for case in range(2):
            reference = block(shape, (8, 24 + case), (6, 20), (2, 9))
            prediction = np.roll(reference, shift + case, 0)
            if name == "3-D" and case == 1:
                prediction[:] = 0
            files = {"image": prediction, "label": reference}
            cases.append(
                {
                    key: write_nifti(f"{name}/{key}-{case}.nii.gz", files[key], affine)
                    for key in files
                }
            )
        folder = tmp_path / "evaluation" / name
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases, LoadVolumed(["image", "label"]))),
            network=ImageIsTheAnswer(),
            postprocessing=AsDiscreted("pred", argmax=True),
            val_handlers=[SegmentationReport(folder, ["background", "liver"])],
        )
        evaluator.run()
        evaluations[name] = folder
        # The demo evaluates the same scans each time.
        table = pd.read_csv(folder / "cases.csv")
        table["case"] = [f"/data/volume-{case}.nii" for case in range(2)]
        table.to_csv(folder / "cases.csv", index=False)
    (tmp_path / "history.csv").write_text(HISTORY)
    image = np.random.default_rng(0).normal(60, 300, shape).astype(np.int16)
    return SimpleNamespace(
        path=tmp_path / "report.html",
        history=tmp_path / "history.csv",
        evaluations=evaluations,
        image=write_nifti("scan.nii.gz", image, affine),
        mask=write_nifti("mask.nii.gz", block(shape, (8, 24), (6, 20), (2, 9)), affine),
        reference=write_nifti(
            "reference.nii.gz", 2 * block(shape, (10, 26), (6, 20), (2, 9)), affine
        ),
    )


def shown(name, image, mask, reference):
    return html.ShownScan(name, image, mask, reference, f"Who made {name}.")


def write(run, **changes):
    arguments = {
        "title": "Liver & <friends>",
        "history": run.history,
        "evaluations": run.evaluations,
        "scans": [shown("a <scan>", run.image, run.mask, run.reference)],
        "facts": FACTS,
    }
    html.write_report(run.path, **(arguments | changes))
    return Page(run.path.read_text(encoding="utf-8"))


def test_what_a_run_says_against_a_mask_is_shown_with_it(run, tmp_path):
    flags = {"volume": "the liver has 12 ml, expected 600 to 4000 ml: look."}
    scans = [
        {"image": run.image, "mask": "mask.nii.gz", "flags": flags},
        {"image": "b", "mask": "b.nii.gz"},
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"scans": scans}))
    write(run)
    assert "The liver has 12 ml, expected 600 to 4000 ml: look." in run.path.read_text()


def test_page_is_one_file_with_pictures(run):
    page = write(
        run,
        scans=[
            shown("a <scan>", run.image, run.mask, run.reference),
            shown("b", run.image, run.mask, None),
        ],
    )
    assert len(page.images) == 2 * (3 + 1 + 6) + 1
    for image in page.images:
        header, data = image["src"].split(",")
        assert header == "data:image/png;base64"
        assert decode(base64.b64decode(data)).shape[:2] == (
            int(image["height"]),
            int(image["width"]),
        )
        assert image["alt"]
    assert all(link.startswith("data:") for link in page.links)
    text = " ".join("".join(page.text).split())
    assert "Liver & <friends>" in text
    assert "a <scan> Who made a <scan>. " in text
    assert "Phantoms are synthetic drawings" in text
    assert "Nothing on this page says anything about clinical accuracy" in text


def test_numbers_of_scans_are_those_of_the_files(run):
    scans = [shown("a", run.image, run.mask, run.reference), shown("b", run.image, run.mask, None)]
    text = " ".join("".join(write(run, scans=scans).text).split())
    voxels = 16 * 14 * 7
    assert f"{voxels * 2 * 3 * 5 / 1000:.0f} ml liver volume" in text
    assert f"{2 * (14 * 14 * 7) / (2 * voxels):.3f} Dice" in text
    # The reference holds the value 2, a lesion: part of the liver.
    assert text.count(f"{voxels * 2 * 3 * 5 / 1000:.0f} ml in the reference") == 1


def test_comparison_holds_the_values_of_the_summaries(run):
    page = write(run, scans=[])
    rows = {row[0]: row[1:] for row in page.tables["comparison"][1:]}
    assert list(rows) == ["raw", "3-D"]
    tables = {name: pd.read_csv(folder / "cases.csv") for name, folder in run.evaluations.items()}
    pooled = {
        name: json.loads((run.evaluations[name] / "summary.json").read_text())["pooled"]
        for name in tables
    }
    for name, table in tables.items():
        dice, iou, bf_score, hd95, assd, volume_error, cases = rows[name]
        assert dice.split(" ")[:3] == [
            f"{table['dice'].mean():.3f}",
            "±",
            f"{table['dice'].std(ddof=1):.3f}",
        ]
        assert iou.split(" ")[0] == f"{pooled[name]['classes']['liver']['iou']:.3f}"
        assert bf_score.split(" ")[0] == f"{pooled[name]['mean_bf_score']:.3f}"
        known = table["hd95_mm"].dropna()
        assert hd95 == f"{known.mean():.1f}" + (
            f" ± {known.std(ddof=1):.1f}" if len(known) > 1 else ""
        )
        known = table["assd_mm"].dropna()
        assert assd == f"{known.mean():.2f}" + (
            f" ± {known.std(ddof=1):.2f}" if len(known) > 1 else ""
        )
        errors = table["volume_error_percent"]
        error = f"{errors.mean():+.1f} ± {errors.std(ddof=1):.1f}"
        assert volume_error == error.replace("-", "−")
        assert cases == ("2" if name == "raw" else "2 1 empty")
    assert "pp" not in "".join(rows["raw"])
    dice, iou, bf_score = (
        cell.split(" ", 3 if cell.count("±") else 1)[-1] for cell in rows["3-D"][:3]
    )
    difference = 100 * (tables["3-D"]["dice"].mean() - tables["raw"]["dice"].mean())
    assert dice == f"{difference:+.1f} pp".replace("-", "−")
    difference = 100 * (
        pooled["3-D"]["classes"]["liver"]["iou"] - pooled["raw"]["classes"]["liver"]["iou"]
    )
    assert iou == f"{difference:+.1f} pp".replace("-", "−")
    difference = 100 * (pooled["3-D"]["mean_bf_score"] - pooled["raw"]["mean_bf_score"])
    assert bf_score == f"{difference:+.1f} pp".replace("-", "−")

    volumes_ml = tables["raw"]["reference_volume_ml"]
    assert page.tables["cases"][1:] == [
        [
            f"volume-{i}.nii",
            f"{volumes_ml[i]:.0f}",
            *(f"{table['dice'][i]:.3f}" for table in tables.values()),
        ]
        for i in range(2)
    ]


def test_scans_that_failed_are_counted_and_those_called_alike_told_apart(run):
    folder = run.evaluations["raw"]
    summary = json.loads((folder / "summary.json").read_text())
    summary["failures"] = [{"image": "/data/gone.nii", "error": "not there"}]
    (folder / "summary.json").write_text(json.dumps(summary))
    for other in run.evaluations.values():
        table = pd.read_csv(other / "cases.csv")
        table["case"] = ["/data/s1/ct.nii", "/data/s2/ct.nii"]
        table.to_csv(other / "cases.csv", index=False)
    page = write(run, scans=[])
    assert [row[-1] for row in page.tables["comparison"][1:]] == ["2 1 failed", "2 1 empty"]
    assert [row[0] for row in page.tables["cases"][1:]] == ["/data/s1/ct.nii", "/data/s2/ct.nii"]


def test_facts_without_a_value_are_left_out(run):
    assert write(run, scans=[]).tables["facts"] == [
        ["Best validation Dice", "0.75"],
        ["Best epoch", "2"],
        ["Epochs", "2"],
        ["Training time, seconds", "6"],
        ["Versions", "torch 2.13, liverseg 0.1"],
    ]


ORIENTATIONS = ["RAS", "LPS", "LAS", "RPI", "SRA", "ASL", "IPR"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_are_radiological_whatever_the_storage(write_nifti, tmp_path, orientation):
    # A bright block at the patient's right, front and head.
    shape = (40, 48, 30)
    right_front_head = block(shape, (26, 38), (30, 46), (18, 28))
    volume = np.where(right_front_head, 200.0, -900.0).astype(np.float32)
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    files = []
    for name, array in (("image", volume), ("mask", np.zeros_like(right_front_head))):
        nib.save(
            nib.Nifti1Image(array, np.diag([2, 2.5, 4, 1])).as_reoriented(transform),
            tmp_path / f"{name}.nii.gz",
        )
        files.append(tmp_path / f"{name}.nii.gz")
    assert "".join(nib.aff2axcodes(nib.load(files[0]).affine)) == orientation
    # The slices through the middle of the block, where a mask would put them.
    scan = load_scan(*files)
    scan.mask[30:34, 36:40, 22:24] = True
    for plane in ("axial", "coronal", "sagittal"):
        picture = decode(plane_png(scan, plane)).sum(axis=2)
        # Away from the letters and the scale bar, which are white as well.
        middle = np.array([40, 30]) + np.argwhere(picture[40:-70, 30:-30] > 600).mean(axis=0)
        row, column = middle / picture.shape
        assert row < 0.45, plane
        assert column < 0.45, plane


def test_pictures_have_the_proportions_of_the_patient(write_nifti):
    affine = np.diag([0.8, 0.8, 5.0, 1.0])
    image = write_nifti("image.nii.gz", np.zeros((200, 150, 40), np.int16), affine)
    mask = write_nifti("mask.nii.gz", block((200, 150, 40), (50, 100), (50, 100), (10, 30)), affine)
    scan = load_scan(image, mask)
    sizes_mm = {"axial": (160, 120), "coronal": (160, 200), "sagittal": (120, 200)}
    for plane, (width_mm, height_mm) in sizes_mm.items():
        height, width, _ = decode(plane_png(scan, plane)).shape
        assert (width, height) == (width_mm * 4, height_mm * 4)


def test_long_scan_is_cut_to_the_surroundings_of_the_mask(write_nifti):
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    image = write_nifti("image.nii.gz", np.zeros((80, 80, 300), np.int16), affine)
    scan = load_scan(
        image,
        write_nifti("mask.nii.gz", block((80, 80, 300), (20, 60), (20, 60), (100, 140)), affine),
    )
    height, width, _ = decode(plane_png(scan, "coronal")).shape
    assert height / width == (200 + 2 * 80) / 320


def test_picture_goes_through_the_largest_slice_and_shows_both_masks(write_nifti):
    shape = (40, 40, 20)
    # An even grey, and a slice that is white where the mask is largest.
    image = np.full(shape, -1000, np.int16)
    image[:, :, 13] = 40
    mask = block(shape, (18, 22), (18, 22), (2, 18)) | block(shape, (10, 30), (10, 30), (13, 14))
    reference = block(shape, (5, 15), (10, 30), (2, 18))
    scan = load_scan(
        *(write_nifti(f"{n}.nii", a) for n, a in (("i", image), ("m", mask), ("r", reference)))
    )
    picture = decode(plane_png(scan, "axial"))
    scale = len(picture) / 40
    red, _, blue = np.moveaxis(picture, 2, 0)
    warm, cool = red - blue > 20, blue - red > 60

    def at(x, y):  # patient's right is on the left, front on top
        return int((40 - x - 0.5) * scale), int((40 - y - 0.5) * scale)

    column, row = at(25, 25)
    assert warm[row, column]
    assert 120 < picture[row, column].mean() < 200
    column, row = at(34, 34)
    assert np.ptp(picture[row, column]) < 10
    assert abs(picture[row, column].mean() - 127) < 10
    # The reference is an outline: at its border, not inside it.
    rows, columns = np.nonzero(cool)
    assert abs(columns.min() - (40 - 15) * scale) < 0.5 * scale
    assert abs(columns.max() - (40 - 5) * scale) < 0.5 * scale
    assert abs(rows.min() - (40 - 30) * scale) < 0.5 * scale
    column, row = at(8, 20)
    assert not cool[row, column]


def test_window_is_of_ct_or_from_the_intensities(write_nifti):
    mask = write_nifti("mask.nii", np.zeros((30, 30, 30)))
    ct = np.random.default_rng(0).uniform(-1000, 900, (30, 30, 30)).astype(np.float32)
    assert load_scan(write_nifti("ct.nii", ct), mask).window == (-160, 240)
    mr = (ct + 1000) * 0.01
    assert load_scan(write_nifti("mr.nii", mr), mask).window == pytest.approx(
        np.percentile(mr, (1, 99.5)), rel=1e-4
    )


@pytest.mark.parametrize("shape", [(24, 20, 1), (1, 20, 24), (20, 1, 24), (3, 3, 3)])
def test_empty_mask_and_thin_scans_give_pictures(run, write_nifti, shape):
    image = write_nifti("thin.nii.gz", np.zeros(shape, np.int16), np.diag([1, 2, 6, 1]))
    mask = write_nifti("empty.nii.gz", np.zeros(shape, np.uint8), np.diag([1, 2, 6, 1]))
    page = write(run, scans=[shown("thin", image, mask, mask)])
    text = " ".join("".join(page.text).split())
    assert "0 ml liver volume 0 ml in the reference – Dice" in text
    assert "The mask is empty" in text


def test_empty_mask_shows_where_the_reference_is(write_nifti):
    shape = (20, 20, 30)
    image = np.zeros(shape, np.int16)
    image[:, :, 25] = 100
    files = [
        write_nifti(f"{name}.nii", array)
        for name, array in (
            ("i", image),
            ("m", np.zeros(shape)),
            ("r", block(shape, (5, 15), (5, 15), (25, 26))),
        )
    ]
    scan = load_scan(*files)
    assert scan.dice == 0
    assert np.median(decode(plane_png(scan, "axial"))) == 255
    assert len(axial_pngs(scan)) == 1


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: run.history.unlink(), r"history.csv: .*No such file.*expected"),
        (lambda run: run.history.write_text("epoch,loss\n1,2\n"), r"history.csv: .*val_mean_dice"),
        (
            lambda run: run.history.write_text(HISTORY.splitlines()[0]),
            "history.csv: holds no epoch",
        ),
        (
            lambda run: (run.evaluations["3-D"] / "summary.json").unlink(),
            r"3-D/summary.json: .*No such file",
        ),
        (
            lambda run: (run.evaluations["3-D"] / "summary.json").write_text("{"),
            r"3-D/summary.json: not readable",
        ),
        (
            lambda run: (run.evaluations["raw"] / "summary.json").write_text("{}"),
            r"raw/summary.json: .*'cases'",
        ),
        (
            lambda run: (run.evaluations["raw"] / "cases.csv").unlink(),
            r"raw/cases.csv: .*No such file",
        ),
        (
            lambda run: (run.evaluations["raw"] / "cases.csv").write_text("a,b\n1,2\n"),
            r"raw/cases.csv: not readable",
        ),
    ],
)
def test_wrong_file_is_named_and_the_old_report_kept(run, damage, sentence):
    run.path.write_text("the old one")
    damage(run)
    with pytest.raises(InputError, match=sentence) as raised:
        write(run)
    assert "\n" not in str(raised.value)
    assert run.path.read_text() == "the old one"


def test_the_surface_is_seen_from_the_front_with_the_head_up(write_nifti):
    # High on the patient's right, low on the left.
    mask = block((40, 32, 30), (22, 34), (8, 20), (18, 28)) + block(
        (40, 32, 30), (4, 10), (8, 20), (2, 6)
    )
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    scan = load_scan(
        write_nifti("i.nii", np.zeros(mask.shape, np.int16), affine),
        write_nifti("m.nii", mask, affine),
    )
    lit = decode(surface_png(scan))[..., 0] > 40
    rows, columns = np.nonzero(lit)
    assert 0.05 < lit.mean() < 0.6
    left, right = rows[columns < lit.shape[1] / 2], rows[columns > lit.shape[1] / 2]
    assert len(left) > len(right)
    assert left.mean() < right.mean()


def test_a_facet_that_faces_the_light_has_a_colour(write_nifti):
    axes = np.ogrid[:60, :60, :60]
    ball = sum((axis - 30) ** 2 for axis in axes) <= 25**2
    image = write_nifti("i.nii", np.zeros(ball.shape, np.int16), np.eye(4))
    scan = load_scan(image, write_nifti("m.nii", ball.astype(np.uint8), np.eye(4)))
    assert decode(surface_png(scan))[..., 0].max() >= 200


def test_mask_of_another_grid_is_refused(run, write_nifti):
    with pytest.raises(InputError, match=r"other\.nii: its grid is not that of .*scan\.nii\.gz"):
        write(
            run, scans=[shown("a", run.image, write_nifti("other.nii", block((40, 32, 11))), None)]
        )


def test_voxels_of_an_oblique_scan_are_measured_by_the_determinant(write_nifti):
    angle = math.radians(20)
    rotation = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-2, 3, 4])
    image = write_nifti("image.nii", np.zeros((20, 20, 20), np.int16), affine)
    scan = load_scan(
        image, write_nifti("mask.nii", block((20, 20, 20), (5, 15), (5, 15), (5, 15)), affine)
    )
    assert scan.mask_ml == pytest.approx(1000 * 24 / 1000)


def test_curves_without_a_validation(tmp_path):
    (tmp_path / "history.csv").write_text("\n".join(HISTORY.splitlines()[:2]))
    assert decode(curves_png(tmp_path / "history.csv")).std() > 0


@pytest.mark.real_data
def test_dicom_series_and_nifti_of_one_scan_in_one_report(run, samples, tmp_path):
    stored = nib.load(samples / "ts_ct_dicom_organs.nii.gz")
    liver = np.asarray(stored.dataobj) == 5
    nib.save(nib.Nifti1Image(liver.astype(np.uint8), stored.affine), tmp_path / "liver.nii.gz")
    page = write(
        run, scans=[shown("series", samples / "ts_ct_dicom", tmp_path / "liver.nii.gz", None)]
    )
    millilitres = liver.sum() * abs(np.linalg.det(stored.affine[:3, :3])) / 1000
    assert f"{millilitres:.0f} ml liver volume" in " ".join("".join(page.text).split())
    # The liver is on the patient's right, so on the picture's left.
    axial = decode(base64.b64decode(page.images[0]["src"].split(",")[1]))
    columns = np.nonzero(axial[..., 0] - axial[..., 2] > 20)[1]
    assert columns.mean() < axial.shape[1] * 0.45


def test_report_opens_in_a_browser(run, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    write(run)
    picture = tmp_path / "browser.png"
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={picture}",
        "--window-size=1200,3000",
    ]
    subprocess.run(
        [chromium, *options, run.path.as_uri()], check=True, capture_output=True, timeout=SECONDS
    )
    seen = decode(picture.read_bytes())
    assert seen.shape[:2] == (3000, 1200)
    # Text and tables are on white; the pictures bring the mask's orange and the scan's black.
    orange = (seen[..., 0] - seen[..., 2] > 100).mean()
    assert orange > 0.001
    assert 0.3 < (seen.min(axis=2) > 245).mean() < 0.95
