"""The shipped postprocessing against the literal algorithms, bit for bit.

With the disk of all pixels within the radius, and with MATLAB's.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import literal_postprocessing as literal
from monai.data import MetaTensor
from monai.transforms import Compose, FillHoles, FillHolesd, KeepLargestConnectedComponentd
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.transforms import (
    CleanSlices,
    CleanSlicesd,
    ErodeKeepLargestDilate,
    ErodeKeepLargestDilated,
    FillBackgroundHoles,
    FillBackgroundHolesd,
    SmoothEdges,
    SmoothEdgesd,
)
from liverseg.transforms.morphology import matlab_disk

SPACING = (0.7, 0.9, 2.5)
PAIRS = {
    "1": (ErodeKeepLargestDilate, literal.algorithm_1),
    "2": (CleanSlices, literal.algorithm_2),
    "3": (SmoothEdges, literal.algorithm_3),
}


def blobs(shape, seed, sigma=2.5, share=0.5):
    """Draw smooth random regions that touch each other and the border, with speckle around them."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), sigma)
    mask = smooth > np.quantile(smooth, 1 - share)
    return mask ^ (generator.random(shape) < 0.01)


def masks():
    generator = np.random.default_rng(0)
    shape = (31, 26, 70)
    ball = np.linalg.norm(np.indices(shape) - np.array([15, 13, 35])[:, None, None, None], axis=0)
    corner = np.zeros(shape, bool)
    corner[:12, :9, :20] = True
    corner[-8:, -8:, -8:] = True
    yield "blobs", blobs(shape, 1)
    yield "blobs in most of the image", blobs(shape, 2, share=0.8)
    yield "noise", generator.random(shape) < 0.5
    yield "dense noise", generator.random(shape) < 0.97
    yield "sparse noise", generator.random(shape) < 0.02
    yield "ball with a hole", (ball < 12) & (ball > 4)
    yield "at the border", corner
    yield "empty", np.zeros(shape, bool)
    yield "full", np.ones(shape, bool)
    yield "one voxel", np.arange(np.prod(shape)).reshape(shape) == 777
    yield "one slice", blobs((40, 33, 1), 3)
    yield "one slice, first axis", blobs((1, 40, 33), 4)
    yield "one row", blobs((1, 40, 1), 5, share=0.7)
    yield "a word and one voxel long", blobs((9, 11, 65), 6, share=0.7)
    yield "two words long", blobs((12, 10, 128), 7, share=0.7)


def apply(transform, labels, affine=None):
    return np.asarray(transform(MetaTensor(torch.tensor(labels[None]), affine=affine)))[0]


@pytest.mark.parametrize("algorithm", PAIRS)
@pytest.mark.parametrize(("name", "mask"), masks(), ids=[name for name, _ in masks()])
def test_equals_the_literal_algorithm(algorithm, name, mask):
    shipped, reference = PAIRS[algorithm]
    assert np.array_equal(apply(shipped(), mask.astype(np.uint8)).astype(bool), reference(mask))


@pytest.mark.parametrize("algorithm", ["1", "2"])
@pytest.mark.parametrize("radius", [0, 1, 2, 2.5, 4])
@pytest.mark.parametrize("keep_largest", [True, False])
def test_equals_for_other_radii_and_without_keeping_the_largest(algorithm, radius, keep_largest):
    shipped, reference = PAIRS[algorithm]
    mask = blobs((30, 25, 40), 11, share=0.6)
    found = apply(shipped(radius=radius, keep_largest=keep_largest), mask.astype(np.uint8))
    assert np.array_equal(
        found.astype(bool), reference(mask, radius=radius, keep_largest=keep_largest)
    )


@pytest.mark.parametrize("algorithm", ["1", "2"])
@pytest.mark.parametrize("radius_mm", [1.0, 2.5, 3.6])
def test_equals_for_radii_in_mm(algorithm, radius_mm):
    shipped, reference = PAIRS[algorithm]
    mask = blobs((36, 30, 20), 12, share=0.6)
    # The affine turns and flips axes: spacing is the length of its columns.
    affine = np.array(
        [[0, -SPACING[1], 0, 4], [SPACING[0], 0, 0, -9], [0, 0, -SPACING[2], 1], [0, 0, 0, 1]]
    )
    found = apply(shipped(radius_mm=radius_mm), mask.astype(np.uint8), affine)
    assert np.array_equal(found.astype(bool), reference(mask, radius=radius_mm, spacing=SPACING))
    assert not np.array_equal(found.astype(bool), reference(mask))


def test_the_disk_of_matlab_is_that_of_its_program():
    # strel('disk', 3) of R2018b; below 3 it takes no lines.
    assert np.array_equal(matlab_disk(3), np.ones((5, 5)))
    assert np.array_equal(matlab_disk(2), literal.ball(2, (1, 1)))
    assert np.array_equal(matlab_disk(0), [[True]])
    # strel('disk', 5): 9 x 9 pixels but three in each corner.
    corner = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert np.array_equal(matlab_disk(5)[:4, :4], corner)
    assert matlab_disk(5).sum() == 81 - 4 * 3
    for radius in range(3, 40):
        assert np.array_equal(matlab_disk(radius), literal.matlab_disk(radius)), radius


@pytest.mark.parametrize(("name", "mask"), masks(), ids=[name for name, _ in masks()])
def test_equals_the_literal_algorithm_with_the_disk_of_matlab(name, mask):
    found = apply(CleanSlices(element="matlab_disk"), mask.astype(np.uint8))
    expected = literal.algorithm_2(mask, element=literal.matlab_disk(3))
    assert np.array_equal(found.astype(bool), expected)
    assert name != "blobs" or not np.array_equal(expected, literal.algorithm_2(mask))


@pytest.mark.parametrize("radius", [4, 5, 6])
@pytest.mark.parametrize("keep_largest", [True, False])
def test_equals_for_other_radii_with_the_disk_of_matlab(radius, keep_largest):
    mask = ndimage.gaussian_filter(np.random.default_rng(8).normal(size=(40, 36, 50)), 5) > 0
    options = {"keep_largest": keep_largest}
    found = apply(
        CleanSlices(radius=radius, element="matlab_disk", **options), mask.astype(np.uint8)
    )
    expected = literal.algorithm_2(mask, element=literal.matlab_disk(radius), **options)
    assert np.array_equal(found.astype(bool), expected)
    assert not np.array_equal(expected, literal.algorithm_2(mask, radius=radius, **options))


@pytest.mark.parametrize("axes", [(2,), (0, 1), (2, 1, 0)])
@pytest.mark.parametrize("algorithm", ["2", "3"])
def test_equals_for_other_axes(algorithm, axes):
    shipped, reference = PAIRS[algorithm]
    mask = blobs((30, 25, 28), 13, share=0.6)
    assert np.array_equal(
        apply(shipped(axes=axes), mask.astype(np.uint8)).astype(bool), reference(mask, axes=axes)
    )


def label_map():
    """Two organs beside each other and a lesion inside the first."""
    labels = np.zeros((40, 36, 30), np.uint8)
    labels[blobs(labels.shape, 15, sigma=4)] = 1
    labels[blobs(labels.shape, 16, sigma=4, share=0.3)] = 5
    labels[12:24, 10:22, 8:20] = 2
    return labels


@pytest.mark.parametrize("algorithm", PAIRS)
def test_several_labels_equal_the_literal_ones(algorithm):
    shipped, reference = PAIRS[algorithm]
    labels = label_map()
    expected = literal.per_label(reference, labels)
    assert np.array_equal(apply(shipped(), labels), expected)


def fill_background(labels, nested):
    """From the highest label down: what does not hang together with the edge."""
    filled = labels.copy()
    for label in range(labels.max(), 0, -1):
        bound = filled >= label if nested else filled == label
        components, _ = ndimage.label(np.pad(~bound, 1, constant_values=True))
        closed = (components != components[0, 0, 0])[1:-1, 1:-1, 1:-1]
        filled[closed & (filled == 0)] = label
    return filled


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(30, 26, 28), (25, 30, 1), (1, 1, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_holes_are_those_of_the_complement(shape, dtype, nested):
    labels = np.random.default_rng(20).choice(4, shape, p=[0.2, 0.6, 0.15, 0.05])
    fill = FillBackgroundHoles(nested=nested)
    found = apply(fill, labels.astype(dtype))
    assert found.dtype == dtype
    assert np.array_equal(found, fill_background(labels, nested))
    assert shape[2] != 28 or not np.array_equal(found, labels)
    assert not apply(fill, np.zeros(shape, dtype)).any()


def test_a_vessel_in_the_liver_is_no_hole():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:18, 2:18, 2:18] = 3
    labels[8:12, 8:12, 8:12] = 2  # closed in by the liver
    labels[5, 5, 5] = 0  # inside the liver
    labels[7, 9, 9] = 0  # between liver and vessel
    expected = labels.copy()
    expected[5, 5, 5] = 3
    assert (apply(FillHoles(connectivity=1), labels) == 3)[9, 9, 9]
    found = apply(FillBackgroundHoles(), labels)
    expected[7, 9, 9] = 3
    assert np.array_equal(found, expected)


def test_a_lesion_in_the_liver_is_no_hole():
    labels = np.zeros((24, 22, 20), np.uint8)
    labels[2:20, 2:20, 2:18] = 1
    labels[5:12, 5:12, 5:12] = 2
    labels[8, 8, 8] = 0  # inside the lesion
    labels[12:14, 8, 8] = 0  # between lesion and liver
    labels[16, 16, 10] = 0  # inside the liver
    labels[19, 10, 10] = 0  # open to the outside
    expected = labels.copy()
    expected[8, 8, 8], expected[12:14, 8, 8], expected[16, 16, 10] = 2, 1, 1
    image = MetaTensor(torch.tensor(labels[None]), affine=torch.eye(4))
    found = FillBackgroundHolesd("pred", nested=True)({"pred": image})["pred"]
    assert isinstance(found, MetaTensor)
    assert np.array_equal(found[0].numpy(), expected)
    assert np.array_equal(image[0].numpy(), labels)
    assert not (apply(FillHoles(connectivity=1), labels) == 2).any()


def test_of_equal_components_the_first_in_scan_order_stays():
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[2:10, 18:26, 2:10] = 1
    mask[18:26, 2:10, 18:26] = 1
    kept = apply(ErodeKeepLargestDilate(radius=1), mask)
    assert kept[5, 20, 5] == 1
    assert kept[20, 5, 20] == 0
    assert np.array_equal(kept.astype(bool), literal.algorithm_1(mask.astype(bool), radius=1))


@pytest.mark.real_data
def test_a_true_liver(samples):
    organs = nib.load(samples / "ts_ct_organs.nii.gz")
    mask = np.asarray(organs.dataobj) == 5
    noisy = mask ^ (np.random.default_rng(3).random(mask.shape) < 0.02)
    for shipped, reference in PAIRS.values():
        assert np.array_equal(
            apply(shipped(), noisy.astype(np.uint8), organs.affine).astype(bool), reference(noisy)
        )


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16]
)
@pytest.mark.parametrize("shipped", [pair[0] for pair in PAIRS.values()])
def test_type_and_affine_are_kept_and_the_input_is_not_changed(dtype, shipped):
    labels = torch.tensor(blobs((20, 21, 22), 17)[None]).to(dtype)
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(labels.clone(), affine=affine, meta={"filename_or_obj": "a.nii"})
    output = shipped()(image)
    assert isinstance(output, MetaTensor)
    assert output.dtype == dtype
    assert torch.equal(output.affine, affine)
    assert output.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(image.as_tensor(), labels)
    plain = shipped()(labels)
    assert not isinstance(plain, MetaTensor)
    assert torch.equal(plain, output.as_tensor())


def test_numpy_and_strided_arrays():
    mask = blobs((20, 21, 22), 18).astype(np.int16)
    strided = np.asfortranarray(mask)[::-1, :, ::2]
    found = ErodeKeepLargestDilate(radius=1)(strided[None])
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.int16
    assert np.array_equal(
        found[0].astype(bool), literal.algorithm_1(strided.astype(bool), radius=1)
    )


@pytest.mark.parametrize(
    ("wrapper", "shipped"),
    [
        (ErodeKeepLargestDilated, ErodeKeepLargestDilate),
        (CleanSlicesd, CleanSlices),
        (SmoothEdgesd, SmoothEdges),
    ],
)
def test_the_dictionary_form_does_the_same_and_leaves_other_keys(wrapper, shipped):
    pred = torch.tensor(blobs((20, 21, 22), 19)[None]).to(torch.uint8)
    options = {"axes": (1,)} if wrapper is SmoothEdgesd else {"radius": 1}
    output = wrapper(keys="pred", **options)({"pred": pred, "other": 3})
    assert torch.equal(output["pred"], shipped(**options)(pred))
    assert output["other"] == 3


def test_monais_stand_in_the_same_place():
    pred = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    pred[:, 2:14, 2:14, 2:14] = 1
    pred[:, 7, 7, 7] = 0
    pred[:, 17:19, 17:19, 17:19] = 1
    chain = Compose(
        [
            KeepLargestConnectedComponentd("pred", is_onehot=False),
            FillHolesd("pred", connectivity=1),
            SmoothEdgesd("pred"),
        ]
    )
    output = chain({"pred": pred})["pred"]
    assert output[0, 7, 7, 7] == 1
    assert output[0, 18, 18, 18] == 0


def test_a_mask_emptied_by_the_erosion_is_a_warning(caplog):
    thin = np.zeros((10, 10, 10), np.uint8)
    thin[4:6] = 1
    assert not apply(ErodeKeepLargestDilate(), thin).any()
    assert "nothing of label 1 is left" in caplog.text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ErodeKeepLargestDilate(radius=-1), "radius: found -1"),
        (lambda: CleanSlices(axes=(3,)), "axes"),
        (lambda: CleanSlices(axes=()), "axes"),
        (lambda: CleanSlices(element="square"), "element: found square, expected disk or"),
        (lambda: CleanSlices(element="matlab_disk", radius_mm=5), "matlab_disk with radius_mm 5"),
        (lambda: CleanSlices(element="matlab_disk", radius=2.5), "matlab_disk with radius 2.5"),
        (lambda: ErodeKeepLargestDilate()(torch.zeros(4, 4, 4)), "shape"),
        (lambda: ErodeKeepLargestDilate()(torch.full((1, 4, 4, 4), 0.5)), "whole numbers"),
        (lambda: ErodeKeepLargestDilate(radius_mm=3)(torch.ones(1, 4, 4, 4)), "radius_mm"),
        (lambda: ErodeKeepLargestDilate(radius=64)(torch.ones(1, 140, 140, 140)), "63"),
        (
            lambda: ErodeKeepLargestDilated("pred", radius_mm=3)({"pred": torch.ones(1, 4, 4, 4)}),
            "pred: radius_mm",
        ),
    ],
)
def test_wrong_options_and_inputs_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
