"""Let several bundles vote on a scan by the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from liverseg.errors import InputError
from liverseg.inferers import KeepingInferer, VolumeInferer
from liverseg.inferers.utils import as_tensor, get_affine
from liverseg.io.masks import class_names
from liverseg.workbench.segment.bundles import metadata_of


def check_ensemble(bundles: Sequence[Path]) -> None:
    """Check that bundles can vote together.

    Raises:
        InputError: for bundles whose masks hold other classes.
    """
    first, *others = bundles
    expected = class_names(metadata_of(first))
    for other in others:
        found = class_names(metadata_of(other))
        if found != expected:
            raise InputError(
                f"--ensemble: found {_listed(found)} in {other.name}, expected the classes of "
                f"{first.name}, {_listed(expected)}: take bundles of the same classes."
            )


def check_targets(targets: Mapping[Path, Sequence[str]]) -> None:
    """Check that the bundles of an ensemble have looked for the same.

    Args:
        targets: the names of the classes that each bundle has looked for.

    Raises:
        InputError: for a bundle that has not looked for what another has.
    """
    (first, expected), *others = targets.items()
    for other, found in others:
        if found != expected:
            raise InputError(
                f"--ensemble: {first.name} looks for {', '.join(expected)} and {other.name} for "
                f"{', '.join(found)}, expected the same: name the classes with --roi."
            )


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in names.items() if value)


def keep_vote(evaluator: Any, votes: dict[Path, MetaTensor], bundle: Path) -> None:
    """Have an evaluator of one scan keep what its bundle votes, on the grid of the network."""

    def keep(found: Tensor) -> None:
        affine = get_affine(evaluator.state.batch["image"], 0)
        votes[bundle] = MetaTensor(found[0].cpu(), affine=affine)

    evaluator.inferer = KeepingInferer(evaluator.inferer, keep)


class VotingInferer(VolumeInferer):
    """Segment one scan by the mean of the probabilities of several bundles (soft voting).

    A voxel is of the class, the background among them, whose mean is the largest, and of several
    the first.

    Args:
        inferer: of one bundle.
        votes: of the others, (num_classes − 1, H, W, D), uint8, 255 for 1, with their affine.
    """

    def __init__(self, inferer: VolumeInferer, votes: Sequence[MetaTensor]) -> None:
        self.inferer, self.votes = inferer, list(votes)

    def segment(
        self, inputs: Tensor, network: Any, *args: Any, probabilities: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the classes and the mean probabilities; see `VolumeInferer.segment`.

        Raises:
            InputError: for votes on another grid.
        """
        labels, found = self.inferer.segment(inputs, network, *args, probabilities=True, **kwargs)
        assert found is not None
        affine = get_affine(inputs, 0)
        for vote in self.votes:
            if vote.shape != found.shape[1:] or not torch.allclose(vote.affine, affine.cpu()):
                raise InputError(
                    f"--ensemble: found probabilities of shape {tuple(vote.shape)} beside "
                    f"{tuple(found.shape[1:])}, or turned otherwise, expected one grid: take "
                    "bundles that load scans alike."
                )
        mean, label = as_tensor(found)[0], as_tensor(labels)[0, 0]
        count = len(self.votes) + 1
        # Slice by slice, for they need four bytes of each class.
        for k in range(mean.shape[-1]):
            total = mean[..., k].to(torch.int32)
            for vote in self.votes:
                total = total + as_tensor(vote)[..., k].to(total)
            background = 255 * count - total.sum(0, keepdim=True)
            label[..., k] = torch.cat([background, total]).argmax(0).to(label)
            mean[..., k] = (total / count).round().to(mean)
        return labels, found if probabilities else None
