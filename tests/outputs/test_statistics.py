from __future__ import annotations

import itertools
import json
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from scipy.ndimage import binary_fill_holes, gaussian_filter
from scipy.ndimage import label as components_of
from scipy.spatial.transform import Rotation
from skimage.draw import polygon2mask

from liverseg.errors import InputError
from liverseg.files import write_json
from liverseg.outputs.segmentation import Segmentation
from liverseg.outputs.statistics import statistics, statistics_tables

NAMES = {1: "liver", 2: "tumour", 3: "Spleen"}
SPACING_MM = np.array([0.9, 0.8, 2.5])


def affine_of(spacing_mm, degrees=(0, 0, 0), flips=(1, 1, 1), origin_mm=(13.0, -40.0, 700.0)):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.multiply(spacing_mm, flips))
    affine[:3, 3] = origin_mm
    return affine


def figures(mask, affine, image=None, modality="ct", names=NAMES):
    return statistics(Segmentation("scan.nii.gz", mask, affine, names), image, modality)


def points_mm(shape, affine):
    return nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))


def abdomen(shape=(60, 64, 22)):
    """A liver with two lesions, one at its surface, a spleen, and noise."""
    rng = np.random.default_rng(3)
    x, y, z = np.moveaxis(points_mm(shape, np.diag([*SPACING_MM, 1])), -1, 0)
    ripple = 2 * gaussian_filter(rng.standard_normal(shape), 2) / 0.05
    mask = np.zeros(shape, np.uint8)
    mask[((x - 20) / 15) ** 2 + ((y - 26) / 20) ** 2 + ((z - 27) / 20) ** 2 < 1 + ripple / 40] = 1
    mask[((x - 20) / 6) ** 2 + ((y - 24) / 4) ** 2 + ((z - 26) / 9) ** 2 < 1] = 2
    mask[(np.hypot(x - 20, y - 42) < 5) & (abs(z - 30) < 4) & (mask > 0)] = 2
    mask[np.hypot(x - 46, y - 40) + abs(z - 27) < 9] = 3
    means = np.array([-100, 110, 60, 45])[mask]
    return mask, (means + 8 * rng.standard_normal(shape)).astype(np.float32)


def longest_in_slices(mask, affine):
    """RECIST diameters by trying all pairs of the middles of pixel edges; slices along axis 2."""
    found = []
    for k in range(mask.shape[2]):
        pieces, count = components_of(mask[:, :, k], np.ones((3, 3)))
        for number in range(1, count + 1):
            i, j = np.nonzero(pieces == number)
            steps = np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
            pixels = (np.stack([i, j], 1)[:, None] + steps).reshape(-1, 2)
            points = nib.affines.apply_affine(affine, np.c_[pixels, np.full(len(pixels), k)])
            vectors = points[:, None] - points
            lengths = np.linalg.norm(vectors, axis=-1)
            found.append((lengths.max(), points, vectors.reshape(-1, 3)[lengths.argmax()]))
    return max(found, key=lambda each: each[0])


@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -11, 20)])
def test_volumes_places_and_intensities_are_those_of_itk(degrees):
    mask, image = abdomen()
    affine = affine_of(SPACING_MM, degrees)
    found = figures(mask, affine, image)["classes"]
    itk_mask, itk_image = (
        SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T)) for array in (mask, image)
    )
    for each in (itk_mask, itk_image):  # in LPS
        each.SetSpacing(SPACING_MM.tolist())
        each.SetOrigin((np.array([-1, -1, 1]) * affine[:3, 3]).tolist())
        directions = np.diag([-1, -1, 1]) @ affine[:3, :3] / SPACING_MM
        each.SetDirection(directions.ravel().tolist())
    shapes = SimpleITK.LabelShapeStatisticsImageFilter()
    shapes.Execute(itk_mask)
    values = SimpleITK.LabelIntensityStatisticsImageFilter()
    values.Execute(itk_mask, itk_image)
    for index, name in ((2, "lesion"), (3, "spleen")):
        mine, voxels = found[name], shapes.GetNumberOfPixels(index)
        assert mine["volume_ml"] == pytest.approx(shapes.GetPhysicalSize(index) / 1000)
        centroid = np.multiply(shapes.GetCentroid(index), [-1, -1, 1])
        assert mine["centroid_ras_mm"] == pytest.approx(centroid, abs=1e-6)
        assert mine["mean_hu"] == pytest.approx(values.GetMean(index), abs=1e-4)
        sd = values.GetStandardDeviation(index) * math.sqrt((voxels - 1) / voxels)
        assert mine["sd_hu"] == pytest.approx(sd, abs=1e-4)
        assert mine["median_hu"] == pytest.approx(np.median(image[mask == index]), abs=1e-4)
    liver = found["liver"]
    whole, parenchyma, lesion = (
        sum(shapes.GetPhysicalSize(index) for index in indices) / 1000
        for indices in ((1, 2), (1,), (2,))
    )
    assert liver["volume_ml"] == pytest.approx(whole)
    assert liver["parenchyma_volume_ml"] == pytest.approx(parenchyma)
    assert liver["tumour_burden_percent"] == pytest.approx(100 * lesion / whole)
    assert liver["mean_hu"] == pytest.approx(values.GetMean(1), abs=1e-4)
    means = values.GetMean(1), values.GetMean(3)
    assert liver["liver_minus_spleen_hu"] == pytest.approx(means[0] - means[1], abs=1e-3)
    assert liver["liver_to_spleen_ratio"] == pytest.approx(means[0] / means[1], abs=1e-5)
    centroid = points_mm(mask.shape, affine)[(mask == 1) | (mask == 2)].mean(0)
    assert liver["centroid_ras_mm"] == pytest.approx(centroid)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -11, 20)])
def test_boxes_hold_the_corners_of_all_voxels(degrees):
    mask, _ = abdomen()
    affine = affine_of(SPACING_MM, degrees)
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    spleen = np.argwhere(mask == 3)[:, None] + corners
    mm = nib.affines.apply_affine(affine, spleen.reshape(-1, 3))
    found = figures(mask, affine)["classes"]["spleen"]
    assert found["bounding_box_low_ras_mm"] == pytest.approx(mm.min(0))
    assert found["bounding_box_high_ras_mm"] == pytest.approx(mm.max(0))


def test_figures_are_those_of_the_body_whatever_the_axes_of_the_file():
    mask, image = abdomen((48, 50, 20))
    affine = affine_of(SPACING_MM, (8, -11, 20))
    expected = figures(mask, affine, image)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = nib.orientations.inv_ornt_aff(
                np.stack([order, flips], 1), np.array(mask.shape)
            )
            arrays = [
                nib.orientations.apply_orientation(array, np.stack([order, flips], 1))
                for array in (mask, image)
            ]
            found = figures(arrays[0], affine @ turned, arrays[1])
            for one, other in zip(
                [*found["classes"].values(), *found["lesions"]],
                [*expected["classes"].values(), *expected["lesions"]],
                strict=True,
            ):
                # The ends of a diameter have no order.
                keys = [key for key in one if "start" not in key and "end" not in key]
                for key in keys:
                    assert one[key] == pytest.approx(other[key], abs=1e-4), key


def ellipsoid(radii_mm, spacing_mm, middle=(0.3, 0.1, -0.2), turn=0.0):
    half = np.ceil(np.max(radii_mm) / np.array(spacing_mm)).astype(int) + 2
    x, y, z = np.moveaxis(
        np.stack(np.indices(2 * half + 1), -1) * spacing_mm - half * spacing_mm - middle, -1, 0
    )
    x, y = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    return (x / radii_mm[0]) ** 2 + (y / radii_mm[1]) ** 2 + (z / radii_mm[2]) ** 2 <= 1


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 0.7), (0.8, 0.8, 2.5), (0.6, 1.1, 5.0)])
@pytest.mark.parametrize(
    ("radii_mm", "turn"), [((15, 15, 15), 0.0), ((20, 11, 16), 0.5), ((9, 24, 20), -0.3)]
)
def test_ellipsoids_have_the_figures_of_the_formula(spacing_mm, radii_mm, turn):
    mask = 2 * ellipsoid(radii_mm, spacing_mm, turn=turn).astype(np.uint8)
    (lesion,) = figures(mask, affine_of(spacing_mm))["lesions"]
    assert lesion["volume_ml"] == pytest.approx(
        4 / 3 * math.pi * np.prod(radii_mm) / 1000, rel=0.03
    )
    # Within a pixel, which is all that a grid can show.
    pixel_mm = math.hypot(*spacing_mm[:2])
    across = sorted(2 * np.array(radii_mm[:2]))
    assert lesion["longest_diameter_mm"] == pytest.approx(across[1], abs=pixel_mm)
    assert lesion["perpendicular_diameter_mm"] == pytest.approx(across[0], abs=pixel_mm)


def test_a_box_has_the_diameters_of_the_formula():
    mask = np.zeros((30, 30, 8), np.uint8)
    mask[4:24, 6:15, 2:5] = 2
    (lesion,) = figures(mask, affine_of((0.5, 1, 3)))["lesions"]
    assert lesion["volume_ml"] == pytest.approx(20 * 9 * 3 * 1.5 / 1000)
    # From the middle of the last edge on one side to that on the other, 10 and 9 mm apart less one
    # pixel's breadth along one of the sides.
    assert lesion["longest_diameter_mm"] == pytest.approx(math.hypot(10 - 0.5, 9))
    start, end = lesion["longest_diameter_start_ras_mm"], lesion["longest_diameter_end_ras_mm"]
    assert math.dist(start, end) == pytest.approx(lesion["longest_diameter_mm"])


@pytest.mark.parametrize("seed", range(6))
def test_diameters_of_any_shape_are_the_longest_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((26, 24, 9)), (3, 2, 1))
    mask = np.zeros(field.shape, np.uint8)
    mask[field > np.quantile(field, 0.8)] = 2
    affine = affine_of((0.7, 1.2, 3.0), (5, 9, 33), (-1, 1, 1))
    if seed == 5:
        affine[:3, :3] = affine[:3, :3] @ np.array([[1, 0, 0.2], [0, 1, 0.1], [0, 0, 1]])
    found = figures(mask, affine)["lesions"]
    pieces, count = components_of(mask, np.ones((3, 3, 3)))
    assert len(found) == count > 3
    expected = [longest_in_slices(pieces == number, affine) for number in range(1, count + 1)]
    assert sorted(each["longest_diameter_mm"] for each in found) == pytest.approx(
        sorted(length for length, *_ in expected)
    )
    for each in found:
        ends = [
            np.subtract(each[f"{name}_end_ras_mm"], each[f"{name}_start_ras_mm"])
            for name in ("longest_diameter", "perpendicular_diameter")
        ]
        assert np.linalg.norm(ends[1]) == pytest.approx(each["perpendicular_diameter_mm"])
        assert ends[0] @ ends[1] == pytest.approx(0, abs=1e-6)
        # In one slice.
        steps = np.linalg.inv(affine[:3, :3]) @ np.transpose(ends)
        assert steps[2] == pytest.approx([0, 0], abs=1e-9)


def test_the_perpendicular_is_the_longest_chord_of_a_convex_outline():
    corners = np.array([[4, 9], [40, 3], [57, 20], [46, 33], [15, 27]])
    mask = np.zeros((60, 36, 3), np.uint8)
    mask[..., 1] = 2 * polygon2mask((60, 36), corners)
    (lesion,) = figures(mask, np.eye(4))["lesions"]
    along = np.subtract(
        lesion["longest_diameter_end_ras_mm"], lesion["longest_diameter_start_ras_mm"]
    )[:2]
    along /= np.linalg.norm(along)
    # The polygon is convex, so lines across its pixels are chords: their length by counting.
    fine = np.repeat(np.repeat(mask[..., 1] > 0, 8, 0), 8, 1)
    u = (np.argwhere(fine) + 0.5) / 8 - 0.5
    rows = np.round(u @ along * 4).astype(int)
    across = u @ [-along[1], along[0]]
    longest = max(np.ptp(across[rows == row]) for row in np.unique(rows))
    assert lesion["perpendicular_diameter_mm"] == pytest.approx(longest, abs=1.0)


def test_pieces_of_a_lesion_in_one_slice_are_measured_each():
    # A horseshoe that stands: two feet of 4 pixels in the lower slice, 40 mm apart.
    mask = np.zeros((50, 12, 6), np.uint8)
    mask[3:7, 4:8, 1:3] = mask[43:47, 4:8, 1:3] = 2
    mask[3:47, 4:8, 3] = 2
    (lesion,) = figures(mask, np.eye(4))["lesions"]
    assert lesion["longest_diameter_mm"] == pytest.approx(math.hypot(44, 3))
    mask[7:43, 4:8, 3] = 0
    assert [each["longest_diameter_mm"] for each in figures(mask, np.eye(4))["lesions"]] == (
        pytest.approx([math.hypot(4, 3)] * 2)
    )


def test_a_coronal_scan_is_measured_in_axial_planes():
    mask = np.zeros((40, 30, 9), np.uint8)
    mask[5:35, 10:14, 3:5] = 2  # 30 mm head to foot
    affine = np.array([[0, 1, 0, 0], [0, 0, -4, 0], [-1.0, 0, 0, 0], [0, 0, 0, 1]])
    (lesion,) = figures(mask, affine)["lesions"]
    assert lesion["longest_diameter_mm"] == pytest.approx(math.hypot(3, 8))


def test_lesions_of_a_few_voxels_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = (2 * (rng.random(rng.integers(1, 8, 3)) > 0.7)).astype(np.uint8)
        found = figures(mask, np.eye(4))["lesions"]
        pieces, count = components_of(mask, np.ones((3, 3, 3)))
        volumes_ml = np.sort(np.bincount(pieces.ravel(), minlength=count + 1)[1:])[::-1] / 1000
        assert [each["volume_ml"] for each in found] == pytest.approx(volumes_ml.tolist())


def test_lesions_that_touch_at_a_corner_are_one():
    mask = np.zeros((12, 12, 6), np.uint8)
    mask[2:4, 2:4, 1:3] = mask[4:6, 4:6, 3:5] = 2
    assert figures(mask, np.eye(4))["classes"]["lesion"]["count"] == 1
    mask[2:4, 2:4, 1:3] = 0
    mask[1:3, 1:3, 0:2] = 2
    assert figures(mask, np.eye(4))["classes"]["lesion"]["count"] == 2


def distances_by_pairs(mask, affine):
    """From each lesion to the outer faces of the filled liver, all pairs, in float64."""
    liver = mask > 0
    filled = binary_fill_holes(liver)
    outer = []
    for axis in range(3):
        index = np.argwhere(np.diff(filled.astype(int), axis=axis)).astype(float)
        index[:, axis] += 0.5
        outer.append(index)
    outer = nib.affines.apply_affine(affine, np.concatenate(outer))
    pieces, count = components_of(mask == 2, np.ones((3, 3, 3)))
    steps = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    found = []
    for number in range(1, count + 1):
        faces = (np.argwhere(pieces == number)[:, None] + steps).reshape(-1, 3)
        faces = nib.affines.apply_affine(affine, faces)
        found.append(min(np.linalg.norm(outer - face, axis=1).min() for face in faces))
    return found


@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -11, 20)])
def test_distances_to_the_capsule_are_the_shortest_of_all_pairs(degrees):
    mask, _ = abdomen()
    mask[mask == 3] = 0
    mask[22, 20, 11] = 0  # a hole, which is no capsule
    affine = affine_of(SPACING_MM, degrees)
    found = [each["distance_to_capsule_mm"] for each in figures(mask, affine)["lesions"]]
    assert sorted(found) == pytest.approx(sorted(distances_by_pairs(mask, affine)), abs=1e-6)
    assert min(found) == 0 < max(found)


def test_the_distance_in_a_ball_is_that_of_the_formula():
    spacing_mm = (0.8, 0.8, 1.0)
    mask = ellipsoid((30, 30, 30), spacing_mm, (0, 0, 0)).astype(np.uint8)
    i, j, k = (n // 2 for n in mask.shape)
    mask[i + 20 : i + 25, j - 2 : j + 3, k - 2 : k + 3] = 2  # up to 24.5 × 0.8 mm from the middle
    (lesion,) = figures(mask, affine_of(spacing_mm, (10, 20, 30)))["lesions"]
    assert lesion["distance_to_capsule_mm"] == pytest.approx(30 - 24.5 * 0.8, abs=0.8)


def test_where_the_scan_cuts_the_liver_off_is_no_capsule():
    mask = np.zeros((40, 40, 12), np.uint8)
    mask[5:35, 5:35] = 1
    mask[15:25, 15:25, :4] = 2
    vessel = mask.copy()
    vessel[12:14, 18:20, :6] = 0
    for each in (mask, vessel):
        (lesion,) = figures(each, np.diag([1, 1, 4, 1]))["lesions"]
        assert lesion["distance_to_capsule_mm"] == pytest.approx(10)
    # A scan that was cropped to the liver shows it at the corners alone.
    x, y, _ = np.indices((41, 41, 5)) - 20
    disc = (np.hypot(x, y) <= 20).astype(np.uint8)
    disc[20, 20] = 2
    (lesion,) = figures(disc, np.eye(4))["lesions"]
    assert lesion["distance_to_capsule_mm"] == pytest.approx(19.5, abs=0.75)
    (lesion,) = figures(np.where(disc, disc, 1).astype(np.uint8), np.eye(4))["lesions"]
    assert lesion["distance_to_capsule_mm"] is None


def test_what_does_not_exist_is_null_and_what_is_absent_zero(tmp_path):
    found = figures(np.zeros((5, 6, 7), np.uint8), np.eye(4), np.zeros((5, 6, 7), np.float32))
    liver, lesion = found["classes"]["liver"], found["classes"]["lesion"]
    assert liver["volume_ml"] == liver["parenchyma_volume_ml"] == lesion["volume_ml"] == 0
    assert lesion["count"] == 0 and found["lesions"] == []
    for key in ("centroid_ras_mm", "mean_hu", "tumour_burden_percent", "liver_minus_spleen_hu"):
        assert liver[key] is None
    write_json(tmp_path / "Größe.json", found)
    text = (tmp_path / "Größe.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == found


def test_a_bundle_without_lesions_or_liver_says_nothing_of_them():
    mask, image = abdomen()
    mask[mask == 2] = 1
    found = figures(mask, np.eye(4), image, names={1: "liver", 3: "spleen"})
    assert "lesions" not in found and "lesion" not in found["classes"]
    assert found["classes"]["liver"]["parenchyma_volume_ml"] is None
    assert found["classes"]["liver"]["tumour_burden_percent"] is None
    assert found["classes"]["liver"]["liver_minus_spleen_hu"] == pytest.approx(
        float(image[mask == 1].mean() - image[mask == 3].mean()), abs=1e-3
    )
    lesions = figures((mask == 1).astype(np.uint8), np.eye(4), names={1: "lesion"})["lesions"]
    assert [each["distance_to_capsule_mm"] for each in lesions] == [None]


def test_one_slice_and_one_voxel():
    mask = np.ones((20, 20, 1), np.uint8)
    mask[0], mask[10, 12], mask[5, 5] = 0, 2, 0
    (lesion,) = figures(mask, affine_of((0.5, 0.5, 5)))["lesions"]
    assert lesion["volume_ml"] == pytest.approx(1.25 / 1000)
    assert lesion["longest_diameter_mm"] == pytest.approx(0.5)
    assert lesion["perpendicular_diameter_mm"] == pytest.approx(0.5)
    # To the row of air: the hole at (5, 5) is nearer than it in no direction that counts.
    assert lesion["distance_to_capsule_mm"] == pytest.approx(4.5)
    assert lesion["mean_hu"] is None


def test_mr_has_intensities_and_no_hu():
    mask, image = abdomen()
    found = figures(mask, np.eye(4), image, "mr")
    assert not any(key.endswith("_hu") for key in found["lesions"][0])
    assert found["lesions"][0]["mean_intensity"] == pytest.approx(60, abs=2)
    assert found["classes"]["liver"]["liver_minus_spleen_hu"] is None


def test_classes_of_one_meaning_are_one():
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[1:3, 1:3, 1:3], mask[5:8, 5:8, 5:8] = 1, 2
    found = figures(mask, np.eye(4), names={1: "lesion_1", 2: "Lesion 2"})
    assert found["classes"]["lesion"]["volume_ml"] == pytest.approx(35 / 1000)
    assert [each["volume_ml"] for each in found["lesions"]] == pytest.approx([0.027, 0.008])


def test_tables_have_a_row_for_each_class_and_lesion(tmp_path):
    mask, image = abdomen()
    cases = [figures(mask, np.eye(4), image), figures(np.zeros_like(mask), np.eye(4), image)]
    organs, lesions = statistics_tables(cases)
    organs.to_csv(tmp_path / "organs.csv", index=False)
    read = pd.read_csv(tmp_path / "organs.csv")
    assert read["class"].tolist() == ["liver", "lesion", "spleen"] * 2
    assert read["volume_ml"].tolist() == [
        each["volume_ml"] for case in cases for each in case["classes"].values()
    ]
    assert [read[f"centroid_{axis}_mm"][2] for axis in "ras"] == pytest.approx(
        cases[0]["classes"]["spleen"]["centroid_ras_mm"]
    )
    assert read["centroid_r_mm"].isna().tolist() == [False] * 3 + [True] * 3
    assert lesions["lesion"].tolist() == [1, 2]
    statistics_tables(cases[1:])[1].to_csv(tmp_path / "lesions.csv", index=False)
    assert pd.read_csv(tmp_path / "lesions.csv").empty


def test_wrong_input_is_refused_in_one_sentence():
    mask, image = abdomen()
    with pytest.raises(InputError, match=r"scan.nii.gz: found \(60, 64, 21\) voxels"):
        figures(mask, np.eye(4), image[..., 1:])
    with pytest.raises(InputError, match="found the value 3 in its mask, expected one of 1, 2"):
        figures(mask, np.eye(4), image, names={1: "liver", 2: "lesion"})
    with pytest.raises(InputError, match="modality: found 'pet'"):
        figures(mask, np.eye(4), image, "pet")
    image[tuple(np.argwhere(mask == 3)[0])] = np.nan
    with pytest.raises(InputError, match="found voxels of spleen that are not finite"):
        figures(mask, np.eye(4), image)
