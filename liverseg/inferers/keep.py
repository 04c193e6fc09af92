"""Keep the probabilities of an evaluator's inferer, beside the label map that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer
from monai.transforms import Invertd
from torch import Tensor

from liverseg.errors import InputError
from liverseg.inferers.base import VolumeInferer


class KeepingInferer(Inferer):
    """Segment with another inferer, and hand the probabilities of each batch on.

    Args:
        inferer: gives them.
        keep: takes them as `VolumeInferer.segment` returns them: uint8, 255 for 1,
            (B, num_classes − 1, H, W, D), without the background's.

    Raises:
        InputError: for an inferer that gives none.
    """

    def __init__(self, inferer: Any, keep: Callable[[Tensor], Any]) -> None:
        if not isinstance(inferer, VolumeInferer):
            raise InputError(
                f"inferer: found {type(inferer).__name__}, expected one of liverseg.inferers, "
                "which give probabilities: do without these, or take another bundle."
            )
        self.inferer, self.keep = inferer, keep

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the class indices."""
        labels, found = self.inferer.segment(inputs, network, *args, probabilities=True, **kwargs)
        assert found is not None
        self.keep(found)
        return labels


def on_scan_grid(evaluator: Any, probabilities: Tensor, image_key: str = "image") -> np.ndarray:
    """Return probabilities of an evaluator's scan on the grid of its file, as its mask.

    Args:
        evaluator: a MONAI evaluator in the batch of the one scan, whose data set has the transform
            that loaded it.
        probabilities: (C, H, W, D), of that scan as the network sees it.
        image_key: of the scan in the batch.

    Returns:
        Shape (C, H, W, D), in the file's order of the axes.
    """
    image = decollate_batch(evaluator.state.batch[image_key])[0]
    transform = evaluator.data_loader.dataset.transform
    invert = Invertd("kept", transform, image_key, nearest_interp=True)
    found: MetaTensor = invert({image_key: image, "kept": MetaTensor(probabilities.cpu())})["kept"]
    return found.numpy()
