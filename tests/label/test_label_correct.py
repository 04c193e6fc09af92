"""Strokes and cleaning on the label that an annotator holds."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from helpers.bundle_runs import save
from scipy import ndimage

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')

from lib.bundle import read_bundle
from lib.infer.correct import CleanUp, Scribbles
from lib.infer.probabilities import ProbabilityStore
from lib.infer.scribbles import (
    LIKELIHOODS,
    correct_region,
    cut,
    inner_of,
    label_log_odds,
    network_log_odds,
    regions_of,
)
from lib.infer.segment import Segmentation
from liverseg.errors import InputError

SPACING_MM = (1.0, 0.75, 2.5)
INFO = [
    {"name": name, "id": number}
    for number, name in enumerate(("liver", "background_scribbles", "lesion"), 1)
]


def dice(one, other) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.fixture(scope="module")
def leak():
    """An organ, a mask of it that leaks into a darker neighbour, and where the voxels are in mm."""
    shape = (120, 150, 40)
    mm = np.stack(
        np.meshgrid(
            *(np.arange(n) * s for n, s in zip(shape, SPACING_MM, strict=True)), indexing="ij"
        )
    )
    organ, neighbour = (
        np.linalg.norm(mm - np.array(centre_mm)[:, None, None, None], axis=0) < radius_mm
        for centre_mm, radius_mm in (((45, 55, 50), 22), ((80, 55, 50), 16))
    )
    neighbour &= ~organ
    noise = np.random.default_rng(0).normal(0, 15, shape)
    image = (np.where(organ, 100, np.where(neighbour, 60, -20)) + noise).astype(np.float32)
    return image, organ, organ | neighbour


def line(shape, start, stop):
    stroke = np.zeros(shape, bool)
    stroke[start:stop, 73, 20] = True
    return stroke


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", ["label", "none"])
def test_a_stroke_in_a_leak_removes_it(leak, prior, likelihood):
    image, organ, mask = leak
    strokes = line(mask.shape, 30, 50), line(mask.shape, 74, 90)
    assert dice(mask, organ) < 0.86
    (region,) = regions_of(strokes[0] | strokes[1], SPACING_MM, 30)
    held = mask[region]
    log_odds = label_log_odds(held, SPACING_MM) if prior == "label" else None
    found = cut(
        image[region],
        held,
        *(stroke[region] for stroke in strokes),
        SPACING_MM,
        log_odds,
        likelihood,
    )
    assert dice(found, organ[region]) > 0.97
    assert found[strokes[0][region]].all() and not found[strokes[1][region]].any()


def test_a_leak_that_a_network_half_believes_goes_with_one_stroke_at_its_end(leak):
    """The label is as sure of the leak as of the organ."""
    image, organ, mask = leak
    only_leak = mask & ~organ
    probability = np.where(organ, 0.98, np.where(only_leak, 0.6, 0.02)).astype(np.float32)
    none, stroke = np.zeros(mask.shape, bool), line(mask.shape, 90, 96)
    by_network, by_label = (
        cut(image, mask, none, stroke, SPACING_MM, prior)
        for prior in (network_log_odds(probability), label_log_odds(mask, SPACING_MM))
    )
    assert by_label[only_leak].mean() > 0.8
    assert by_network[only_leak].mean() < 0.05
    assert by_network[organ].all() and not by_network[~mask].any()


def test_a_network_that_is_sure_of_a_leak_gives_way_to_strokes(leak):
    image, organ, mask = leak
    strokes = line(mask.shape, 30, 50), line(mask.shape, 74, 90)
    found = cut(image, mask, *strokes, SPACING_MM, network_log_odds(mask.astype(np.float32)))
    near = ndimage.distance_transform_edt(~strokes[1], sampling=SPACING_MM) < 8
    assert found[near & mask & ~organ].mean() < 0.1
    assert found[organ].mean() > 0.98


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_kind_of_strokes_is_enough(leak, likelihood):
    image, organ, mask = leak
    stroke, none = line(mask.shape, 74, 90), np.zeros(mask.shape, bool)
    found = cut(image, mask, none, stroke, SPACING_MM, label_log_odds(mask, SPACING_MM), likelihood)
    assert dice(found, organ) > 0.97
    # And what was missed is found, without a word on the background.
    missing = organ & (np.arange(mask.shape[0])[:, None, None] > 40)
    strokes = line(mask.shape, 30, 38), none
    found = cut(
        image, missing, *strokes, SPACING_MM, label_log_odds(missing, SPACING_MM), likelihood
    )
    assert dice(found, organ) > 0.97
    # Also of a single voxel.
    strokes = line(mask.shape, 34, 35), none
    found = cut(
        image, missing, *strokes, SPACING_MM, label_log_odds(missing, SPACING_MM), likelihood
    )
    assert dice(missing, organ) < dice(found, organ) - 0.1


def test_far_from_strokes_the_label_stays(leak):
    image, _, mask = leak
    # A second error that no stroke is near.
    other = np.zeros(mask.shape, bool)
    other[5:12, 5:12, 2:6] = True
    stroke = line(mask.shape, 74, 90)
    held = mask | other
    found = cut(
        image,
        held,
        np.zeros(mask.shape, bool),
        stroke,
        SPACING_MM,
        label_log_odds(held, SPACING_MM),
    )
    assert dice(found[:20, :20, :10], other[:20, :20, :10]) > 0.85


@pytest.mark.parametrize("corner", [(0, 0, 0), (119, 149, 39)])
def test_the_region_has_its_margin_and_ends_with_the_volume(corner):
    strokes = np.zeros((120, 150, 40), bool)
    strokes[corner] = True
    (region,) = regions_of(strokes, SPACING_MM, 7)
    for part, length, mm, at in zip(region, strokes.shape, SPACING_MM, corner, strict=True):
        assert part == slice(
            max(at - int(np.ceil(7 / mm)), 0), min(at + 1 + int(np.ceil(7 / mm)), length)
        )


def test_strokes_share_a_region_as_far_as_their_boxes_overlap():
    """The last of four dots ties two together that are apart without it."""
    strokes = np.zeros((120, 150, 40), bool)
    strokes[5, 5, 5] = strokes[5, 35, 5] = strokes[110, 140, 35] = True
    apart = regions_of(strokes, SPACING_MM, 10)
    assert len(apart) == 3
    strokes[8, 20, 5] = True
    together = regions_of(strokes, SPACING_MM, 10)
    assert sorted(region[1] for region in together) == [slice(0, 50), slice(126, 150)]
    assert sorted(region[0] for region in together) == [slice(0, 19), slice(100, 120)]


def test_a_large_region_is_cut_in_larger_voxels_and_changes_no_more_than_the_leak(leak):
    image, organ, mask = leak
    ragged = mask ^ (np.random.default_rng(1).random(mask.shape) < 0.001)
    foreground, background = line(mask.shape, 30, 50), line(mask.shape, 74, 90)
    found = correct_region(image, ragged, foreground, background, SPACING_MM, "label", limit=60_000)
    assert dice(found, organ) > 0.96
    assert found[foreground].all() and not found[background].any()
    far = ndimage.distance_transform_edt(~(organ | mask), sampling=SPACING_MM) > 5
    assert (found != ragged)[far].mean() < 1e-3


# --- without the server


@pytest.fixture
def correct(leak, tmp_path):
    """Corrects the leak in some slices: strokes and mask as bool, and how the files store it."""

    def correct(
        slices=slice(None),
        strokes=None,
        turn=lambda volume: volume,
        scan_shape=None,
        task=None,
        **options,
    ):
        image, _, mask = leak
        labels = mask.astype(np.uint8)
        labels[line(mask.shape, 74, 90) if strokes is None else strokes] = 2
        affine = np.diag([*SPACING_MM, 1])
        voxels = image[..., slices]
        save(tmp_path / "scan.nii.gz", voxels.reshape(scan_shape or voxels.shape), affine)
        nib.save(turn(nib.Nifti1Image(labels[..., slices], affine)), tmp_path / "label.nii.gz")
        paths = {
            name: str(tmp_path / f"{file}.nii.gz")
            for name, file in (("image", "scan"), ("label", "label"))
        }
        path, _ = (task or Scribbles({}))({**params(), **paths, **options})
        mask = nib.load(path)
        assert np.allclose(mask.affine, affine)
        return np.asanyarray(mask.dataobj) > 0

    return correct


@pytest.mark.parametrize("slices", [slice(20, 40), slice(0, 21), slice(20, 22)])
def test_a_leak_in_the_first_or_the_last_slice_of_the_scan_is_removed(correct, leak, slices):
    _, organ, _ = leak
    assert dice(correct(slices), organ[..., slices]) > 0.97


def test_strokes_far_from_each_other_are_as_those_of_two_requests(correct, leak):
    one, other = line(leak[2].shape, 74, 90), np.zeros(leak[2].shape, bool)
    other[5, 140, 2] = True
    options = {"region_mm": "15"}
    both = correct(strokes=one | other, **options)
    assert np.array_equal(both, correct(strokes=one, **options) & correct(strokes=other, **options))
    assert not np.array_equal(both, leak[2] & ~(one | other))


def test_the_files_may_hold_the_voxels_in_another_order_and_axes_of_1(correct, leak):
    """Clients store a label of a DICOM series in an order of their own."""
    expected = correct()
    assert np.array_equal(correct(scan_shape=(*leak[0].shape, 1)), expected)
    flipped = [[1, -1], [0, 1], [2, -1]]
    assert np.array_equal(correct(turn=lambda label: label.as_reoriented(flipped)), expected)
    assert np.array_equal(
        correct(task=CleanUp(), turn=lambda label: label.as_reoriented(flipped)),
        correct(task=CleanUp()),
    )


def test_a_label_drawn_in_3d_slicer_corrects_a_scan_whose_forms_disagree(correct, tmp_path):
    """3D Slicer shows the scan by its qform, and writes the label there."""
    place = np.diag([*SPACING_MM, 1])

    def draw(label):
        scan = nib.load(tmp_path / "scan.nii.gz")
        image = nib.Nifti1Image(np.asanyarray(scan.dataobj), place + 30 * np.eye(4, k=3))
        image.set_qform(place, 1)
        nib.save(image, tmp_path / "scan.nii.gz")
        return label

    assert np.array_equal(correct(turn=draw, task=CleanUp()), correct(task=CleanUp()))


@pytest.mark.parametrize("shape", ["120×150×40×2", "120×150"])
def test_a_label_that_is_no_volume_is_reported(correct, shape):
    def turn(label):
        voxels = np.asanyarray(label.dataobj)
        return nib.Nifti1Image(
            np.stack([voxels] * 2, -1) if shape.endswith("2") else voxels[..., 0], label.affine
        )

    with pytest.raises(
        InputError, match=f"^label: the volume is .-D with shape {shape}, expected one 3-D"
    ):
        correct(turn=turn)


# --- through the server


@pytest.fixture
def held(root, tmp_path):
    """What the annotator holds of the scan `oblique`: a labelmap, and the file that is sent."""
    scan = nib.load(root / "studies" / "oblique.nii")
    labels = np.zeros(scan.shape, np.uint8)
    labels[10:28, 12:30, 1:6] = 1
    labels[34:37, 40:44, 2:4] = 1
    labels[15:20, 15:20, 2:4] = 3
    labels[24:27, 20, 3] = 2
    save(tmp_path / "held.nii.gz", labels, scan.affine)
    return scan, labels, str(tmp_path / "held.nii.gz")


def params(**more):
    return {"label_info": INFO, "selected_label_name": "liver", "roi": [], **more}


def refusal(server, file, status, **more) -> str:
    answer = requests.post(
        f"{server.url}/infer/scribbles?image=oblique",
        data={"params": json.dumps(params(**more))},
        files={"label": (Path(file).name, Path(file).read_bytes())},
        timeout=60,
    )
    assert answer.status_code == status
    return answer.json()["detail"]


def test_strokes_correct_the_segment_around_them_on_the_scans_grid(client, held):
    scan, labels, file = held
    result, answer = client.infer("scribbles", "oblique", params(region_mm="15"), label_in=file)
    mask = nib.load(result)
    assert mask.get_data_dtype() == np.uint8
    assert np.allclose(mask.affine, scan.affine, atol=1e-4)
    assert answer["label_names"] == {"liver": 1}
    found = np.asanyarray(mask.dataobj)
    assert set(np.unique(found)) == {0, 1}
    assert not found[labels == 2].any()
    spacing_mm = nib.affines.voxel_sizes(scan.affine)
    (region,) = regions_of(labels == 2, spacing_mm, 15)
    inside = np.zeros(labels.shape, bool)
    inside[region] = True
    assert not inside.all()
    assert np.array_equal(found[~inside], (labels == 1)[~inside])


@pytest.mark.parametrize(
    ("segment", "names"),
    [("liver", ["liver"]), ("Lesion", ["lesion"]), ("liver", ["liver", "lesion"])],
)
def test_what_a_bundle_says_of_the_segment_is_the_prior(
    client, root, held, tmp_path, segment, names
):
    """Where the labelmap knows no lesions, they are liver."""
    scan, labels, file = held
    values = {"liver": 1, "background_scribbles": 2, "Lesion" if len(names) == 1 else "vessel": 3}
    info = [{"name": name, "id": value} for name, value in values.items()]
    asked = params(prior="two_d", region_mm="15", selected_label_name=segment, label_info=info)
    found = (
        np.asanyarray(
            nib.load(client.infer("scribbles", "oblique", asked, label_in=file)[0]).dataobj
        )
        > 0
    )

    spacing_mm = nib.affines.voxel_sizes(scan.affine)
    (region,) = regions_of(labels == 2, spacing_mm, 15)
    bundle = Segmentation(
        read_bundle(root / "bundles" / "two_d"), ProbabilityStore(tmp_path / "kept")
    )
    kept = bundle.probabilities(str(root / "studies" / "oblique.nii"))
    (shown,) = kept.regions(names, [region])
    assert np.ptp(kept.regions(["liver"], [region])[0]) > 0.5
    expected = labels == values[segment]
    parts = (
        volume[region]
        for volume in (scan.get_fdata(dtype=np.float32), expected, labels == 9, labels == 2)
    )
    expected[region] = cut(
        *parts,
        spacing_mm,
        network_log_odds(shown),
        reach_mm=7.5,
        inner=inner_of(region, labels.shape),
    )
    assert np.array_equal(found, expected)


def test_after_a_segmentation_nothing_is_run_for_a_stroke(client, server, root, held):
    client.infer("two_d", "oblique", {})
    kept = {file: file.stat().st_ctime_ns for file in (root / "probabilities").iterdir()}
    assert kept
    before = server.log.read_text()
    client.infer("scribbles", "oblique", params(prior="two_d"), label_in=held[2])
    assert "Segmenting" not in server.log.read_text()[len(before) :]
    assert len(list((root / "probabilities").iterdir())) == len(kept)


def test_a_prior_without_weights_is_409(server, held):
    shown = refusal(server, held[2], 409, prior="untrained")
    assert "model untrained: found no weights" in shown


def test_clean_up_is_algorithm_1_on_the_selected_segment(client, held):
    _, labels, file = held
    result, _ = client.infer("clean_up", "oblique", params(radius="1"), label_in=file)
    ball = ndimage.generate_binary_structure(3, 1)
    eroded = ndimage.binary_erosion(labels == 1, ball, border_value=1)
    parts, _ = ndimage.label(eroded, np.ones((3, 3, 3)))
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    expected = ndimage.binary_dilation(largest, ball)
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(labels == 1)
    assert np.array_equal(np.asanyarray(nib.load(result).dataobj) > 0, expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"selected_label_name": "spleen"},
            "found 'spleen', expected one of liver, background_scribbles, lesion",
        ),
        ({"label_info": None}, "found no label_info"),
        ({"label_info": ["liver"]}, 'expected a list of {"name"'),
        ({"label_info": [{"name": "liver", "id": float("inf")}]}, 'expected a list of {"name"'),
        (
            {"result_extension": ".foo"},
            "option result_extension: found '.foo', expected one of '.nii.gz', ",
        ),
        (
            {"result_extension": 5},
            "option result_extension: found '5', expected one of '.nii.gz', ",
        ),
        (
            {"prior": "three_d", "selected_label_name": "lesion"},
            "for the segment 'lesion', expected one that knows it",
        ),
        ({"prior": "wish"}, "option prior: found 'wish', expected one of 'label', "),
    ],
)
def test_says_what_is_wrong_with_a_request(server, held, changed, words):
    assert words in refusal(server, held[2], 400, **changed)


def test_a_label_of_another_grid_is_refused(server, held, tmp_path):
    scan, labels, _ = held
    nib.save(nib.Nifti1Image(labels[:-1], scan.affine), tmp_path / "other.nii.gz")
    shown = refusal(server, tmp_path / "other.nii.gz", 400)
    assert shown.startswith("label: its grid is not that of scan 'oblique.nii' ("), shown
    assert all(word in shown for word in ("40×48×7", "39×48×7")), shown
