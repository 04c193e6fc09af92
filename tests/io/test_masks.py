from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bundle_runs import BUNDLE
from helpers.full_disk import full_disk

from liverseg.errors import InputError
from liverseg.io import masks as masks_module
from liverseg.io import paths
from liverseg.io.masks import MaskFolder, find_mask, recorded_scans

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])


def mask(value: int, shape=(3, 4, 2)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def value(path: Path) -> int:
    (found,) = np.unique(nib.load(path).dataobj)
    return int(found)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def save_all(folder: Path, scans: list[str], **options) -> dict[str, str]:
    """The names of the masks of one run over these scans; the mask of scan n holds n."""
    masks = MaskFolder(folder, "liver", scans=[{"image": scan} for scan in scans], **options)
    return {
        scan: masks.save(scan, mask(number), AFFINE).name for number, scan in enumerate(scans, 1)
    }


@pytest.mark.parametrize(
    ("scans", "names"),
    [
        (["/d/s0001/ct.nii.gz"], ["ct_liver"]),
        (["/d/a.nii", "/d/b.NII.GZ", "/d/c"], ["a_liver", "b_liver", "c_liver"]),
        # TotalSegmentator's layout.
        (
            ["/d/s0001/ct.nii.gz", "/d/s0002/ct.nii.gz", "/d/x.nii"],
            ["s0001_ct_liver", "s0002_ct_liver", "x_liver"],
        ),
        (
            ["/p1/visit/ct/img.nii", "/p2/visit/ct/img.nii"],
            ["p1_visit_ct_img_liver", "p2_visit_ct_img_liver"],
        ),
        # Folders of DICOM series.
        (["/d/1.2.840.1", "/d/1.2.840.2"], ["1.2.840.1_liver", "1.2.840.2_liver"]),
        (["/d/1/series", "/d/2/series"], ["1_series_liver", "2_series_liver"]),
        # One folder to macOS and Windows.
        (["/d/P1/ct.nii", "/d/p2/CT.nii"], ["P1_ct_liver", "p2_CT_liver"]),
        # What tells two apart makes one the same as a third.
        (
            ["/d/s1/ct.nii", "/d/s2/ct.nii", "/e/s1_ct.nii"],
            ["d_s1_ct_liver", "s2_ct_liver", "e_s1_ct_liver"],
        ),
    ],
)
def test_scans_called_alike_get_the_folders_that_tell_them_apart(tmp_path, scans, names):
    found = save_all(tmp_path, scans)
    assert list(found.values()) == [f"{name}.nii.gz" for name in names]
    assert [value(tmp_path / name) for name in found.values()] == list(range(1, len(scans) + 1))


@pytest.mark.parametrize(
    "scans", [["/d/a.nii", "/d/a.nii.gz"], ["/d/a.nii.gz", "/d/A.NII"], ["/d/a", "/d/a.dcm"]]
)
def test_where_no_folder_tells_them_apart_the_path_does(tmp_path, scans):
    first = save_all(tmp_path / "one", scans)
    assert len({name.lower() for name in first.values()}) == 2
    assert all(
        name.lower().startswith("a_") and name.endswith("_liver.nii.gz") for name in first.values()
    )
    # Whatever else is there, and in whatever order.
    assert save_all(tmp_path / "two", ["/d/x.nii", *scans[::-1]]).items() >= first.items()


def test_names_that_no_file_system_takes_are_cut(tmp_path):
    study = "1.2.840.113619.2.55.3.2831868886.735.1371630151.2" * 3
    scans = [
        f"/{study}/{'ü' * 120}.nii",
        f"/{study[:-1]}3/{'ü' * 120}.nii",
        "/d/not UTF-8 \udcfc.nii",
    ]
    found = save_all(tmp_path, scans)
    assert len(set(found.values())) == 3
    assert sorted(found.values()) == [name for name in names_in(tmp_path) if name != "summary.json"]
    assert save_all(tmp_path, scans) == found


def test_one_scan_at_a_time_overwrites_no_other(tmp_path):
    scans = [f"/d/s{number}/ct.nii.gz" for number in (1, 2, 3)] + [
        "/d/s1/ct.nii",
        "/d/S1/CT.nii.gz",
    ]
    names = {scan: save_all(tmp_path, [scan])[scan] for scan in scans}
    assert list(names.values())[:3] == [
        "ct_liver.nii.gz",
        "s2_ct_liver.nii.gz",
        "s3_ct_liver.nii.gz",
    ]
    assert len({name.lower() for name in names.values()}) == len(scans)
    for number, scan in enumerate(scans, 2):
        MaskFolder(tmp_path, "liver").save(scan, mask(number), AFFINE)
    # Each has replaced its own.
    assert names_in(tmp_path) == sorted([*names.values(), "summary.json"])
    assert [value(tmp_path / names[scan]) for scan in scans] == [2, 3, 4, 5, 6]
    # In one run too, they keep the names that they have.
    assert save_all(tmp_path, scans) == names


def test_many_masks_in_a_folder_make_the_next_no_slower(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        masks_module, "stem_of", lambda path: calls.append(path) or paths.stem_of(path)
    )
    needed = []
    for number in range(6):
        calls.clear()
        MaskFolder(tmp_path, "liver").save(f"/d/{number}.nii", mask(number), AFFINE)
        needed.append(len(calls))
    assert len(set(needed)) == 1


def test_a_mask_of_which_nobody_knows_whose_it_is_stays(tmp_path):
    nib.save(nib.Nifti1Image(mask(9), AFFINE), tmp_path / "ct_liver.nii.gz")
    assert save_all(tmp_path, ["/d/s1/ct.nii.gz"]) == {"/d/s1/ct.nii.gz": "s1_ct_liver.nii.gz"}
    assert value(tmp_path / "ct_liver.nii.gz") == 9


def test_another_postfix_or_suffix_is_another_mask(tmp_path):
    for options in (
        {"postfix": "liver"},
        {"postfix": "organs"},
        {"postfix": "liver", "suffix": ".nii"},
    ):
        MaskFolder(tmp_path, **options).save("/d/a.nii", mask(1), AFFINE)
    assert names_in(tmp_path) == [
        "a_liver.nii",
        "a_liver.nii.gz",
        "a_organs.nii.gz",
        "summary.json",
    ]
    assert len(recorded_scans(tmp_path)) == 3


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
    scans = [f"/d/s{number}/ct.nii.gz" for number in range(12)]

    def save(number: int) -> Path:
        return MaskFolder(tmp_path, "liver").save(scans[number], mask(number), AFFINE)

    with ThreadPoolExecutor(6) as threads:
        paths = list(threads.map(save, range(12)))
    assert [value(path) for path in paths] == list(range(12))
    assert {entry["image"]: entry["mask"] for entry in recorded_scans(tmp_path)} == {
        scan: path.name for scan, path in zip(scans, paths, strict=True)
    }


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 1)])
def test_the_file_lies_where_the_scan_does_for_every_reader(tmp_path, suffix, shape):
    labels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    path = MaskFolder(tmp_path / "new", "liver", suffix).save("/d/a.nii", labels, AFFINE)
    assert path == tmp_path / "new" / f"a_liver{suffix}"
    image = nib.load(path)
    assert image.shape == shape and image.get_data_dtype() == np.uint8
    assert np.array_equal(image.dataobj, labels)
    (sform, sform_code), (qform, qform_code) = (
        image.get_sform(coded=True),
        image.get_qform(coded=True),
    )
    assert np.allclose(sform, AFFINE) and np.allclose(qform, AFFINE, atol=1e-5)
    assert sform_code == qform_code > 0
    assert image.header.get_xyzt_units()[0] == "mm"
    read = sitk.ReadImage(str(path))
    corner = read.TransformIndexToPhysicalPoint([n - 1 for n in shape])
    assert np.allclose(np.array(corner) * [-1, -1, 1], (AFFINE @ [*(n - 1 for n in shape), 1])[:3])


def test_the_summary_says_what_was_made_of_each_scan(tmp_path):
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:2], labels[2:, :1], labels[9, 9, 9] = 1, 2, 7
    masks = MaskFolder(tmp_path, "organs", bundle_root=BUNDLE.parent / "deeplabv3_abdomen_mr")
    masks.save("/d/b.nii", labels, np.diag([2, 2, 2.5, 1]), ["it is odd."])
    masks.record_failure("/d/a.nii", "/d/a.nii: not readable.")
    failed, done = json.loads((tmp_path / "summary.json").read_text())["scans"]
    assert failed == {"image": "/d/a.nii", "error": "/d/a.nii: not readable."}
    assert done.pop("volume_ml") == {
        "liver": 2.0,
        "right kidney": 0.8,
        "left kidney": 0,
        "spleen": 0,
        "7": 0.01,
    }
    assert (done["image"], done["mask"], done["warnings"]) == (
        "/d/b.nii",
        "b_organs.nii.gz",
        ["it is odd."],
    )
    assert done["bundle"] == "deeplabv3_abdomen_mr"
    assert "flags" not in done
    masks.save("/d/b.nii", labels, AFFINE, flags={"volume": "it is small."})
    assert recorded_scans(tmp_path)[1]["flags"] == {"volume": "it is small."}


def test_a_scan_that_fails_keeps_the_mask_that_it_had(tmp_path):
    masks = MaskFolder(tmp_path, "liver")
    masks.save("/d/s1/ct.nii", mask(1), AFFINE)
    masks.record_failure("/d/s1/ct.nii", "no")
    masks.save("/d/s2/ct.nii", mask(2), AFFINE)
    assert find_mask(tmp_path, "/d/s1/ct.nii") == tmp_path / "ct_liver.nii.gz"
    assert value(tmp_path / "ct_liver.nii.gz") == 1
    masks.save("/d/s1/ct.nii", mask(3), AFFINE)
    assert value(tmp_path / "ct_liver.nii.gz") == 3
    assert all("error" not in entry for entry in recorded_scans(tmp_path))


def test_find_mask_knows_scans_by_their_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = MaskFolder("masks", "liver").save("data/../a.nii", mask(1), AFFINE)
    assert find_mask("masks", tmp_path / "a.nii") == path
    assert find_mask("masks", tmp_path / "b.nii") is None
    assert find_mask(tmp_path / "nowhere", "a.nii") is None
    path.unlink()
    assert find_mask("masks", tmp_path / "a.nii") is None


def test_a_disk_that_is_full_leaves_the_mask_that_was_there(tmp_path):
    masks = MaskFolder(tmp_path, "liver", ".nii")
    masks.save("/d/a.nii", mask(1), AFFINE)
    with (
        full_disk(1000),
        pytest.raises(InputError, match=r"a_liver\.nii: could not be saved \(File too large\)"),
    ):
        masks.save("/d/a.nii", mask(2, (20, 20, 20)), AFFINE)
    assert value(tmp_path / "a_liver.nii") == 1
    assert names_in(tmp_path) == ["a_liver.nii", "summary.json"]


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", "nii", "nii.gz", ".NII", ""])
def test_what_masks_are_not_written_in_is_refused(tmp_path, suffix):
    with pytest.raises(InputError, match=r"output_ext: found '.*', expected \.nii\.gz or \.nii"):
        MaskFolder(tmp_path, "liver", suffix)


@pytest.mark.parametrize("postfix", ["", "../liver", "a/b"])
def test_a_postfix_is_part_of_a_name(tmp_path, postfix):
    with pytest.raises(InputError, match="output_postfix: found"):
        MaskFolder(tmp_path, postfix)


@pytest.mark.parametrize("content", ["{", "[]", '{"scans": 3}', '"x"'])
def test_a_summary_that_cannot_be_read_is_not_overwritten(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    masks = MaskFolder(tmp_path, "liver")
    for act in (masks.check, lambda: masks.save("/d/a.nii", mask(1), AFFINE)):
        with pytest.raises(InputError, match=r"summary\.json: not readable"):
            act()
    assert names_in(tmp_path) == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == content


def test_what_else_is_in_a_summary_stays(tmp_path):
    (tmp_path / "summary.json").write_text('{"number_of_cases": 3}')
    save_all(tmp_path, ["/d/a.nii"])
    assert json.loads((tmp_path / "summary.json").read_text())["number_of_cases"] == 3
