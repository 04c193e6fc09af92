"""Base class of inferers that give label maps and, on request, probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from liverseg.inferers.utils import as_tensor, to_uint8


class VolumeInferer(Inferer):
    """Segment volumes to class indices on their own grid.

    Subclasses give `_slabs`, or `segment` itself.
    """

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the class indices of `segment` alone, as an evaluator takes them for `pred`."""
        return self.segment(inputs, network, *args, **kwargs)[0]

    def segment(
        self, inputs: Tensor, network: Any, *args: Any, probabilities: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Segment a batch.

        Args:
            inputs: as the class says, (B, C, H, W, D).
            network: as the class says.
            args: further arguments of the network.
            probabilities: return these too; they need memory for each class.
            kwargs: further keyword arguments of the network.

        Returns:
            Class indices, uint8, (B, 1, H, W, D), on the device of `inputs`; and the probabilities
            of all classes but the background, 255 for 1: uint8, (B, num_classes − 1, H, W, D), or
            None.

        Raises:
            InputError: for inputs of another shape, or without the affine that resampling needs.
        """
        labels = torch.zeros_like(inputs[:, :1], dtype=torch.uint8)
        found: Tensor | None = None
        with torch.no_grad():
            for index in range(inputs.shape[0]):
                label = as_tensor(labels)[index, 0]
                for positions, scores in self._slabs(inputs, index, network, *args, **kwargs):
                    classes = scores.max(1).indices  # argmax takes up to 50 times as long on a CPU
                    label[..., positions] = classes.permute(1, 2, 0).to(label)
                    if probabilities:
                        if found is None:
                            shape = (len(labels), scores.shape[1] - 1, *label.shape)
                            found = label.new_zeros(shape)
                        slab = to_uint8(self._normalise(scores)[:, 1:]).permute(1, 2, 3, 0)
                        found[index, ..., positions] = slab.to(found)
        return labels, found

    def _slabs(
        self, inputs: Tensor, index: int, network: Any, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield positions along D and scores (N, num_classes, H, W) of a few slices of a volume."""
        raise NotImplementedError

    def _normalise(self, scores: Tensor) -> Tensor:
        """Convert scores to probabilities."""
        return scores.softmax(1)
