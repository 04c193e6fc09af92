"""The dense CRF against a mean field with exact kernels over all voxel pairs, in float64."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from liverseg.errors import InputError
from liverseg.transforms import DenseCRF, DenseCRFd

KERNELS = {
    "smoothness_mm": 2.0,
    "smoothness_weight": 1.5,
    "appearance_mm": 5.0,
    "appearance_intensity": 0.2,
    "appearance_weight": 3.0,
}


def tensor(array, spacing=(1, 1, 1)):
    return MetaTensor(torch.tensor(array), affine=np.diag([*spacing, 1.0]))


def apply(pred, image, spacing=(1, 1, 1), **arguments):
    """Map labels (H, W, D) or probabilities (C, H, W, D) and an image (H, W, D) to labels."""
    pred = pred[None] if pred.ndim == 3 else pred
    return np.asarray(DenseCRF(**arguments)(tensor(pred, spacing), tensor(image[None], spacing)))[0]


def mean_field(probabilities, image, spacing, kernels, num_iterations):
    """Marginals (C, voxels) of probabilities (C, …), by the paper, with normalised kernels."""
    positions = (
        np.indices(image.shape).reshape(image.ndim, -1) * np.asarray(spacing, float)[:, None]
    )
    squared_mm = ((positions[:, :, None] - positions[:, None]) ** 2).sum(0)
    squared_intensity = np.subtract.outer(image.ravel(), image.ravel()) ** 2
    pairwise = 0
    for weight, exponent in (
        (kernels["smoothness_weight"], squared_mm / kernels["smoothness_mm"] ** 2),
        (
            kernels["appearance_weight"],
            squared_mm / kernels["appearance_mm"] ** 2
            + squared_intensity / kernels["appearance_intensity"] ** 2,
        ),
    ):
        kernel = np.exp(-exponent / 2)
        norm = kernel.sum(1) ** -0.5
        pairwise = pairwise + weight * kernel * np.outer(norm, norm)
    unary = probabilities.reshape(len(probabilities), -1).astype(np.float64)
    marginals = unary
    for _ in range(num_iterations):
        marginals = unary * np.exp(marginals @ pairwise)
        marginals = marginals / marginals.sum(0)
    return marginals


def assert_agrees(found, marginals):
    """Assert equal labels but for near draws: the lattice is off by some percent."""
    mistaken = found.ravel() != marginals.argmax(0)
    second, first = np.sort(marginals, axis=0)[-2:]
    assert mistaken.mean() <= 0.025
    assert (first - second)[mistaken].max(initial=0) <= 0.2


def tiny(num_classes, shape=(10, 8, 6), seed=0):
    """Draw probabilities of regions in heavy noise, and an image that shows the regions."""
    rng = np.random.default_rng(seed)
    region = (np.arange(shape[0]) * num_classes // shape[0])[:, None, None] * np.ones(shape, int)
    image = region / num_classes + rng.normal(0, 0.1, shape)
    logits = rng.normal(0, 1, (num_classes, *shape)) + 0.8 * (
        np.arange(num_classes)[:, None, None, None] == region
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    return probabilities.astype(np.float32), image.astype(np.float32)


def ball(spacing=(1, 1, 2), shape=(26, 25, 14), seed=0):
    """Draw a ball of 8 mm, a segmentation with a fifth of its voxels wrong, and a noisy image."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape) * np.reshape(spacing, (3, 1, 1, 1))
    truth = np.linalg.norm(grid - np.array([13, 12, 14])[:, None, None, None], axis=0) < 8
    noisy = truth ^ (rng.random(shape) < 0.2)
    image = 0.4 + 0.2 * truth + rng.normal(0, 0.05, shape)
    return truth, noisy.astype(np.uint8), image.astype(np.float32)


def dice(a, b):
    a, b = a > 0, b > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("num_iterations", [1, 5])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"smoothness_weight": 0},
        {"appearance_weight": 0},
        {"smoothness_mm": 1},
        {"appearance_mm": 2},
        {"appearance_intensity": 0.4},
    ],
    ids=str,
)
def test_equals_the_mean_field_over_all_pairs(change, num_iterations):
    probabilities, image = tiny(3)
    spacing, kernels = (0.7, 1.5, 3), KERNELS | change
    found = apply(probabilities, image, spacing, num_iterations=num_iterations, **kernels)
    assert_agrees(found, mean_field(probabilities, image, spacing, kernels, num_iterations))
    assert (found != probabilities.argmax(0)).mean() > 0.03


def test_equals_the_mean_field_in_each_slice():
    probabilities, image = tiny(2, (20, 18, 3))
    found = apply(probabilities, image, (0.8, 1.6, 5), spatial_dims=2, **KERNELS)
    for index in range(3):
        marginals = mean_field(probabilities[..., index], image[..., index], (0.8, 1.6), KERNELS, 5)
        assert_agrees(found[..., index], marginals)


def test_labels_stand_for_their_confidence():
    probabilities, image = tiny(3)
    indices = probabilities.argmax(0)
    labels = np.array([0, 5, 7], np.uint8)[indices]
    for confidence in (0.6, 0.9):
        spread = np.where(
            np.arange(3)[:, None, None, None] == indices, confidence, 1 - confidence
        ) / (2 - confidence)
        found = apply(labels, image, label_confidence=confidence, **KERNELS)
        expected = apply(spread.astype(np.float32), image, **KERNELS)
        assert np.array_equal(found, np.array([0, 5, 7])[expected])
        assert_agrees(expected, mean_field(spread, image, (1, 1, 1), KERNELS, 5))


def test_nested_labels_stay_in_the_foreground():
    probabilities, image = tiny(4)
    background = probabilities.argmax(0) == 0
    allowed = probabilities.copy()
    allowed[2:, background] = 0
    allowed /= allowed.sum(0)
    assert (apply(probabilities, image, **KERNELS)[background] > 1).mean() > 0.1
    found = apply(probabilities, image, nested=True, **KERNELS)
    assert not (found[background] > 1).any()
    assert (found[background] == 1).any()
    assert_agrees(found, mean_field(allowed, image, (1, 1, 1), KERNELS, 5))
    strong = KERNELS | {"appearance_weight": 300.0}
    assert not (
        apply(probabilities.argmax(0).astype(np.uint8), image, nested=True, **strong)[background]
        > 1
    ).any()


def test_axes_take_their_own_spacing():
    _, noisy, image = ball()
    kernels = {"smoothness_mm": 2.0, "appearance_weight": 0}
    found = apply(noisy, image, (1, 3, 2), **kernels)
    swapped = apply(
        noisy.swapaxes(0, 1).copy(), image.swapaxes(0, 1).copy(), (3, 1, 2), **kernels
    ).swapaxes(0, 1)
    other = apply(noisy, image, (3, 1, 2), **kernels)
    # The lattice is not symmetric in its axes: its errors of some percent tip a few near draws.
    assert (found != swapped).mean() < 0.2 * (found != other).mean()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_noisy_mask_comes_nearer_to_the_truth(spatial_dims):
    truth, noisy, image = ball()
    assert dice(noisy, truth) < 0.6
    assert dice(apply(noisy, image, (1, 1, 2), spatial_dims=spatial_dims), truth) > 0.95


def test_the_image_decides_where_the_border_lies():
    truth, _, image = ball()
    shifted = np.roll(truth, 3, axis=0).astype(np.uint8)
    with_image = apply(shifted, image, (1, 1, 2))
    without = apply(shifted, image, (1, 1, 2), appearance_weight=0)
    assert dice(with_image, truth) > dice(without, truth) + 0.1


def test_slices_are_on_their_own_in_2d():
    _, noisy, image = ball()
    noisy[..., 3] = 0
    noisy[..., 4] = 1
    whole = apply(noisy, image, (1, 1, 2), spatial_dims=2)
    single = [
        apply(noisy[..., [k]], image[..., [k]], (1, 1, 2), spatial_dims=2)
        for k in range(noisy.shape[2])
    ]
    assert np.array_equal(whole, np.concatenate(single, axis=2))
    assert not whole[..., 3].any()
    assert whole[..., 4].all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_looks_as_far_as_the_margin(spatial_dims):
    """Twice 3 mm around the foreground: 6, 3 and 2 voxels."""
    rng = np.random.default_rng(1)
    spacing, kernels = (
        (1, 2, 3),
        {"spatial_dims": spatial_dims, "smoothness_mm": 1.0, "appearance_mm": 3.0},
    )
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[15:25, 12:20, 8:13] = rng.integers(1, 3, (10, 8, 5))
    labels[15, 12, 8] = labels[24, 19, 12] = 1
    image = rng.random(labels.shape).astype(np.float32)
    inside = (slice(9, 31), slice(9, 23), slice(6, 15) if spatial_dims == 3 else slice(8, 13))
    expected = np.zeros_like(labels)
    expected[inside] = apply(labels[inside].copy(), image[inside].copy(), spacing, **kernels)
    assert (expected != labels).any()
    outside = np.ones(labels.shape, bool)
    outside[inside] = False
    image[outside] = np.nan
    assert np.array_equal(apply(labels, image, spacing, **kernels), expected)
    image[9, 9, inside[2].start] = np.nan
    with pytest.raises(InputError, match="intensities from nan"):
        apply(labels, image, spacing, **kernels)


@pytest.mark.parametrize("value", [0, 1, 4])
def test_one_label_comes_back_as_it_is(value):
    labels = np.full((5, 4, 3), value, np.float32)
    image = np.full((5, 4, 3), np.nan, np.float32)  # a CRF would stop at this
    found = DenseCRF()(tensor(labels[None]), tensor(image[None]))
    assert found.dtype == torch.uint8
    assert (np.asarray(found) == value).all()


def test_probabilities_of_nothing_but_background_give_an_empty_mask():
    background = np.stack([np.full((5, 4, 3), 0.9), np.full((5, 4, 3), 0.1)]).astype(np.float32)
    assert not apply(background, np.zeros((5, 4, 3), np.float32)).any()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16]
)
def test_takes_label_maps_of_any_type(dtype):
    _, noisy, image = ball()
    pred = tensor(noisy[None]).to(dtype)
    found = DenseCRF()(pred, tensor(image[None]))
    assert np.array_equal(np.asarray(found)[0], apply(noisy.copy(), image))
    assert torch.equal(pred.as_tensor(), torch.tensor(noisy[None]).to(dtype))


def test_probabilities_of_zero_and_one_are_taken():
    truth, noisy, image = ball()
    one_hot = np.stack([1 - noisy, noisy])
    assert dice(apply(one_hot, image, smoothness_weight=20), truth) > 0.9


@pytest.mark.parametrize("channels", [1, 2])
def test_keeps_the_metadata(channels):
    probabilities, image = tiny(2)
    pred = tensor(probabilities if channels == 2 else probabilities.argmax(0)[None], (1, 2, 3))
    pred.meta["filename_or_obj"] = "scan.nii.gz"
    pred.push_applied_operation({"class": "Orientation"})
    before = pred.clone()
    found = DenseCRF()(pred, tensor(image[None], (1, 2, 3)))
    assert isinstance(found, MetaTensor)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (1, 10, 8, 6))
    assert torch.equal(found.affine, before.affine)
    assert found.meta["filename_or_obj"] == "scan.nii.gz"
    assert found.applied_operations == before.applied_operations
    assert torch.equal(pred.as_tensor(), before.as_tensor())


def test_the_dictionary_transform_delegates():
    _, noisy, image = ball()
    arguments = {
        "spatial_dims": 2,
        "smoothness_mm": 2.0,
        "smoothness_weight": 1.5,
        "appearance_mm": 4.0,
        "appearance_intensity": 0.07,
        "appearance_weight": 2.5,
        "num_iterations": 3,
        "label_confidence": 0.6,
        "nested": True,
    }
    data = {"pred": tensor(noisy[None]), "ct": tensor(image[None])}
    transform = DenseCRFd("pred", image_key="ct", **arguments)
    assert vars(transform.transform) == vars(DenseCRF(**arguments))
    assert np.array_equal(np.asarray(transform(data)["pred"])[0], apply(noisy, image, **arguments))
    assert DenseCRFd("absent", image_key="ct", allow_missing_keys=True)(data).keys() == data.keys()


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(InputError, match=r"pip install pydensecrf2"):
        DenseCRF()


LABELS = np.zeros((1, 5, 4, 3), np.uint8)
LABELS[0, 2, 2, 1] = 1
IMAGE = np.zeros((1, 5, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("pred", "image", "sentence"),
    [
        (
            LABELS[0],
            IMAGE,
            r"pred: segmentation: found shape \(5, 4, 3\), expected \(1, H, W, D\) or",
        ),
        (LABELS[:, :, :0], IMAGE[:, :, :0], "at least one voxel"),
        (LABELS, IMAGE[..., :2], r"image: found shape \(1, 5, 4, 2\), expected \(1, 5, 4, 3\)"),
        (
            LABELS,
            np.concatenate([IMAGE, IMAGE]),
            r"image: found shape \(2, 5, 4, 3\), expected \(1, 5, 4, 3\)",
        ),
        (LABELS + 0.5, IMAGE, "one channel with values other than the whole numbers 0 to 255"),
        (LABELS * 300.0, IMAGE, "one channel with values other than the whole numbers 0 to 255"),
        (
            np.concatenate([LABELS * 4.0, LABELS - 3.0]),
            IMAGE,
            "from -3 to 4, expected probabilities",
        ),
        (np.full((2, 5, 4, 3), np.nan), IMAGE, "expected probabilities"),
        (LABELS, IMAGE * np.nan, "image: found intensities from nan to nan"),
        (
            LABELS,
            np.arange(60, dtype=np.float32).reshape(IMAGE.shape),
            "from 0 to 59, expected a span of at most 1000",
        ),
    ],
)
def test_bad_input_gets_a_message(pred, image, sentence):
    data = {"pred": tensor(pred), "image": tensor(image)}
    with pytest.raises(InputError, match=sentence):
        DenseCRFd("pred")(data)


def test_millimetres_need_an_affine():
    with pytest.raises(InputError, match="segmentation: found no affine, expected a MetaTensor"):
        DenseCRF()(torch.tensor(LABELS), tensor(IMAGE))


def test_a_missing_image_gets_a_message():
    with pytest.raises(InputError, match=r"image_key: found no 'image' among \['ct', 'pred'\]"):
        DenseCRFd("pred")({"pred": tensor(LABELS), "ct": tensor(IMAGE)})


@pytest.mark.parametrize(
    "argument",
    [
        {"spatial_dims": 1},
        {"smoothness_mm": 0},
        {"appearance_mm": -1},
        {"appearance_intensity": float("nan")},
        {"smoothness_weight": -1},
        {"appearance_weight": float("inf")},
        {"num_iterations": 0},
        {"label_confidence": 0.5},
        {"label_confidence": 1},
    ],
    ids=str,
)
def test_arguments_out_of_range_get_a_message(argument):
    (name,) = argument
    with pytest.raises(InputError, match=f"{name}: found .*, expected"):
        DenseCRF(**argument)
