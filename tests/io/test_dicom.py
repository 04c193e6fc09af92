from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.dataset_trees import write_series

from liverseg.errors import InputError
from liverseg.io.dicom import find_series
from liverseg.io.volumes import read_volume

pydicom = pytest.importorskip("pydicom", reason='needs pip install ".[dicom]"')

SHAPE = (8, 9, 6)
SPACING = np.array([0.7, 0.8, 2.5])
ARRAY = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)
UIDS = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def affine_of(row, column, spacing=SPACING, origin=(-31.25, 12.5, 40.0), step=None) -> np.ndarray:
    """Map (column, row, slice) to RAS mm, for a series with these directions in LPS."""
    row, column = (np.array(axis) / np.linalg.norm(axis) for axis in (row, column))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[0], column * spacing[1]
    affine[:3, 2] = np.cross(row, column) * spacing[2] if step is None else step
    affine[:3, 3] = origin
    return np.diag([-1, -1, 1, 1]) @ affine


AXIAL = affine_of((1, 0, 0), (0, 1, 0))
DIRECTIONS = {
    "axial": AXIAL,
    "prone": affine_of((-1, 0, 0), (0, -1, 0)),
    "feet first": affine_of((-1, 0, 0), (0, 1, 0)),
    "coronal": affine_of((1, 0, 0), (0, 0, -1)),
    "sagittal": affine_of((0, 1, 0), (0, 0, -1)),
    "oblique": affine_of((0.9, 0.3, -0.1), np.cross((0.2, -0.3, 1), (0.9, 0.3, -0.1))),
}


def write(folder: Path, array=ARRAY, affine=AXIAL, name="{}.dcm", **options) -> Path:
    names = [name.format(k) for k in range(array.shape[2])]
    write_series(folder, array, affine, names, **{**UIDS, **options})
    return folder


def edit(file: Path, **tags) -> None:
    dataset = pydicom.dcmread(file)
    for tag, value in tags.items():
        if value is None:
            delattr(dataset, tag)
        else:
            setattr(dataset, tag, value)
    dataset.save_as(file)


def assert_is(path, array=ARRAY, affine=AXIAL) -> tuple[str, ...]:
    volume = read_volume(str(path))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, affine, atol=1e-5)
    return volume.warnings


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        read_volume(str(path))
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# --- order and place


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("numbers", ["of another order", "equal", "absent"])
def test_slices_are_ordered_by_where_they_lie(tmp_path, directions, numbers):
    affine = DIRECTIONS[directions]
    number = {
        "of another order": lambda k: (5 * k) % 6,
        "equal": lambda k: 1,
        "absent": lambda k: None,
    }[numbers]
    # The names run against the positions.
    write(
        tmp_path,
        ARRAY[:, :, ::-1],
        affine @ nib.affines.from_matvec(np.diag([1, 1, -1]), [0, 0, 5]),
    )
    for k in range(6):
        edit(tmp_path / f"{k}.dcm", InstanceNumber=number(k))
    assert assert_is(tmp_path, affine=affine) == ()


def test_a_series_is_as_itk_reads_it(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write(
        tmp_path,
        affine=DIRECTIONS["oblique"],
        PixelRepresentation=1,
        BitsStored=12,
        HighBit=11,
        RescaleIntercept=0,
    )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = read_volume(str(tmp_path))
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    for index in ((0, 0, 0), (7, 8, 5)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert np.allclose(volume.affine @ [*index, 1], [*point, 1], atol=1e-4)


def test_a_gap_is_refused_with_where_it_is(tmp_path):
    write(tmp_path)
    (tmp_path / "2.dcm").unlink()
    message = refusal(tmp_path)
    assert (
        "5.00 mm between 1.dcm at (-31.25, 12.50, 42.50) mm and 3.dcm at (-31.25, 12.50, 47.50) mm"
        in message
    )
    assert "2.50 mm between most slices" in message


@pytest.mark.parametrize("end", [1, 4])
def test_a_gap_near_an_end_is_refused(tmp_path, end):
    (write(tmp_path) / f"{end}.dcm").unlink()
    assert "5.00 mm between" in refusal(tmp_path)


def thinned(folder: Path, every: int = 2, **tags) -> Path:
    """Write every second or third slice, with its own number; a tag of None is left out."""

    def numbered(dataset, k):
        dataset.InstanceNumber = k + 1

    write(folder, change=numbered, **tags)
    for k in range(6):
        if k % every:
            (folder / f"{k}.dcm").unlink()
    return folder


@pytest.mark.parametrize(
    ("every", "tags", "words"),
    [
        (
            2,
            {"SpacingBetweenSlices": 2.5, "SliceThickness": 2.5},
            "5.00 mm apart, but SpacingBetweenSlices is 2.50 mm",
        ),
        (2, {"SpacingBetweenSlices": -2.5}, "5.00 mm apart, but SpacingBetweenSlices is 2.50 mm"),
        (
            3,
            {"SpacingBetweenSlices": 2.5, "SliceThickness": 4},
            "7.50 mm apart, but SpacingBetweenSlices is 2.50 mm",
        ),
        (
            2,
            {"SliceThickness": 2.5},
            "but SliceThickness is 2.50 mm and InstanceNumbers are left out",
        ),
    ],
)
def test_every_other_slice_missing_is_said(tmp_path, every, tags, words):
    (warning,) = assert_is(
        thinned(tmp_path, every, **tags),
        ARRAY[:, :, ::every],
        AXIAL @ np.diag([1.0, 1.0, every, 1.0]),
    )
    assert words in warning


@pytest.mark.parametrize(
    ("every", "tags"),
    [
        # Overlapping, gapped, the gap instead of the spacing, nothing that says so, and no number.
        (1, {"SpacingBetweenSlices": 2.5, "SliceThickness": 5}),
        (1, {"SliceThickness": 1.25}),
        (1, {"SpacingBetweenSlices": 0.5, "SliceThickness": 2}),
        (2, {"SliceThickness": 5}),
        (2, {"SliceThickness": None}),
        (1, {"SpacingBetweenSlices": 0, "SliceThickness": 2.5}),
    ],
)
def test_slices_that_overlap_or_leave_gaps_are_not_missing(tmp_path, every, tags):
    assert (
        assert_is(
            thinned(tmp_path, every, **tags),
            ARRAY[:, :, ::every],
            AXIAL @ np.diag([1.0, 1.0, every, 1.0]),
        )
        == ()
    )


def test_an_enhanced_file_that_lacks_every_other_frame(tmp_path):
    write_enhanced(tmp_path / "IM0", [0, 2, 4])
    dataset = pydicom.dcmread(tmp_path / "IM0")
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 2.5
    dataset.save_as(tmp_path / "IM0")
    (warning,) = read_volume(str(tmp_path)).warnings
    assert "5.00 mm apart, but SpacingBetweenSlices is 2.50 mm" in warning


def test_a_tiny_drift_is_reported_in_mm(tmp_path):
    def drifting(dataset, k):
        dataset.ImagePositionPatient = [-31.25 + 0.04 * k, 12.5, 40 + 50 * k]

    write(tmp_path, change=drifting)
    (warning,) = read_volume(str(tmp_path)).warnings
    assert "the last slice lies 0.2 mm beside the first" in warning


def test_spacing_may_be_rounded_but_not_drift(tmp_path):
    affine = affine_of((1, 0, 0), (0, 1, 0), (1, 1, 0.625))

    def rounded(dataset, k):
        dataset.ImagePositionPatient = [-31.25, 12.5, round(40 + 0.625 * k, 1)]

    write(tmp_path / "rounded", affine=affine, change=rounded)
    volume = read_volume(str(tmp_path / "rounded"))
    assert np.allclose(volume.affine, affine, atol=0.1 / 5)

    def drifting(dataset, k):
        dataset.ImagePositionPatient = [-31.25, 12.5, 40 + 2.5 * k + 0.1 * k**2]

    write(tmp_path / "drifting", change=drifting)
    assert "mm between" in refusal(tmp_path / "drifting")


def test_a_slice_beside_the_others_is_refused(tmp_path):
    write(tmp_path)
    edit(tmp_path / "3.dcm", ImagePositionPatient=[-28.25, 12.5, 47.5])
    assert (
        "3.dcm at (-28.25, 12.50, 47.50) mm lies 3.00 mm from where the others have it"
        in refusal(tmp_path)
    )


def test_copies_of_a_slice_are_taken_once(tmp_path):
    write(tmp_path)
    for k in range(6):
        shutil.copy(tmp_path / f"{k}.dcm", tmp_path / f"copy of {k}.dcm")
    (warning,) = assert_is(tmp_path)
    assert "6 slices are there twice" in warning
    edit(tmp_path / "copy of 3.dcm", PixelData=bytes(8 * 9 * 2))
    assert "3.dcm" in refusal(tmp_path)


def test_two_different_slices_at_one_place_are_refused(tmp_path):
    write(tmp_path)
    shutil.copy(tmp_path / "3.dcm", tmp_path / "3b.dcm")
    edit(tmp_path / "3b.dcm", SOPInstanceUID="1.2.3.4")
    assert "3.dcm and 3b.dcm lie at the same position, (-31.25, 12.50, 47.50) mm" in refusal(
        tmp_path
    )


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"ImagePositionPatient": None}, "it has no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "it has no ImageOrientationPatient"),
        ({"PixelSpacing": None}, "it has no PixelSpacing"),
        ({"PixelSpacing": [0.0, 1.0]}, "its PixelSpacing is [0.0, 1.0], expected mm above 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "expected perpendicular directions"),
    ],
)
def test_a_slice_that_cannot_be_placed_is_refused(tmp_path, tags, words):
    write(tmp_path)
    edit(tmp_path / "4.dcm", **tags)
    message = refusal(tmp_path)
    assert "4.dcm cannot be placed" in message and words in message


@pytest.mark.parametrize(
    ("written", "read"), [("0,7\\0,8", None), ("", None), ("nan\\1", None), ("0.80\\0.70 ", True)]
)
def test_numbers_are_read_as_they_are_written(tmp_path, written, read):
    write(tmp_path)
    for k in range(6):
        dataset = pydicom.dcmread(tmp_path / f"{k}.dcm")
        tag = dataset["PixelSpacing"].tag
        dataset[tag] = pydicom.dataelem.RawDataElement(
            tag, "DS", len(written), written.encode(), 0, False, True
        )
        dataset.save_as(tmp_path / f"{k}.dcm")
    if read:
        assert_is(tmp_path)
    else:
        assert (
            f"0.dcm cannot be placed (its PixelSpacing is {written!r}, expected 2 numbers)"
            in refusal(tmp_path)
        )


def test_directions_with_more_digits_than_are_allowed(tmp_path):
    affine = DIRECTIONS["oblique"]
    lps = np.diag([-1, -1, 1, 1]) @ affine
    text = "\\".join(f"{value:.20f}" for value in (lps[:3, :2] / SPACING[:2]).T.ravel()).encode()
    text += b" " * (len(text) % 2)

    def long(dataset, k):
        tag = pydicom.tag.Tag("ImageOrientationPatient")
        dataset[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(text), text, 0, False, True)

    write(tmp_path, affine=affine, change=long)
    assert (
        len(pydicom.dcmread(tmp_path / "0.dcm").get_item("ImageOrientationPatient").value) > 6 * 17
    )
    assert_is(tmp_path, affine=affine)


@pytest.mark.parametrize("aside", [(0.0, 0.27), (0.0, -0.27), (0.4, 0.1)])
def test_a_tilted_gantry(tmp_path, aside):
    """An intensity that grows evenly in space is the same at each point, whatever the grid."""
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(0.26), np.sin(0.26)])
    step = 2.5 * np.cross(row, column) + 2.5 * (aside[0] * row + aside[1] * column)
    affine = affine_of(row, column, step=step)
    slopes, shape = np.array([3.0, -5.0, 7.0]), (12, 14, 10)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    write(tmp_path, np.rint(20 * places @ slopes).astype(np.int64), affine, RescaleIntercept=-32768)

    volume = read_volume(str(tmp_path))
    assert (
        f"the last slice lies {9 * 2.5 * np.hypot(*aside):.1f} mm beside the first"
        in volume.warnings[0]
    )
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    points = (
        np.moveaxis(np.indices(volume.array.shape), 0, -1) @ volume.affine[:3, :3].T
        + volume.affine[:3, 3]
    )
    inside = np.moveaxis(points - affine[:3, 3], -1, 0).reshape(3, -1)
    index = np.linalg.solve(affine[:3, :3], inside).T
    known = (
        ((index > -1e-6) & (index < np.array(shape) - 1 + 1e-6))
        .all(axis=1)
        .reshape(volume.array.shape)
    )
    assert known.sum() > 0.8 * np.prod(shape)
    assert np.abs(volume.array - 20 * points @ slopes)[known].max() < 1
    darkest = volume.array[known].min()
    assert np.isclose(volume.array[~known], darkest, atol=1000).all()


# --- which files are a series


def test_each_series_in_a_folder_is_a_scan_of_its_own(tmp_path):
    write(tmp_path, SeriesDescription="portal")
    other = ARRAY[:, :, ::-1] // 2
    write(tmp_path, other, name="b{}.dcm", SeriesInstanceUID="1.2.4", SeriesDescription="arterial")
    series, left_out = find_series(tmp_path)
    assert sorted(each.path for each in series) == [
        str(tmp_path / "0.dcm"),
        str(tmp_path / "b0.dcm"),
    ]
    assert left_out == {}
    message = refusal(tmp_path)
    assert "2 series in it" in message
    assert "'portal', 6 slices: 0.dcm" in message and "'arterial', 6 slices: b0.dcm" in message
    assert_is(tmp_path / "3.dcm")
    assert_is(tmp_path / "b5.dcm", other)


def test_series_below_a_folder(tmp_path):
    write(tmp_path / "PAT" / "ST0" / "SE0")
    assert_is(tmp_path)
    write(tmp_path / "PAT" / "ST0" / "SE1", SeriesInstanceUID="1.2.4", name="IM{}")
    write(tmp_path / "PAT" / "ST0", SeriesInstanceUID="1.2.5")
    names = sorted(
        Path(each.path).relative_to(tmp_path).as_posix() for each in find_series(tmp_path)[0]
    )
    assert names == ["PAT/ST0/0.dcm", "PAT/ST0/SE0", "PAT/ST0/SE1"]


def test_a_series_whose_files_lie_in_several_folders(tmp_path):
    for k in range(6):
        write(tmp_path / "all")
        (tmp_path / "spread" / f"D{k % 3 % 2}").mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "all" / f"{k}.dcm", tmp_path / "spread" / f"D{k % 3 % 2}" / f"IM{k}")
    shutil.rmtree(tmp_path / "all")
    assert_is(tmp_path / "spread")
    (series,) = find_series(tmp_path)[0]
    assert series.path == str(tmp_path / "spread")
    # With another beside it, nothing names it but the folder, which is refused rather than read by
    # half.
    write(tmp_path / "spread" / "D0", SeriesInstanceUID="1.2.4")
    assert str(tmp_path / "spread") in {each.path for each in find_series(tmp_path)[0]}
    assert "2 series in it" in refusal(tmp_path / "spread")


def split(folder: Path, parts: list[int]) -> Path:
    """Write a series whose slice k lies in the folder `parts[k]`."""
    write(folder / "all")
    for k, part in enumerate(parts):
        (folder / f"D{part}").mkdir(exist_ok=True)
        shutil.move(folder / "all" / f"{k}.dcm", folder / f"D{part}" / f"IM{k}")
    (folder / "all").rmdir()
    return folder


@pytest.mark.parametrize("parts", [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]])
@pytest.mark.parametrize("other", [None, "A{}", "Z{}"])
def test_a_file_of_a_series_in_several_folders_says_that_it_is_not_all(tmp_path, parts, other):
    split(tmp_path, parts)
    if other:
        write(tmp_path / "D1", name=other, SeriesInstanceUID="1.2.4")
    (warning,) = read_volume(str(tmp_path / "D0" / f"IM{parts.index(0)}")).warnings
    assert "more of its series lies in other folders (D1) and was not read" in warning


def test_a_file_of_another_export_or_phase_is_not_a_part(tmp_path):
    write(tmp_path / "a", AcquisitionNumber=1)
    write(tmp_path / "b")
    write(tmp_path / "c", ARRAY // 2, AcquisitionNumber=2)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.dcm").write_bytes(b"damaged")
    assert assert_is(tmp_path / "a" / "3.dcm") == ()


@pytest.mark.parametrize("uid", ["1.2.3", ""])
@pytest.mark.parametrize("up_mm", [0, 1.25, 15.8, 2000])
def test_two_patients_with_the_same_identifiers(tmp_path, up_mm, uid):
    write(tmp_path / "a", SeriesInstanceUID=uid)
    other = AXIAL @ nib.affines.from_matvec(np.eye(3), [0, 0, up_mm / 2.5])
    write(tmp_path / "b", ARRAY // 2, other, SeriesInstanceUID=uid)
    assert sorted(each.path for each in find_series(tmp_path)[0]) == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
    assert_is(tmp_path / "b", ARRAY // 2, other)


def test_folders_are_joined_where_they_continue_each_other_and_have_an_identifier(tmp_path):
    split(tmp_path / "one", [0, 0, 0, 1, 1, 1])
    assert assert_is(tmp_path / "one") == ()
    for file in (tmp_path / "one").rglob("IM*"):
        edit(file, SeriesInstanceUID="")
    assert "2 series in it" in refusal(tmp_path / "one")
    # Nor does a file go on in another folder then.
    assert assert_is(tmp_path / "one" / "D0" / "IM1", ARRAY[:, :, :3]) == ()


def test_files_that_are_each_a_series_of_their_own(tmp_path):
    write_series(tmp_path, ARRAY, AXIAL, [f"{k}.dcm" for k in range(6)])
    (warning,) = assert_is(tmp_path)
    assert "each of 6 files has its own SeriesInstanceUID" in warning
    (tmp_path / "2.dcm").unlink()
    assert "5.00 mm between 1.dcm" in refusal(tmp_path)


@pytest.mark.parametrize(("tag", "values"), [("PatientID", "ab"), ("Modality", ["CT", "MR"])])
def test_files_of_two_patients_or_modalities_are_not_joined(tmp_path, tag, values):
    write_series(
        tmp_path,
        ARRAY,
        AXIAL,
        [f"{k}.dcm" for k in range(6)],
        lambda dataset, k: setattr(dataset, tag, values[k // 3]),
    )
    assert "2 series in it" in refusal(tmp_path)
    (warning,) = assert_is(tmp_path / "1.dcm", ARRAY[:, :, :3])
    assert "each of 3 files has its own SeriesInstanceUID" in warning
    # What is left of one is no series.
    (tmp_path / "5.dcm").unlink()
    assert "single slice (3.dcm, 4.dcm)" in read_volume(str(tmp_path)).warnings[-1]


@pytest.mark.parametrize("tag", ["EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber"])
def test_volumes_at_one_place_are_told_apart(tmp_path, tag):
    write(tmp_path, **{tag: 1})
    write(tmp_path, ARRAY // 2, name="b{}.dcm", **{tag: 2})
    assert sorted(Path(each.path).name for each in find_series(tmp_path)[0]) == ["0.dcm", "b0.dcm"]
    assert_is(tmp_path / "0.dcm")
    assert_is(tmp_path / "b3.dcm", ARRAY // 2)


def two_phases(folder: Path, up_mm: float, tag: str, values, **tags) -> None:
    """Two scans in one series, the second so far above the first."""
    names = "a{}.dcm", "b{}.dcm"
    for name, value, factor in zip(names, values, (1, 2), strict=True):
        affine = AXIAL @ nib.affines.from_matvec(np.eye(3), [0, 0, up_mm / 2.5 * (factor - 1)])
        write(folder, ARRAY // factor, affine, name, **{tag: value}, **tags)


PHASES = [
    ("CT", "AcquisitionNumber", (1, 2)),
    ("CT", "AcquisitionTime", ("100000", "100030")),
    ("MR", "ImageType", (["ORIGINAL", "PRIMARY", "W"], ["ORIGINAL", "PRIMARY", "F"])),
]


@pytest.mark.parametrize(("modality", "tag", "values"), PHASES)
@pytest.mark.parametrize("up_mm", [1.25, 6.25])
def test_phases_that_lie_between_each_other_are_told_apart(tmp_path, modality, tag, values, up_mm):
    two_phases(tmp_path, up_mm, tag, values, Modality=modality)
    assert "2 series in it" in refusal(tmp_path)
    assert_is(tmp_path / "a0.dcm")
    assert read_volume(str(tmp_path / "b3.dcm")).array.shape == SHAPE


@pytest.mark.parametrize(("modality", "tag", "values"), PHASES)
def test_parts_of_a_scan_that_follow_each_other_are_one_volume(tmp_path, modality, tag, values):
    two_phases(tmp_path, 15, tag, values, Modality=modality)
    assert assert_is(tmp_path, np.concatenate([ARRAY, ARRAY // 2], axis=-1)) == ()


@pytest.mark.parametrize(
    ("tag", "values", "shown"),
    [("AcquisitionNumber", (1, 2), True), ("AcquisitionTime", ("100000", "100030"), False)],
)
def test_slices_of_mri_may_be_taken_in_turns(tmp_path, tag, values, shown):
    two_phases(tmp_path, 1.25, tag, values, Modality="MR")
    volume = read_volume(str(tmp_path))
    assert volume.array.shape == (8, 9, 12)
    assert [
        "take turns between 2 values of AcquisitionNumber" in warning for warning in volume.warnings
    ] == [True] * shown


def test_echoes_and_parts_of_a_dixon_series(tmp_path):
    for echo in (1, 2):
        for part in "FW":
            name = f"{echo}{part}{{}}.dcm"
            # Each slice is an acquisition of its own, which tells nothing.
            write(
                tmp_path,
                ARRAY // echo,
                name=name,
                EchoTime=echo,
                ImageType=["ORIGINAL", "PRIMARY", part],
                change=lambda dataset, k: setattr(dataset, "AcquisitionTime", f"10000{k}"),
            )
    assert len(find_series(tmp_path)[0]) == 4
    assert_is(tmp_path / "2F3.dcm", ARRAY // 2)


def test_volumes_that_nothing_tells_apart_are_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, ARRAY // 2, name="b{}.dcm")
    message = refusal(tmp_path)
    assert "0.dcm and b0.dcm lie at the same position" in message
    assert "export each volume as its own series" in message


def test_slices_that_are_turned_by_turns_are_said(tmp_path):
    scan = write(tmp_path / "scan")
    for k in (1, 3, 5):
        edit(scan / f"{k}.dcm", ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    (warning,) = read_volume(str(scan / "0.dcm")).warnings
    assert (
        "3 slices of its series (1.dcm and others) lie between its own, turned by 180°" in warning
    )
    for k in range(3, 6):
        edit(scan / f"{k}.dcm", ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    for k in range(3):
        edit(scan / f"{k}.dcm", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    assert read_volume(str(scan / "0.dcm")).warnings == ()


def test_three_orientations_in_one_series(tmp_path):
    names = ["axial", "coronal", "sagittal"]
    for name in names:
        write(tmp_path, affine=DIRECTIONS[name], name=f"{name}{{}}.dcm")
    assert sorted(Path(each.path).name for each in find_series(tmp_path)[0]) == [
        f"{name}0.dcm" for name in names
    ]
    for name in names:
        assert_is(tmp_path / f"{name}2.dcm", affine=DIRECTIONS[name])


def test_what_is_no_scan_is_named_in_one_line(tmp_path):
    write(tmp_path)
    write(tmp_path, ARRAY[:, :, :1], name="scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(tmp_path, ARRAY[:, :, :1], name="alone", SeriesInstanceUID="1.2.5")
    write(tmp_path, ARRAY[:2, :, :1], name="colour", SamplesPerPixel=3, PlanarConfiguration=0)
    write(
        tmp_path,
        ARRAY[:, :, :1],
        name="dose",
        SOPClassUID=SECONDARY_CAPTURE,
        ImagePositionPatient=None,
    )
    for name, kind in (("rt", "481.3"), ("seg", "66.4"), ("sr", "88.67"), ("pr", "11.1")):
        uid = f"1.2.840.10008.5.1.4.1.1.{kind}"
        write(
            tmp_path,
            ARRAY[:, :, :1],
            name=name,
            SOPClassUID=uid,
            change=None if name == "seg" else without_pixels,
        )
    directory = pydicom.dcmread(tmp_path / "rt")
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    del directory.SOPClassUID
    directory.save_as(tmp_path / "DICOMDIR")
    (tmp_path / "README.txt").write_text("Read me.")
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4" * 100)
    (tmp_path / "VERSION.bin").write_bytes(b"\x08\x00\x05\x00CS" + bytes(500))
    (tmp_path / ".DS_Store").write_bytes(bytes(200))
    shutil.copy(tmp_path / "0.dcm", tmp_path / "._0.dcm")
    write(tmp_path / "__MACOSX")
    write(tmp_path / ".thumbnails")
    (warning,) = assert_is(tmp_path)
    assert "\n" not in warning
    for words in (
        "localiser (scout)",
        "single slice (alone)",
        "picture in colour (colour)",
        "Secondary Capture Image without position (dose)",
        "RT Structure Set (rt)",
        "segmentation (seg)",
        "X-Ray Radiation Dose SR (sr)",
        "Grayscale Softcopy Presentation State (pr)",
        "Media Storage Directory (DICOMDIR)",
        "neither NIfTI nor DICOM (README.txt, VERSION.bin, report.pdf)",
    ):
        assert words in warning
    assert "not readable as a volume (RT Structure Set)" in refusal(tmp_path / "rt")
    assert "neither NIfTI nor DICOM" in refusal(tmp_path / "README.txt")


def test_one_place_again_and_again_is_no_volume(tmp_path):
    """A scanner that waits for the contrast agent, or took one slice of another size."""
    write(tmp_path)

    def waits(dataset, k):
        dataset.ImagePositionPatient = [0, 0, 0]

    write(tmp_path, name="wait{}", change=waits, SeriesInstanceUID="1.2.4")
    write(tmp_path, ARRAY[1:, :, :1], name="narrow")
    (warning,) = assert_is(tmp_path)
    assert "single slice (narrow, wait0, wait1 and 4 more)" in warning


def without_pixels(dataset, k) -> None:
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(dataset, tag)


def test_a_folder_without_a_scan_says_what_is_there(tmp_path):
    write(tmp_path, ARRAY[:, :, :1], name="alone")
    assert "no CT or MRI series in it (only single slice (alone))" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["text", "half", "header", "empty", "gone"])
def test_a_file_that_may_be_a_slice_and_cannot_be_read_is_named(tmp_path, content):
    write(tmp_path)
    # The last one, which leaves no gap.
    file = tmp_path / "5.dcm"
    whole = file.read_bytes()
    file.write_bytes(
        {"text": b"no image" * 50, "half": whole[:-60], "header": whole[:250]}.get(content, b"")
    )
    if content == "gone":
        file.unlink()
        file.symlink_to("annex/5.dcm")
    with pytest.raises(InputError, match=r"5\.dcm: not readable as a DICOM image") as error:
        read_volume(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["implicit", "explicit", "big endian"])
def test_files_without_a_preamble_are_read(tmp_path, form):
    write(tmp_path, name="IM{}")
    for k in range(6):
        dataset = pydicom.dcmread(tmp_path / f"IM{k}")
        pixels = dataset.pixel_array
        dataset.is_implicit_VR, dataset.is_little_endian = form == "implicit", form != "big endian"
        if form == "big endian":
            dataset.PixelData = pixels.byteswap().tobytes()
        dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), None
        dataset.save_as(tmp_path / f"IM{k}")
        assert b"DICM" not in (tmp_path / f"IM{k}").read_bytes()
    assert assert_is(tmp_path) == ()


@pytest.mark.parametrize("name", ["[CT] x", "a, b", "Größe 1", "1.2.840.1"])
def test_folders_may_have_any_name(tmp_path, name):
    write(tmp_path / name)
    assert_is(tmp_path / name)
    assert [each.path for each in find_series(tmp_path)[0]] == [str(tmp_path / name)]


def test_links_to_files_and_folders_are_followed_once(tmp_path):
    write(tmp_path / "blobs", name="sha{}")
    (tmp_path / "scan").mkdir()
    for k in range(6):
        (tmp_path / "scan" / f"{k}.dcm").symlink_to(tmp_path / "blobs" / f"sha{k}")
    (tmp_path / "scan" / "up").symlink_to(tmp_path / "scan")
    (series,) = find_series(tmp_path / "scan")[0]
    assert series.path == str(tmp_path / "scan")
    assert_is(tmp_path / "scan")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pip install pydicom"):
        read_volume(str(tmp_path))


# --- voxels


def test_each_slice_has_its_own_rescaling(tmp_path):
    stored = ARRAY.astype(np.int64) + 1024

    def rescaled(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (k + 1), k

    write(tmp_path, ARRAY, change=rescaled)
    assert_is(tmp_path, (stored * 0.5 * (np.arange(6) + 1) + np.arange(6)).astype(np.float32))


@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_bits_above_those_stored_say_nothing(tmp_path, above, packed):
    signed = np.clip(ARRAY, -1000, 2000)

    def noisy(dataset, k):
        pixels = signed[:, :, k].T.astype(np.int16).view(np.uint16) & 0xFFF | (above * k << 12)
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        if packed:
            dataset.compress(pydicom.uid.RLELossless)

    write(
        tmp_path, change=noisy, PixelRepresentation=1, BitsStored=12, HighBit=11, RescaleIntercept=0
    )
    assert_is(tmp_path, signed)


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_is_as_dark_as_the_darkest_voxel(tmp_path, padding):
    stored = ARRAY.copy()
    stored[:3] = -2000

    def padded(dataset, k):
        dataset.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()

    write(tmp_path, change=padded, PixelRepresentation=1, RescaleIntercept=-24)
    expected = stored.astype(np.int64) - 24
    expected[:3] = expected[3:].min()
    assert_is(tmp_path, expected)


@pytest.mark.parametrize(
    ("modality", "intercept", "shown"), [("CT", 0, True), ("CT", -1024, False), ("MR", 0, False)]
)
def test_padding_of_a_ct_that_is_stored_as_tissue_is_said(tmp_path, modality, intercept, shown):
    hu = np.clip(ARRAY, -1000, 1000)
    hu[2:4, :, 1:3] = 0

    def padded(dataset, k):
        dataset.PixelPaddingValue = 0
        dataset.PixelData = np.ascontiguousarray(hu[:, :, k].T).tobytes()

    write(
        tmp_path,
        change=padded,
        PixelRepresentation=1,
        RescaleIntercept=intercept,
        Modality=modality,
    )
    warnings = read_volume(str(tmp_path)).warnings
    if shown:
        assert (
            f"{(hu == 0).sum()} voxels of 0 HU are marked as padding (PixelPaddingValue)"
            in warnings[0]
        )
        assert f"were read as {hu.min()} HU" in warnings[0]
    assert len(warnings) == shown


def write_raw(file: Path, keyword: str, kind: str, value: bytes) -> None:
    """Write an element as these bytes, whether they can be its value or not."""
    dataset = pydicom.dcmread(file)
    tag = pydicom.tag.Tag(keyword)
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(value), value, 0, False, True)
    dataset.save_as(file)


@pytest.mark.parametrize(
    ("keyword", "kind", "value"),
    [
        ("BitsStored", "OB", b"\x0c\0"),
        ("PixelPaddingValue", "SS", b"\x30"),
        ("PixelPaddingRangeLimit", "SS", b"\x30"),
        ("SamplesPerPixel", "US", b"\1"),
        ("ModalityLUTSequence", "SQ", b"abc"),
    ],
)
def test_a_damaged_tag_is_not_an_absent_one(tmp_path, keyword, kind, value):
    write(tmp_path, PixelPaddingValue=0)
    write_raw(tmp_path / "3.dcm", keyword, kind, value)
    with pytest.raises(InputError, match=rf"3\.dcm.*its {keyword} is damaged"):
        read_volume(str(tmp_path))


def test_more_bits_stored_than_allocated_are_refused(tmp_path):
    edit(write(tmp_path) / "3.dcm", BitsStored=24)
    with pytest.raises(InputError, match=r"3\.dcm: .*its BitsStored is 24, its BitsAllocated 16"):
        read_volume(str(tmp_path))


@pytest.mark.parametrize(
    ("keyword", "kind", "value"),
    [
        ("PixelPaddingValue", "US", b""),
        ("PixelPaddingValue", "SS", b"\x30\xf8\xff\xff"),
        ("PixelPaddingValue", "UN", b"\x30\xf8"),
        ("BitsStored", "US", b""),
        ("BitsStored", "IS", b"16"),
        ("EchoTime", "DS", b"abc "),
        ("SeriesNumber", "IS", b"1.5 "),
    ],
)
def test_tags_that_are_odd_but_readable_are_read(tmp_path, keyword, kind, value):
    write_raw(write(tmp_path) / "3.dcm", keyword, kind, value)
    assert_is(tmp_path)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_inverted_pictures(tmp_path, modality):
    write(
        tmp_path,
        PhotometricInterpretation="MONOCHROME1",
        Modality=modality,
        BitsStored=12,
        HighBit=11,
    )
    if modality == "CT":
        assert assert_is(tmp_path) == ()
    else:
        (warning,) = assert_is(tmp_path, 4095 - (ARRAY.astype(np.int64) + 1024) - 1024)
        assert "MONOCHROME1" in warning


def test_compressed_slices(tmp_path):
    write(tmp_path)
    for k in range(6):
        dataset = pydicom.dcmread(tmp_path / f"{k}.dcm")
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(tmp_path / f"{k}.dcm")
    assert_is(tmp_path)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]
)
def test_lossless_jpeg(tmp_path, syntax):
    gdcm = pytest.importorskip("gdcm", reason='needs pip install ".[dicom]"')
    write(tmp_path, PixelRepresentation=1, RescaleIntercept=0)
    for k in range(6):
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(str(tmp_path / f"{k}.dcm"))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(tmp_path / f"{k}.dcm"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert_is(tmp_path)


def test_a_compression_without_a_decoder_is_named(tmp_path, monkeypatch):
    write(tmp_path)
    for k in range(6):
        dataset = pydicom.dcmread(tmp_path / f"{k}.dcm")
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc3"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(tmp_path / f"{k}.dcm")
    # As where none is installed.
    monkeypatch.setattr(pydicom.config, "pixel_data_handlers", [])
    with pytest.raises(InputError, match=r"compressed as JPEG Lossless.*pip install python-gdcm"):
        read_volume(str(tmp_path))


# --- several slices in one file


def write_enhanced(
    file: Path, frames: list[int], array=ARRAY, affine=AXIAL, modality="CT", echoes=()
) -> None:
    """An enhanced file whose frames are the slices of `array` in the order of `frames`."""
    write(file.parent, array, affine, Modality=modality)
    first = pydicom.dcmread(file.parent / "0.dcm")
    per_frame, planes = [], []
    lps = np.diag([-1, -1, 1, 1]) @ affine
    for place, k in enumerate(frames):
        group, position, values = (pydicom.Dataset() for _ in range(3))
        position.ImagePositionPatient = [
            float(v) for v in (lps @ [0, 0, k % array.shape[2], 1])[:3]
        ]
        # Each frame has its own.
        values.RescaleSlope, values.RescaleIntercept = 1, -1024 - k
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        if echoes:
            echo = pydicom.Dataset()
            echo.EffectiveEchoTime = echoes[place]
            group.MREchoSequence = [echo]
        per_frame.append(group)
        planes.append(array[:, :, k % array.shape[2]].T.astype(np.int64) + 1024 + k)
    shared, plane, measures = (pydicom.Dataset() for _ in range(3))
    plane.ImageOrientationPatient, measures.PixelSpacing = (
        first.ImageOrientationPatient,
        first.PixelSpacing,
    )
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    first.SharedFunctionalGroupsSequence, first.PerFrameFunctionalGroupsSequence = (
        [shared],
        per_frame,
    )
    for tag in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(first, tag)
    first.NumberOfFrames = len(frames)
    first.SOPClassUID = "1.2.840.10008.5.1.4.1.1." + {"CT": "2.1", "MR": "4.1"}[modality]
    first.PixelData = np.stack(planes).astype(np.uint16).tobytes()
    for k in range(array.shape[2]):
        (file.parent / f"{k}.dcm").unlink()
    first.save_as(file)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_file_is_a_volume(tmp_path, modality):
    affine = DIRECTIONS["oblique"]
    write_enhanced(tmp_path / "IM0", [3, 0, 5, 1, 4, 2], affine=affine, modality=modality)
    assert assert_is(tmp_path, affine=affine) == ()
    assert_is(tmp_path / "IM0", affine=affine)


def test_an_enhanced_file_without_a_frame_is_refused(tmp_path):
    write_enhanced(tmp_path / "IM0", [3, 0, 5, 1, 4])
    assert "5.00 mm between IM0, frame 4," in refusal(tmp_path)


def test_an_enhanced_file_with_two_volumes_is_refused(tmp_path):
    write_enhanced(
        tmp_path / "IM0", [*range(6), *range(6)], modality="MR", echoes=[5.0] * 6 + [10.0] * 6
    )
    for path in (tmp_path, tmp_path / "IM0"):
        message = refusal(path)
        assert "2 series in it" in message
        assert message.endswith("expected one: export each volume in IM0 as its own series.")


def test_frames_without_positions_are_left_out(tmp_path):
    write_enhanced(tmp_path / "IM0", list(range(6)))
    edit(tmp_path / "IM0", PerFrameFunctionalGroupsSequence=None)
    assert "Enhanced CT Image whose frames have no positions" in refusal(tmp_path)


# --- real scans


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["ts_ct_dicom", "dcmqi_ct"])
def test_real_series_are_as_itk_reads_them(samples, folder):
    sitk = pytest.importorskip("SimpleITK")
    place = samples / folder
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(
        reader.GetGDCMSeriesFileNames(str(place / "ct" if folder == "dcmqi_ct" else place))
    )
    image = reader.Execute()
    volume = read_volume(str(place))
    voxels = sitk.GetArrayFromImage(image).T
    # GE's padding of −3024 HU lies outside the circle that was measured.
    assert np.array_equal(
        volume.array, np.where(voxels == -3024, voxels[voxels > -3024].min(), voxels)
    )
    last = np.array(volume.array.shape) - 1
    point = np.array(image.TransformIndexToPhysicalPoint(last.tolist())) * [-1, -1, 1]
    assert np.allclose((volume.affine @ [*last, 1])[:3], point, atol=1e-4)
    if folder == "dcmqi_ct":
        assert "segmentation (liver.dcm)" in volume.warnings[0]
