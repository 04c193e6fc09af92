"""Draw slices with outlines of masks, and with them what a training has learned."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from liverseg.files import atomic_write, check_writable

LABEL_RGB, PREDICTION_RGB = (34, 199, 255), (255, 140, 26)
PIXELS, CAPTION_PIXELS = 512, 28


class Overlays:
    """Draw label and prediction of the first validation scans at each new best validation metric.

    `overlays/case_1.png`, … in `output_dir` show the best so far; TensorBoard's files in
    `output_dir` keep each one. A picture shows the slice along the last axis in which the label is
    largest. It shows no name, which could identify a patient.

    Put it after `Checkpoints`, which keeps the best metric in the engine's state.

    Args:
        output_dir: the folder for the pictures.
        evaluator: the validation engine, with `{"image", "label", "pred"}` of shape (C, X, Y, Z) as
            its output.
        count: at most this many scans.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], evaluator: Engine, count: int = 3
    ) -> None:
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.count = count
        self.slices: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Act on the events of `engine`, the trainer, on rank 0 only."""
        if engine.state.rank == 0:  # type: ignore[attr-defined]
            self.evaluator.add_event_handler(Events.STARTED, self.slices.clear)
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Engine) -> None:
        """Draw the slices if the weights that the training starts from were validated."""
        if self.slices:
            self.epoch_completed(engine)

    def iteration_completed(self, evaluator: Engine) -> None:
        """Keep a slice of each of the first scans, so that only a new best is drawn."""
        cases: Any = evaluator.state.output
        for case in cases[: self.count - len(self.slices)]:
            self.slices.append(_largest_slice(case["image"], case["label"], case["pred"]))

    def epoch_completed(self, engine: Engine) -> None:
        """Draw the slices if this epoch is the best so far."""
        state: Any = engine.state
        if state.best_metric_epoch != state.epoch:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = check_writable(self.output_dir / "overlays")
        with SummaryWriter(self.output_dir) as writer:
            for number, shown in enumerate(self.slices, 1):
                picture = draw_overlay(**shown, caption=f"epoch {state.epoch}")
                with atomic_write(folder / f"case_{number}.png") as file:
                    file.write(encode_png(picture))
                writer.add_image(f"overlays/case_{number}", picture, state.epoch, dataformats="HWC")


def draw_overlay(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: tuple[float, float],
    caption: str = "",
) -> np.ndarray:
    """Draw a slice with outlines of its label, in blue, and of its prediction, in orange.

    Args:
        image: (X, Y), shown from its 1st to its 99.5th percentile.
        label: (X, Y), a class per pixel; 0 is the background.
        prediction: the same.
        spacing_mm: size of a pixel along X and Y.
        caption: a few words for the lower edge.

    Returns:
        RGB (rows, columns, 3), uint8, 512 pixels along the longer side and 28 more rows for the
        caption; oriented as by `draw_slice`.
    """
    size_mm = np.multiply(image.shape, spacing_mm)
    columns, rows = (max(1, round(PIXELS * mm / size_mm.max())) for mm in size_mm)
    low, high = np.percentile(image, (1, 99.5))
    outlines = [
        Outline(classes == value, colour, width)
        for classes, colour, width in ((label, LABEL_RGB, 2), (prediction, PREDICTION_RGB, 1))
        for value in np.unique(classes[classes > 0])
    ]
    # The space below for the caption; at least as wide as it needs.
    picture = np.zeros((rows + CAPTION_PIXELS, max(columns, 320), 3), np.uint8)
    picture[:rows, :columns] = draw_slice(image, (low, high), outlines, (columns, rows))
    words = (
        (6, "label", LABEL_RGB),
        (70, "prediction", PREDICTION_RGB),
        (180, caption, (255, 255, 255)),
    )
    for left, text, colour in words:
        baseline = (left, rows + CAPTION_PIXELS - 9)
        cv2.putText(picture, text, baseline, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return picture


class Outline(NamedTuple):
    """A mask (X, Y), bool, to draw: a line of `width` pixels, and the inside if `filled`."""

    mask: np.ndarray
    rgb: tuple[int, int, int]
    width: int
    filled: bool = False


def draw_slice(
    image: np.ndarray,
    window: tuple[float, float],
    outlines: Iterable[Outline],
    size: tuple[int, int],
) -> np.ndarray:
    """Draw a slice in grey with outlines of masks.

    Where X and Y lead to the patient's right and front (or head), the picture is as a radiologist
    holds it: patient's right on the left, front (or head) up.

    Args:
        image: (X, Y).
        window: the values that are black and white.
        outlines: the masks, drawn in this order.
        size: pixels (columns, rows).

    Returns:
        RGB (rows, columns, 3), uint8.
    """

    def resize(values: np.ndarray) -> np.ndarray:
        upright = np.ascontiguousarray(np.flip(values).T, np.float32)
        return cv2.resize(upright, size, interpolation=cv2.INTER_LINEAR)

    low, high = window
    grey = np.clip((resize(image) - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=2)
    for mask, rgb, width, filled in outlines:
        # Interpolated, a mask of few pixels gets a smooth outline.
        inside = resize(mask) >= 0.5
        if filled:
            picture[inside] = (0.75 * picture[inside] + 0.25 * np.array(rgb)).astype(np.uint8)
        contours, _ = cv2.findContours(
            inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, contours, -1, rgb, width, cv2.LINE_AA)
    return picture


def encode_png(picture: np.ndarray) -> bytes:
    """Encode a picture, RGB (rows, columns, 3), uint8, as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def _largest_slice(
    image: MetaTensor, label: torch.Tensor, prediction: torch.Tensor
) -> dict[str, Any]:
    """Return the slice along Z with most of the label, else of the prediction, else the middle."""
    areas = [(classes[0] > 0).sum((0, 1)) for classes in (label, prediction)]
    index = next((int(area.argmax()) for area in areas if area.any()), image.shape[-1] // 2)
    volumes = {"image": image, "label": label, "prediction": prediction}
    shown = {
        name: torch.as_tensor(volume)[0, ..., index].float().cpu().numpy()
        for name, volume in volumes.items()
    }
    return {**shown, "spacing_mm": tuple(float(mm) for mm in image.pixdim[:2])}
