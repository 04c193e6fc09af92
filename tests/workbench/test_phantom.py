from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from liverseg.errors import InputError
from liverseg.workbench.phantoms.anatomy import ORGANS
from liverseg.workbench.phantoms.canvas import smooth_field
from liverseg.workbench.phantoms.phantom import make_phantom

SEEDS = range(6)


@pytest.fixture(scope="module")
def phantoms():
    """One phantom per seed with default settings, and as many lesions as its seed."""
    return [make_phantom(seed, num_lesions=seed) for seed in SEEDS]


def world_mm(phantom, mask):
    return np.argwhere(mask) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]


def volume_ml(phantom, mask):
    return mask.sum() * abs(np.linalg.det(phantom.affine[:3, :3])) / 1000


def largest_component(mask):
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_same_seed_gives_same_bits_and_other_seeds_differ(phantoms):
    again = make_phantom(3, num_lesions=3)
    for name in ("image", "organs", "labels", "affine"):
        assert getattr(again, name).tobytes() == getattr(phantoms[3], name).tobytes()
    livers = [p.organs == ORGANS["liver"] for p in phantoms]
    assert max(dice(livers[0], other) for other in livers[1:]) < 0.98


def test_types_and_axes(phantoms):
    p = phantoms[0]
    assert (p.image.dtype, p.organs.dtype, p.labels.dtype) == (np.float32, np.uint8, np.uint8)
    assert p.image.shape == p.organs.shape == p.labels.shape == (128, 128, 48)
    np.testing.assert_array_equal(p.affine[:3, :3], np.diag((3.0, 3.0, 5.0)))
    np.testing.assert_array_equal(p.image, np.rint(p.image))


@pytest.mark.parametrize("seed", SEEDS)
def test_anatomy_lies_where_a_patient_has_it(phantoms, seed):
    p = phantoms[seed]
    centre = {name: world_mm(p, p.organs == index).mean(0) for name, index in ORGANS.items()}
    right, front, head = 0, 1, 2
    assert centre["liver"][right] > centre["bone"][right] + 30
    assert centre["spleen"][right] < centre["bone"][right] - 60
    assert centre["right_kidney"][right] > centre["bone"][right] > centre["left_kidney"][right]
    assert centre["vena_cava"][right] > centre["aorta"][right]
    assert centre["stomach"][front] > centre["liver"][front] > centre["bone"][front]
    assert centre["heart"][head] > centre["liver"][head] > centre["right_kidney"][head]
    liver = p.organs == ORGANS["liver"]
    assert 1000 < volume_ml(p, liver) < 2000
    assert ndimage.label(liver)[1] == 1
    # The default field of view holds the whole liver.
    assert not liver[:, :, [0, -1]].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_are_liver_and_as_many_lesions_as_asked_for(phantoms, seed):
    p = phantoms[seed]
    np.testing.assert_array_equal(p.labels > 0, p.organs == ORGANS["liver"])
    lesions, count = ndimage.label(p.labels == 2)
    assert count == seed
    for index in range(1, count + 1):
        # A sphere of 5 mm has 0.52 ml, one of 25 mm 65 ml; whole voxels allow for some more or
        # less.
        assert 0.3 < volume_ml(p, lesions == index) < 70
        assert (p.labels[ndimage.binary_dilation(lesions == index)] > 0).mean() > 0.95


def test_number_of_lesions_is_drawn_where_none_is_given():
    grid = {"shape": (48, 48, 24), "spacing": (5.0, 5.0, 8.0)}
    counts = {ndimage.label(make_phantom(seed, **grid).labels == 2)[1] for seed in range(12)}
    assert len(counts) > 2


@pytest.mark.parametrize("phase", ["native", "arterial", "portal"])
def test_organs_have_their_hounsfield_units(phase):
    p = make_phantom(1, num_lesions=0, phase=phase, noise_sd=0)
    expected = {
        "native": {
            "liver": (45, 65),
            "muscle": (45, 60),
            "aorta": (32, 52),
            "right_kidney": (20, 45),
            "spleen": (40, 60),
        },
        "arterial": {
            "liver": (60, 90),
            "muscle": (60, 80),
            "aorta": (250, 300),
            "right_kidney": (90, 180),
            "spleen": (80, 100),
        },
        "portal": {
            "liver": (90, 120),
            "muscle": (85, 100),
            "aorta": (130, 165),
            "right_kidney": (115, 170),
            "spleen": (95, 120),
        },
    }[phase]
    for always in (
        {"fat": (-115, -90)},
        {"lung": (-860, -780)},
        {"gallbladder": (0, 20)},
        {"background": (-1010, -980)},
    ):
        expected |= always
    for name, (low, high) in expected.items():
        inside = ndimage.binary_erosion(p.organs == ORGANS[name])
        assert low < np.median(p.image[inside]) < high, name
    assert np.percentile(p.image[p.organs == ORGANS["bone"]], 90) > 300


def test_phase_changes_the_image_and_not_the_patient(phantoms):
    native = make_phantom(2, num_lesions=2, phase="native")
    np.testing.assert_array_equal(native.organs, phantoms[2].organs)
    np.testing.assert_array_equal(native.labels, phantoms[2].labels)
    liver = native.labels == 1
    assert phantoms[2].image[liver].mean() - native.image[liver].mean() > 30


def test_noise_has_the_asked_standard_deviation(phantoms):
    clean = make_phantom(2, num_lesions=2, noise_sd=0)
    # Air is left out: scanners cut it off at -1024.
    noise = (phantoms[2].image - clean.image)[clean.image > -200]
    assert noise.std() == pytest.approx(15, rel=0.02)
    assert abs(noise.mean()) < 0.5


def test_edge_voxels_hold_their_share_of_both_tissues():
    """A coarse grid shows the means of the fine grid's voxels, as partial volume does."""
    fine = make_phantom(4, shape=(96, 96, 48), spacing=(1.0, 1.0, 1.5), noise_sd=0)
    coarse = make_phantom(4, shape=(32, 32, 16), spacing=(3.0, 3.0, 4.5), noise_sd=0)
    mean = fine.image.reshape(32, 3, 32, 3, 16, 3).mean((1, 3, 5))
    nearest = fine.image[1::3, 1::3, 1::3]
    liver_edge = (np.abs(nearest - mean) > 20) & ndimage.binary_dilation(coarse.labels > 0)
    assert liver_edge.sum() > 500
    error, error_of_nearest = (
        np.abs(coarse.image - mean)[liver_edge],
        np.abs(nearest - mean)[liver_edge],
    )
    assert error.mean() < 0.35 * error_of_nearest.mean()


def test_spacing_and_size_show_the_same_patient(phantoms):
    fine = make_phantom(2, shape=(200, 160, 100), spacing=(2.0, 2.4, 2.5), num_lesions=2)
    for name in ("liver", "spleen", "left_kidney", "stomach"):
        of_fine, of_default = (volume_ml(p, p.organs == ORGANS[name]) for p in (fine, phantoms[2]))
        assert of_fine == pytest.approx(of_default, rel=0.03), name
    liver_centres = [world_mm(p, p.labels > 0).mean(0) for p in (fine, phantoms[2])]
    np.testing.assert_allclose(*liver_centres, atol=0.7)


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 1), (20, 30, 40)])
def test_small_grids_are_centred_on_the_liver(shape):
    p = make_phantom(0, shape=shape, spacing=(2.5, 2.5, 3.0))
    assert p.image.shape == shape
    assert np.isfinite(p.image).all()
    assert (p.labels > 0).mean() > 0.3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phase", ["native", "portal"])
def test_thresholding_does_not_find_the_liver(seed, phase):
    p = make_phantom(seed, phase=phase)
    liver = p.labels > 0
    mean, deviation = p.image[liver].mean(), p.image[liver].std()
    found = [largest_component(np.abs(p.image - mean) < k * deviation) for k in (0.5, 1, 1.5, 2, 3)]
    assert max(dice(mask, liver) for mask in found) < 0.75


def test_mri_has_rician_noise_and_a_smooth_bias_field():
    noisy = make_phantom(1, modality="mr", num_lesions=0)
    clean = make_phantom(1, modality="mr", num_lesions=0, noise_sd=0)
    assert noisy.image.min() >= 0
    np.testing.assert_array_equal(noisy.organs, make_phantom(1, num_lesions=0).organs)
    # Far outside the body the signal is near 0 and the noise Rayleigh distributed, of mean sd *
    # sqrt(pi / 2).
    air = noisy.image[:8, :8][clean.image[:8, :8] < 10]
    assert air.mean() == pytest.approx(15 * np.sqrt(np.pi / 2), rel=0.1)
    # One tissue differs between regions by far more than the rounding, between neighbours hardly.
    fat = clean.image[clean.organs == ORGANS["fat"]]
    assert np.percentile(fat, 90) / np.percentile(fat, 40) > 1.1
    liver = ndimage.binary_erosion(clean.organs == ORGANS["liver"], iterations=2)
    steps = np.abs(np.diff(clean.image, axis=0))[liver[1:] & liver[:-1]]
    assert np.median(steps) <= 3


def test_smooth_field_reproduces_a_linear_ramp():
    """Coefficients on a plane give that plane (de Boor, A Practical Guide to Splines)."""
    nodes = np.add.outer(np.add.outer(np.arange(13.0), 10 * np.arange(13.0)), 100 * np.arange(13.0))
    axes = (np.linspace(-200, 100, 4), np.linspace(-50, 50, 5), np.array([0.0, 33.0]))
    x, y, z = (axis / 70 + 6 for axis in axes)
    expected = x[:, None, None] + 10 * y[:, None] + 100 * z
    np.testing.assert_allclose(smooth_field(nodes, axes), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed: found -1"),
        ({"shape": (10, 10)}, "shape: found (10, 10), expected three"),
        ({"shape": (10, 10, 0)}, "shape: found"),
        ({"spacing": (1.0, -1.0, 1.0)}, "spacing: found (1.0, -1.0, 1.0)"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "spacing: found"),
        ({"modality": "pet"}, "'pet', expected one of ct, mr"),
        ({"phase": "late"}, "'late', expected one of native, arterial, portal"),
        ({"num_lesions": 6}, "num_lesions: found 6, expected 0 to 5"),
        ({"num_lesions": -1}, "num_lesions: found -1"),
        ({"noise_sd": -2.0}, "noise_sd: found -2.0"),
    ],
)
def test_bad_arguments_get_one_message(arguments, message):
    with pytest.raises(InputError) as caught:
        make_phantom(**{"seed": 0, **arguments})
    assert message in str(caught.value)
