"""Which DICOM SEGs are a scan's label, and where their segments come to lie."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import SimpleITK
from helpers.dicom_studies import (
    AFFINE,
    COLUMN,
    NORMAL,
    ORIGIN,
    ROW,
    SERIES,
    SHAPE,
    SPACING,
    make_segmentation,
)
from pydicom.dataset import Dataset

from lib.store.segmentation_voxels import write_label
from lib.store.segmentations import current, describe
from liverseg.errors import InputError

KINDS = ["BINARY", "FRACTIONAL", "LABELMAP"]


def blobs() -> dict[str, np.ndarray]:
    """Three touching segments on four of five slices, with single voxels: any flip shows."""
    label = np.zeros(SHAPE, int)
    label[1:6, 1:4, 1:4] = 1
    label[3:5, 2:4, 2:4] = 2
    label[6:9, 4:7, 0:2] = 3
    label[0, 6, 3] = label[8, 0, 1] = 3
    return {
        name: label == value for value, name in enumerate(["Liver", "lesion", "left_kidney"], 1)
    }


def values_of(masks: dict[str, np.ndarray]) -> np.ndarray:
    return np.sum([value * mask for value, mask in enumerate(masks.values(), 1)], axis=0)


def put(segmentations, folder: Path, affine=AFFINE, shape=SHAPE) -> tuple[np.ndarray, list]:
    scan = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), affine), scan)
    info = write_label(segmentations, scan, folder / "label.nii.gz")
    label = nib.load(folder / "label.nii.gz")
    assert label.get_data_dtype() == np.uint8 and np.allclose(label.affine, nib.load(scan).affine)
    return np.asanyarray(label.dataobj), info


# --- where segments lie


@pytest.mark.parametrize("every_frame", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_lies_where_it_was_drawn(tmp_path, kind, every_frame):
    masks = blobs()
    label, info = put([make_segmentation(masks, kind, every_frame=every_frame)], tmp_path)
    assert info == [{"name": name, "idx": value} for value, name in enumerate(masks, 1)]
    assert np.array_equal(label, values_of(masks))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL", "PIR"])
def test_however_the_scan_is_stored(tmp_path, axes):
    truth = nib.Nifti1Image(values_of(blobs()).astype(np.uint8), AFFINE)
    turned = truth.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
        )
    )
    label, _ = put([make_segmentation(blobs())], tmp_path, turned.affine, turned.shape)
    assert np.array_equal(label, np.asanyarray(turned.dataobj))


@pytest.mark.parametrize("spacing", [(1.5, 2, 4), (0.9, 1.3, 2.1), (2, 2, 2.5)])
def test_on_a_grid_of_its_own_it_lies_as_itk_puts_it(tmp_path, spacing):
    image = SimpleITK.GetImageFromArray(values_of(blobs()).astype(np.uint8).transpose(2, 1, 0))
    image.SetOrigin(ORIGIN.tolist())
    image.SetSpacing(SPACING)
    image.SetDirection(np.stack([ROW, COLUMN, NORMAL], 1).ravel().tolist())
    turn = np.deg2rad(25)
    direction = np.array(
        [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    )
    size = np.ceil(32 / np.array(spacing)).astype(int)
    grid = SimpleITK.Image(size.tolist(), SimpleITK.sitkUInt8)
    grid.SetSpacing(spacing)
    grid.SetDirection(direction.ravel().tolist())
    centre = ORIGIN + np.stack([ROW, COLUMN, NORMAL], 1) @ (
        np.array(SPACING) * (np.array(SHAPE) - 1) / 2
    )
    # A part of a voxel beside, so that no centre is halfway between two.
    grid.SetOrigin(
        (centre - direction @ (np.array(spacing) * (size // 2 + [0.37, 0.12, 0.23]))).tolist()
    )
    expected = SimpleITK.Resample(
        image, grid, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0
    )
    affine = np.diag([-1, -1, 1, 1]) @ np.block(
        [[direction * spacing, np.array(grid.GetOrigin())[:, None]], [np.zeros((1, 3)), 1]]
    )
    label, _ = put([make_segmentation(blobs())], tmp_path, affine, grid.GetSize())
    assert len(np.unique(label)) == 4
    assert np.array_equal(label, SimpleITK.GetArrayFromImage(expected).transpose(2, 1, 0))


def test_what_lies_between_frames_that_were_left_out_stays_empty(tmp_path):
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 2:5, [0, 3]] = True
    segmentation = make_segmentation({"liver": mask})
    del segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    assert np.array_equal(put([segmentation], tmp_path)[0], mask)


def test_slices_that_are_thicker_than_their_distance(tmp_path):
    segmentation = make_segmentation(blobs())
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices
    measures.SliceThickness = 2 * SPACING[2]
    assert np.array_equal(put([segmentation], tmp_path)[0], values_of(blobs()))


def test_frames_of_a_tilted_scan(tmp_path):
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 0:3, 0:4] = True
    segmentation = make_segmentation({"liver": mask})
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        number = round((position - ORIGIN) @ NORMAL / SPACING[2])
        group.PlanePositionSequence[0].ImagePositionPatient = (
            position + number * SPACING[1] * COLUMN
        ).tolist()
    # One pixel further down a column on each slice.
    expected = np.stack(
        [np.roll(mask[:, :, number], number, axis=1) for number in range(5)], axis=2
    )
    assert np.array_equal(put([segmentation], tmp_path)[0], expected)


def test_half_is_enough_of_a_fractional_segment(tmp_path):
    fractions = np.zeros(SHAPE)
    fractions[1:4, 1:4, 2] = 0.5
    fractions[5:8, 1:4, 2] = 0.49
    assert np.array_equal(
        put([make_segmentation({"liver": fractions}, "FRACTIONAL")], tmp_path)[0], fractions == 0.5
    )


def test_several_are_one_label_by_the_names_of_their_segments(tmp_path):
    masks = blobs()
    parts = [make_segmentation({name: mask}) for name, mask in masks.items()]
    # The same under another spelling, on the last slice.
    more = np.zeros(SHAPE, bool)
    more[:, 0, 4] = True
    label, info = put([*parts, make_segmentation({"LEFT KIDNEY": more}, "LABELMAP")], tmp_path)
    assert [one["name"] for one in info] == list(masks)
    masks["left_kidney"] |= more
    assert np.array_equal(label, values_of(masks))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", [["lesion", "liver"], ["liver", "lesion"]])
def test_a_lesion_in_the_liver_is_a_lesion(tmp_path, order, together):
    masks = blobs()
    whole = {"lesion": masks["lesion"], "liver": masks["Liver"] | masks["lesion"]}
    some = (
        [{name: whole[name] for name in order}]
        if together
        else [{name: whole[name]} for name in order]
    )
    label, info = put([make_segmentation(one) for one in some], tmp_path)
    value = {one["name"]: one["idx"] for one in info}
    assert np.array_equal(
        label, value["lesion"] * masks["lesion"] + value["liver"] * masks["Liver"]
    )


def test_a_label_map_says_which_value_is_its_background(tmp_path):
    segmentation = make_segmentation(blobs(), "LABELMAP")
    segmentation.PixelPaddingValue = segmentation.SegmentSequence[0].SegmentNumber = 9
    segmentation.PixelData = segmentation.PixelData.replace(b"\0", b"\x09")
    label, info = put([segmentation], tmp_path)
    assert [one["name"] for one in info] == list(blobs()) and np.array_equal(
        label, values_of(blobs())
    )


# --- what is refused


@pytest.mark.parametrize("together", [True, False])
def test_other_segments_that_overlap_are_refused(tmp_path, together):
    masks = {"liver": blobs()["Liver"], "spleen": np.roll(blobs()["Liver"], 4, axis=0)}
    common = np.count_nonzero(masks["liver"] & masks["spleen"])
    some = [masks] if together else [{name: mask} for name, mask in masks.items()]
    # Within one, frame by frame.
    number = r"\d+" if together else str(common)
    with pytest.raises(InputError, match=f"found that liver and spleen overlap in {number} voxels"):
        put([make_segmentation(one) for one in some], tmp_path)


def test_segments_outside_the_scan_are_refused(tmp_path):
    beside = AFFINE.copy()
    beside[:3, 3] += [500, 0, 0]
    with pytest.raises(InputError, match="found 100 % of its segments outside the scan"):
        put([make_segmentation(blobs())], tmp_path, beside)
    # The copy of a scan that was still arriving; one slice beyond is the half of a voxel and its
    # own half.
    label = values_of(blobs())
    share = 100 * np.count_nonzero(label[:, :, 3:]) / np.count_nonzero(label)
    with pytest.raises(InputError, match=f"found {share:.3g} % of its segments outside the scan"):
        put([make_segmentation(blobs())], tmp_path, shape=(9, 7, 2))


def test_a_segment_between_the_scans_slices_is_refused(tmp_path):
    thin = np.zeros(SHAPE, bool)
    thin[2:5, 2:5, 1] = True
    coarse = AFFINE @ np.diag([1, 1, 3, 1])
    with pytest.raises(InputError, match="found no voxel of lesion on the scan's grid"):
        put([make_segmentation({"lesion": thin})], tmp_path, coarse, (9, 7, 2))


def cut_short(segmentation):
    segmentation.PixelData = segmentation.PixelData[:20]


def of_no_segment(segmentation):
    del segmentation.SegmentSequence[1]


def without_places(segmentation):
    del segmentation.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def turned(segmentation):
    first = segmentation.PerFrameFunctionalGroupsSequence[0]
    first.PlaneOrientationSequence = (
        make_segmentation(blobs()).SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    )
    first.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def side_by_side(segmentation):
    position = segmentation.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = (np.array(position.ImagePositionPatient) + 9 * ROW).tolist()


def of_another_type(segmentation):
    segmentation.SegmentationType = "CONTOUR"


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        *product([cut_short, of_no_segment, without_places, turned, of_another_type], KINDS),
        # A LABELMAP has one frame in each plane.
        *product([side_by_side], ["BINARY", "FRACTIONAL"]),
    ],
)
def test_what_cannot_be_read_right_is_refused_in_one_message(tmp_path, spoil, kind):
    segmentation = make_segmentation(blobs(), kind)
    spoil(segmentation)
    with pytest.raises(
        InputError, match=rf"DICOM SEG {segmentation.SOPInstanceUID}: found .*, expected .*: \w+"
    ):
        put([segmentation], tmp_path)


# --- which of them count


def header(names, moment="20260102 120000", **attributes):
    """What a server says of a DICOM SEG; `moment` is that of its content."""
    date, _, time = moment.partition(" ")
    some = {name: np.ones(SHAPE, bool) for name in names.split(",")}
    segmentation = make_segmentation(some, ContentDate=date, ContentTime=time, **attributes)
    return describe(segmentation.to_json_dict(), "1.2.3", str(segmentation.SeriesInstanceUID))


def test_what_a_dicom_seg_belongs_to():
    liver = {"liver": np.ones(SHAPE, bool)}
    by_instance, elsewhere = make_segmentation(liver), make_segmentation(liver, scan="")
    series, slice_, study = by_instance.ReferencedSeriesSequence[0], Dataset(), Dataset()
    slice_.ReferencedSOPInstanceUID = f"{SERIES}.1"
    series.ReferencedInstanceSequence = [slice_]
    del series.SeriesInstanceUID
    # Of another study, whose scan may lie on the same grid.
    study.ReferencedSeriesSequence = make_segmentation(liver).ReferencedSeriesSequence
    elsewhere.StudiesContainingOtherReferencedInstancesSequence = [study]
    found = [describe(one.to_json_dict(), "1.2.3", "1.2.3.5") for one in (by_instance, elsewhere)]
    assert [(one.scans, one.source) for one in found] == [((), f"{SERIES}.1"), ((SERIES,), "")]


APP = {"ClinicalTrialCoordinatingCenterName": "MONAI"}


@pytest.mark.parametrize(
    ("there", "left"),
    [
        # One series for each organ: all count.
        ([header("liver"), header("spleen"), header("left kidney", "20260102 120500")], [0, 1, 2]),
        # A correction of one organ leaves the others.
        ([header("liver"), header("spleen"), header("Liver", "20260103 080000")], [1, 2]),
        # What a correction took away does not come back, also not from what was replaced before.
        ([header("liver,lesion"), header("liver", "20260103 080000")], [1]),
        (
            [
                header("lesion,cyst"),
                header("liver,lesion", "20260103 080000"),
                header("liver", "20260104 080000"),
            ],
            [2],
        ),
        # What this app saved has everything.
        ([header("liver"), header("lesion"), header("liver", "20260103 080000", **APP)], [2]),
        ([header("liver", **APP), header("spleen", "20260103 080000")], [0, 1]),
        ([header("liver,lesion", **APP), header("liver", "20260103 080000")], [1]),
        ([header("liver", **APP), header("liver", "20260103 080000", **APP)], [1]),
        # Two of one time, if a third is newer.
        ([header("liver"), header("liver"), header("liver", "20260103 080000")], [2]),
        # Parts of one.
        (
            [header("liver", ConcatenationUID="1.2.9"), header("liver", ConcatenationUID="1.2.9")],
            [0, 1],
        ),
        # The names that LABELMAPs give to what is no segment.
        ([header("liver", kind="LABELMAP"), header("spleen", "20260103", kind="LABELMAP")], [0, 1]),
        # Without a date, nothing says which is newer, and nothing needs to.
        ([header("liver", ""), header("spleen")], [0, 1]),
    ],
)
def test_which_of_them_count(there, left):
    expected = sorted((there[number] for number in left), key=lambda one: one.instance)
    assert current(there) == current(there[::-1]) == expected


@pytest.mark.parametrize(
    "there",
    [
        [header("liver"), header("liver")],
        [header("liver", ""), header("Liver,lesion")],
        [header("liver", ""), header("liver", "")],
        [header("spleen", ""), header("liver", **APP)],
        [header("spleen"), header("liver", **APP)],
    ],
)
def test_two_of_which_none_is_newer_are_refused(there):
    with pytest.raises(InputError, match="none that is newer"):
        current(there)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        # highdicom says nothing of the series.
        (
            {"SeriesDate": "20260101", "SeriesTime": "235959", "moment": "20260101 235959"},
            {"moment": "20260102 000001.5"},
        ),
        ({"moment": "20260102 120000.25"}, {"moment": "20260102 120000.3"}),
        ({"moment": "20260102 1159"}, {"moment": "20260102 12"}),
        # The date of the content was copied from the scan.
        ({"moment": "20260102 120000"}, {"moment": "20200101", "InstanceCreationDate": "20260103"}),
        (
            {"moment": "20260102 120000"},
            {"moment": "", "SeriesDate": "2026.01.02", "SeriesTime": "13:00:00"},
        ),
        # 13:00 in Berlin is before 12:30 in London.
        (
            {"moment": "20260102 130000", "TimezoneOffsetFromUTC": "+0100"},
            {"moment": "20260102 123000", "TimezoneOffsetFromUTC": "+0000"},
        ),
        (
            {"moment": "20260101 234500", "TimezoneOffsetFromUTC": "+0000"},
            {"moment": "20260101 233000", "TimezoneOffsetFromUTC": "-0030"},
        ),
        (
            {"moment": "20260101 233000", "TimezoneOffsetFromUTC": "-0030"},
            {"moment": "20260102 000500", "TimezoneOffsetFromUTC": "+0000"},
        ),
    ],
)
def test_which_is_newer(older, newer):
    assert header("liver", **newer).is_newer(header("liver", **older))
    assert not header("liver", **older).is_newer(header("liver", **newer))


def test_a_date_without_an_offset_is_that_of_this_machine(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "UTC-5")
    time.tzset()
    try:
        here = header("liver", "20260102 120000")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert here.is_newer(header("liver", "20260102 065900", TimezoneOffsetFromUTC="+0000"))
    assert header("liver", "20260102 070100", TimezoneOffsetFromUTC="+0000").is_newer(here)


@pytest.mark.parametrize("moment", ["", "20261301 120000", "unknown", " 120000"])
def test_a_date_that_is_none(moment):
    assert header("liver", moment).made is None
