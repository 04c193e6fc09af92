from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.full_disk import full_disk

from liverseg.errors import InputError
from liverseg.io.volumes import read_volume
from liverseg.outputs.preview import preview_png
from liverseg.outputs.segmentation import Segmentation

COLOURS = {1: "#ff0000", 2: "#00ff00", 3: "#0000ff"}
NAMES = {1: "liver", 2: "lesion", 3: "spleen"}


@pytest.fixture
def draw(tmp_path):
    """Write a preview and read it by OpenCV, RGB."""

    def read(mask: np.ndarray, affine: np.ndarray, image: np.ndarray, **more) -> np.ndarray:
        path = tmp_path / "é.png"
        segmentation = Segmentation("scan", mask, affine, more.get("names", NAMES))
        preview_png(path, segmentation, image, more.get("colours", COLOURS))
        data = np.frombuffer(path.read_bytes(), np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(int)

    return read


def phantom() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).uniform(-300, 230, (60, 50, 20)).astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    mask[32:56, 10:40, 5:15] = 1
    mask[40:48, 20:28, 5:15] = 2
    mask[5:15, 10:20, 5:15] = 3
    return image, mask


def columns_of(picture: np.ndarray, channel: int) -> np.ndarray:
    others = picture.sum(-1) - picture[..., channel]
    return np.nonzero(picture[..., channel] > others + 60)[1]


def test_planes_and_surface_show_each_class_at_its_side(draw):
    image, mask = phantom()
    picture = draw(mask, np.diag([2.0, 2, 5, 1]), image)
    half = picture.shape[1] // 2
    # The liver is on the patient's right, the picture's left, in slices and on the surface.
    for part in (picture[:400, :half], picture[700:1000, half:]):
        middle = part.shape[1] / 2
        assert columns_of(part, 0).mean() < middle < columns_of(part, 2).mean()
    # The lesion, also through the liver.
    assert len(columns_of(picture[:400, :half], 1))
    surface = picture[700:1000, half:]
    assert (surface[..., 1] > surface[..., 2] + 40).any()


def test_the_order_of_axes_in_the_file_makes_no_difference(draw):
    image, mask = phantom()
    first = draw(mask, np.diag([2.0, 2, 5, 1]), image)
    affine = np.array([[0, 0, -2, 118], [-2, 0, 0, 98], [0, 5, 0, 0], [0, 0, 0, 1.0]])
    again = draw(
        *(np.flip(mask, (0, 1)).transpose(1, 2, 0), affine),
        np.flip(image, (0, 1)).transpose(1, 2, 0),
    )
    np.testing.assert_array_equal(first, again)


def test_an_empty_mask_has_a_picture_that_says_so(draw):
    image, mask = phantom()
    picture = draw(0 * mask, np.diag([2.0, 2, 5, 1]), image)
    assert (np.ptp(picture, axis=-1) == 0).all()
    assert picture.any()


def test_a_full_disk_is_told(draw, tmp_path):
    image, mask = phantom()
    with full_disk(100), pytest.raises(InputError, match=r"é\.png: could not be saved"):
        draw(mask, np.eye(4), image)
    assert not list(tmp_path.iterdir())


@pytest.mark.real_data
def test_a_real_scan_with_many_classes_has_a_preview(draw, samples):
    scan, mask = (read_volume(str(samples / f"ts_ct{end}.nii.gz")) for end in ("", "_organs"))
    values = [int(value) for value in np.unique(mask.array) if value]
    names = {value: f"organ {value}" for value in values}
    colours = {value: f"#{(value * 40503) % 2**24:06x}" for value in values}
    picture = draw(
        mask.array.astype(np.uint8), scan.affine, scan.array, names=names, colours=colours
    )
    assert len(values) > 50
    assert picture.std() > 30
