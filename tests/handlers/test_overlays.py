from __future__ import annotations

import cv2
import numpy as np
from helpers.tiny_training import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from liverseg.handlers.overlays import LABEL_RGB, PREDICTION_RGB, draw_overlay

SHAPE = (20, 10, 4)


def box(*sides: slice) -> np.ndarray:
    volume = np.zeros(SHAPE[: len(sides)], np.uint8)
    volume[sides] = 1
    return volume


def where(picture: np.ndarray, colour) -> tuple[float, ...]:
    """First and last row and column of a colour, as shares of the picture without its caption."""
    distance = np.abs(picture[:-28].astype(int) - colour).max(axis=2)
    rows, columns = np.nonzero(distance < 40)
    height, width = distance.shape
    return (
        rows.min() / height,
        (rows.max() + 1) / height,
        columns.min() / width,
        (columns.max() + 1) / width,
    )


def test_outlines_are_where_the_masks_are_with_the_patients_right_on_the_left():
    label, prediction = box(slice(12, 18), slice(6, 9)), box(slice(2, 6), slice(1, 4))
    picture = draw_overlay(np.zeros(SHAPE[:2]), label, prediction, (1.0, 4.0))
    # 20 mm by 40 mm: columns go from right to left, rows from front to back.
    assert picture.shape == (512 + 28, 320, 3)
    shown = picture[:, :256]
    assert np.allclose(where(shown, LABEL_RGB), (0.1, 0.4, 2 / 20, 8 / 20), atol=0.03)
    assert np.allclose(where(shown, PREDICTION_RGB), (0.6, 0.9, 14 / 20, 18 / 20), atol=0.03)


def test_every_class_has_an_outline():
    label = np.zeros((30, 30), np.uint8)
    label[3:27, 3:27], label[12:18, 12:18] = 1, 2
    nothing = np.zeros_like(label)
    both, one = (
        draw_overlay(nothing, mask, nothing, (1, 1))
        for mask in (label, (label > 0).astype(np.uint8))
    )
    middle = (slice(150, 362), slice(150, 362))
    assert both[middle].any()
    assert not one[middle].any()
    assert not draw_overlay(nothing, nothing, nothing, (1, 1))[:-28].any()  # neither scan nor masks


def test_the_best_epoch_is_drawn_and_tensorboard_has_every_new_best(tmp_path):
    cases = [box(slice(4, 10), slice(2, 8), slice(number, 1 + number)) for number in range(4)]
    cases[2][:] = 0  # nothing to see, and no error
    train(tmp_path, [0.3, 0.2, 0.5, 0.4], cases)
    pictures = sorted((tmp_path / "overlays").iterdir())
    assert [path.name for path in pictures] == ["case_1.png", "case_2.png", "case_3.png"]
    for path in pictures[:2]:
        shown = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        # Wider than high; the best is epoch 3, and to x belongs the other direction of columns.
        assert np.allclose(where(shown, LABEL_RGB)[2:], (0.5, 0.8), atol=0.03)
        assert np.allclose(where(shown, PREDICTION_RGB)[2:], (0.35, 0.65), atol=0.03)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {
        tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]
    } == {f"overlays/case_{number}": [1, 3] for number in (1, 2, 3)}


def test_weights_to_start_from_are_drawn_as_epoch_0(tmp_path):
    train(tmp_path, [0.3, 0.2], [box(slice(4, 10), slice(2, 8), slice(0, 1))], start=0.4)
    shown = cv2.cvtColor(cv2.imread(str(tmp_path / "overlays" / "case_1.png")), cv2.COLOR_BGR2RGB)
    assert np.allclose(where(shown, PREDICTION_RGB)[2:], (0.5, 0.8), atol=0.03)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Images("overlays/case_1")] == [0]
