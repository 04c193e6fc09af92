from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import dataset_trees as trees
from helpers.waiting import SECONDS, wait_until

from liverseg.errors import InputError
from liverseg.workbench.datasets.chaos import CHAOS_CT, CHAOS_MR
from liverseg.workbench.datasets.convert import convert
from liverseg.workbench.datasets.nifti import LITS

COMMAND = [sys.executable, "-c", "from liverseg.workbench.cli import main; main()", "data"]


def overwrite(path: Path, content: bytes) -> None:
    """Change what a file holds, and nothing that can be seen from outside."""
    state = path.stat()
    assert len(content) == state.st_size
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def states(out: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for kind in ("images", "labels")
        for path in (out / kind).iterdir()
    }


def test_a_finished_case_is_not_read_again(tmp_path):
    trees.chaos_ct(tmp_path / "root")
    out = tmp_path / "out"
    path = convert(CHAOS_CT, tmp_path / "root", out, 3, 0)
    datalist, before = path.read_text(), states(out)
    # Whatever is read of this patient now is no DICOM.
    for file in (tmp_path / "root" / "Train_Sets" / "CT" / "2" / "DICOM_anon").iterdir():
        overwrite(file, b"x" * file.stat().st_size)
    assert convert(CHAOS_CT, tmp_path / "root", out, 3, 0).read_text() == datalist
    assert states(out) == before
    report = json.loads((out / "check.json").read_text())
    assert (report["ok"], report["broken"]) == (3, 0)


def test_what_is_gone_or_changed_is_made_again_and_nothing_else(tmp_path):
    truth = trees.chaos_ct(tmp_path / "root")
    out = tmp_path / "out"
    convert(CHAOS_CT, tmp_path / "root", out, 3, 0)
    before = states(out)
    (out / "labels" / "ct-1.nii.gz").unlink()
    (out / "labels" / ".ct-1.nii.gz.killed").write_bytes(b"half")
    picture = sorted((tmp_path / "root" / "Train_Sets" / "CT" / "10" / "Ground").iterdir())[0]
    os.utime(picture, (0, 0))
    convert(CHAOS_CT, tmp_path / "root", out, 3, 0)
    after = states(out)
    assert {Path(name).name for name in before if before[name] != after[name]} == {
        "ct-1.nii.gz",
        "ct-10.nii.gz",
    }
    assert before.keys() == after.keys()
    assert np.array_equal(np.asarray(nib.load(out / "labels" / "ct-1.nii.gz").dataobj), truth[1][1])


def test_killed_in_the_middle_and_started_again(tmp_path):
    trees.chaos_ct(tmp_path / "root", patients=range(1, 13))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "chaos-ct", tmp_path / "root", "--out", out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(
        lambda: len(list(out.glob("check/*.json"))) >= 2 or process.poll() is not None,
        interval_s=0.001,
    )
    process.send_signal(signal.SIGKILL)
    assert process.wait(SECONDS) == -signal.SIGKILL
    whole = list(out.glob("*/[!.]*.nii.gz"))
    assert 4 <= len(whole) < 24
    for path in whole:
        np.asarray(nib.load(path).dataobj)
    done = {path: path.stat().st_mtime_ns for path in out.glob("check/*.json")}
    convert(CHAOS_CT, tmp_path / "root", out, 5, 0)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(states(out)) == 24 and not list(out.rglob(".*"))


@pytest.fixture
def broken_lits(tmp_path) -> tuple[Path, dict[str, str]]:
    """Write LiTS with a good case and one case of each fault; return a word of each message."""
    root = tmp_path / "LiTS"
    image, label, affine = trees.pair(0, "LAS")
    air = np.zeros_like(label)
    air[:5, :5] = 1
    labels = {
        0: label,
        1: label,
        2: label[::-1],
        3: 0 * label,
        4: label,
        5: label[:, :-1],
        6: air,
        7: label,
    }
    for number, array in labels.items():
        grid = affine / 1000 if number == 7 else affine
        trees.save(root / f"volume-{number}.nii", image, grid)
        trees.save(root / f"segmentation-{number}.nii", array, grid)
    whole = (root / "volume-4.nii").read_bytes()
    (root / "volume-4.nii").write_bytes(whole[: len(whole) // 2])
    trees.save(root / "volume-8.nii", image, affine)
    reasons = {
        "lits-2": "flipped left-right",
        "lits-3": "the mask of the liver is empty",
        "lits-4": "volume-4.nii: not readable as a volume",
        "lits-5": "segmentation-5.nii: its grid",
        "lits-6": "does not lie over the liver",
        "lits-7": "the spacing is",
        "lits-8": "segmentation-8.nii: there is no such file",
    }
    return root, reasons


def test_broken_cases_are_named_and_left_out(tmp_path, broken_lits):
    root, reasons = broken_lits
    out = tmp_path / "out"
    run = subprocess.run(
        [*COMMAND, "lits", root, "--out", out, "--folds", "2"],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"error: {out}: 7 of 9 cases are broken and left out of dataset.json ({', '.join(reasons)})"
    )
    assert "Traceback" not in run.stderr
    content = json.loads((out / "dataset.json").read_text())
    assert [item["patient"] for item in content["training"]] == ["lits-0", "lits-1"]
    report = json.loads((out / "check.json").read_text())
    found = {case["name"]: case for case in report["cases"]}
    page = (out / "check.html").read_text()
    for name, words in reasons.items():
        assert found[name]["verdict"] == "broken"
        assert any(words in reason for reason in found[name]["reasons"]), found[name]["reasons"]
        assert f'<section class="case broken" id="{name}">' in page
    assert found["lits-0"]["verdict"] == "ok"

    # The next run takes up a case that was fixed.
    _, label, affine = trees.pair(0, "LAS")
    trees.save(root / "segmentation-8.nii", label, affine)
    with pytest.raises(InputError, match="6 of 9 cases are broken"):
        convert(LITS, root, out, 3, 0)
    assert len(json.loads((out / "dataset.json").read_text())["training"]) == 3

    with pytest.raises(
        InputError, match=r"dataset\.json is not written, with too few patients \(4 folds\)"
    ):
        convert(LITS, root, out, 4, 0)


@pytest.mark.parametrize("num_folds", [1, 4])
def test_folds_that_the_patients_cannot_fill_are_refused_before_anything_is_converted(
    tmp_path, num_folds
):
    trees.chaos_ct(tmp_path / "root")
    with pytest.raises(InputError, match=f"folds: found {num_folds} for 3 patients"):
        convert(CHAOS_CT, tmp_path / "root", tmp_path / "out", num_folds, 0)
    assert not (tmp_path / "out").exists()


def test_broken_chaos_cases_are_named(tmp_path):
    trees.chaos_ct(tmp_path, patients=(1, 2, 3, 4, 5, 6))
    folder = tmp_path / "Train_Sets" / "CT"
    (folder / "2" / "DICOM_anon" / "i0000,0000b.dcm").unlink()
    for path in (
        folder / "3" / "DICOM_anon" / "i0007,0000b.dcm",
        folder / "3" / "Ground" / "liver_GT_007.png",
    ):
        path.unlink()
    trees.write_pngs(folder / "4" / "Ground", np.zeros((10, 10, 1), np.uint8), ["liver_GT_003.png"])
    # The masks in the order of the positions, as a reader that sorts slices by position would pair
    # them.
    names = sorted((folder / "5" / "Ground").iterdir())
    for path, content in zip(names, [path.read_bytes() for path in reversed(names)], strict=True):
        path.write_bytes(content)
    (folder / "6" / "Ground" / "liver_GT_001.png").write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"5 of 6 cases are broken .*\(ct-2, ct-3, ct-4, ct-5, ct-6\)"
    ):
        convert(CHAOS_CT, tmp_path, tmp_path / "out", 2, 0)
    reasons = {
        case["name"]: case["reasons"]
        for case in json.loads((tmp_path / "out" / "check.json").read_text())["cases"]
    }
    assert "20 masks for 19 DICOM files" in reasons["ct-2"][0]
    assert "19.00 mm between i0008,0000b.dcm at" in reasons["ct-3"][0]
    assert "the mask has 10×10 pixels, the scan 48×56" in reasons["ct-4"][0]
    assert "flipped head-foot" in reasons["ct-5"][0]
    assert "not readable as a picture" in reasons["ct-6"][0]


def test_an_unknown_grey_is_broken(tmp_path):
    image, _, _ = trees.chaos_mr(tmp_path, patients=(1, 2))[1]["in"]
    ground = tmp_path / "Train_Sets" / "MR" / "1" / "T1DUAL" / "Ground"
    trees.write_pngs(
        ground,
        np.full((*image.shape[:2], 1), 90, np.uint8),
        [sorted(p.name for p in ground.iterdir())[0]],
    )
    with pytest.raises(InputError, match="2 of 4 cases are broken"):
        convert(CHAOS_MR, tmp_path, tmp_path / "out", 2, 0)
    assert "pixels of grey 90" in (tmp_path / "out" / "check.html").read_text()
