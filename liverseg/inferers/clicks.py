"""Run 3-D networks that see clicks beside the image, and measure what a few clicks change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys

from liverseg.errors import InputError
from liverseg.inferers.utils import as_tensor, get_affine
from liverseg.inferers.volume_windows import VolumeWindowInferer
from liverseg.transforms.clicks import CLICKS, draw_clicks, find_error, to_mm, to_voxels
from liverseg.transforms.spacing import spaced_size


class ClickWindowInferer(VolumeWindowInferer):
    """Run a network on windows whose input is the image and one channel of clicks for each class.

    The clicks are those of `meta["clicks"]`, as `AddClicksd` writes them. They are drawn on the
    network's grid, so no channel of them exists on the scan's own; without clicks the channels are
    0 and the result is the automatic one.

    Args:
        num_classes: channels of clicks, the background's first.
        sigma: of a click, in voxels of the network's grid; see `draw_clicks`.
        kwargs: of `VolumeWindowInferer`.
    """

    def __init__(self, num_classes: int, sigma: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.sigma = sigma

    def _channels(self, volume: torch.Tensor, inputs: torch.Tensor, index: int) -> torch.Tensor:
        channels = torch.zeros(
            1 + self.num_classes, *volume.shape, dtype=torch.float32, device=volume.device
        )
        channels[0] = volume
        clicks = inputs.meta.get(CLICKS) if isinstance(inputs, MetaTensor) else None
        if clicks is not None:
            voxels = to_voxels(clicks[index][:, :3], get_affine(inputs, index))
            scale = torch.tensor(volume.shape) / torch.tensor(inputs.shape[2:])
            classes = [int(value) for value in clicks[index][:, 3]]
            draw_clicks(channels[1:], (voxels + 0.5) * scale - 0.5, classes, self.sigma)
        return channels


class EvaluateWithClicks:
    """Segment a scan, then click into the error and segment again: an `iteration_update`.

    Each click is in the middle of the deepest error that is left, as `find_error` finds it on the
    network's grid. The output has the last result as `pred` and the one without clicks as
    `pred_automatic`. MONAI's `Interaction` keeps no result but the last, and hands clicks to the
    inferer as channels of the whole scan only.

    Args:
        num_clicks: at most this many; fewer where nothing is wrong any more.
        num_classes: of the labels, background included.
        spacing: the network's, in mm.
    """

    def __init__(self, num_clicks: int, num_classes: int, spacing: Sequence[float]) -> None:
        self.num_clicks = num_clicks
        self.num_classes = num_classes
        self.spacing = tuple(spacing)

    def __call__(self, engine: SupervisedEvaluator, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Return image, label and both predictions, each (1, 1, H, W, D).

        Raises:
            InputError: for a batch of several scans.
        """
        inputs, label = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        if len(inputs) != 1:
            raise InputError(
                f"batch_size: found {len(inputs)} scans in a validation "
                "batch, expected 1: set it to 1."
            )
        output: dict[str, Any] = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: label}
        engine.state.output = output
        with engine.mode(engine.network):
            found = output["pred_automatic"] = engine.inferer(inputs, engine.network)
            for _ in range(self.num_clicks):
                click = self._click(label, found, get_affine(inputs, 0))
                if click is None:
                    break
                before = inputs.meta.get(CLICKS, click[:, :0])
                inputs.meta[CLICKS] = torch.cat([before, click], 1)
                found = engine.inferer(inputs, engine.network)
        output[CommonKeys.PRED] = found
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _click(
        self, label: torch.Tensor, found: torch.Tensor, affine: torch.Tensor
    ) -> torch.Tensor | None:
        shape = label.shape[2:]
        size = spaced_size(shape, affine, self.spacing)
        truth, guess = (
            F.interpolate(as_tensor(volume), size, mode="nearest-exact")[0, 0]
            for volume in (label, found)
        )
        error = find_error(truth, guess, self.num_classes)
        if error is None:
            return None
        scale = torch.tensor(shape) / torch.tensor(size)
        voxel = (torch.tensor([error[1]]) + 0.5) * scale - 0.5
        return torch.cat([to_mm(voxel, affine), torch.tensor([[error[0]]])], 1)[None]


def both_predictions(cases: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Return each case's predictions without and with clicks, and its label for each of the two.

    For the `output_transform` of a metric that is the mean over both.
    """
    predictions = [case[key] for case in cases for key in ("pred_automatic", CommonKeys.PRED)]
    return predictions, [case[CommonKeys.LABEL] for case in cases for _ in range(2)]
