"""Hold the networks of a cascade: one that localises each target, and one for each plane."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from liverseg.networks.container import NetworkContainer
from liverseg.networks.liver_lesion import lesions_in_liver
from liverseg.networks.weights import load_strictly, read_state_dict

# The axes of a volume (x, y, z) in the order (rows, columns, slices) of each plane; as Orientation
# does it in training with RAS, RSA and ASR.
PLANE_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
TARGETS = ("liver", "lesion")


class CascadeNetworks(NetworkContainer, nn.ModuleDict):
    """Hold `<target>_localise` and `<target>_<plane>` for each target, for `CascadeInferer`.

    As one network they map a region and the priors in it to a segmentation, as export and checks of
    a network need it: each tuning network sees all slices of its plane, and the mean of the planes'
    probabilities decides. Where the region is, and what the priors are, `CascadeInferer` finds out
    with the localisation networks.

    Args:
        localise: the localisation network, copied for each target.
        tune: the tuning network, copied for each target and plane.
        targets: "liver", or "liver" and "lesion".
        planes: any of "axial", "coronal" and "sagittal".
    """

    def __init__(
        self,
        localise: nn.Module,
        tune: nn.Module,
        targets: Sequence[str] = TARGETS,
        planes: Sequence[str] = tuple(PLANE_AXES),
    ) -> None:
        parts = {"localise": localise, **dict.fromkeys(planes, tune)}
        super().__init__(
            {f"{target}_{part}": copy.deepcopy(parts[part]) for target in targets for part in parts}
        )
        self.number_of_planes = len(planes)
        self.channels = {
            f"{target}_{plane}": targets.index(target) for target in targets for plane in planes
        }
        self.axes = {name: list(PLANE_AXES[name.split("_")[1]]) for name in self.channels}

    def forward(self, x: Tensor) -> Tensor:
        """Map regions to logits of background and targets, a lesion being inside the liver only.

        Args:
            x: (B, 1 + number of targets, H, W, D) in RAS orientation: the image, and the prior of
                each target from 0 to 1, on the grid of the tuning networks.

        Returns:
            (B, 1 + number of targets, H, W, D). The largest is that of a target where the mean of
            its probabilities is above one half.
        """
        total = torch.zeros_like(x[:, 1:])
        for name, network in self.items():
            if name in self.axes:
                channel = self.channels[name]
                rows, columns, slices = self.axes[name]
                order = [0, 2 + slices, 1, 2 + rows, 2 + columns]
                seen = torch.stack([x[:, 0], x[:, 1 + channel]], dim=1).permute(order)
                votes = total[:, channel : channel + 1].permute(order)
                votes += network(seen.flatten(0, 1)).sigmoid().reshape(votes.shape)
        margins = (total / self.number_of_planes).logit(1e-6)
        if margins.shape[1] == 1:
            return torch.cat([-margins, margins], dim=1)
        return lesions_in_liver(margins[:, :1], margins[:, 1:])

    def load_weights(
        self, paths: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
    ) -> None:
        """Load the weights of each network.

        Args:
            paths: the file that holds them all, and may hold other targets and planes besides; or
                one for each network.

        Raises:
            InputError: as of `NetworkContainer`.
        """
        if isinstance(paths, Mapping):
            super().load_weights(paths)
            return
        others = {
            f"{target}_{part}" for target in TARGETS for part in ("localise", *PLANE_AXES)
        } - set(self)
        state = {
            key: value
            for key, value in read_state_dict(Path(paths)).items()
            if key.split(".")[0] not in others
        }
        load_strictly(
            self,
            state,
            str(paths),
            "give weights made with these networks and this config, or leave out what they lack "
            "with planes and segmented_targets",
        )


def cascade_weights(
    folder: str | os.PathLike[str],
    targets: Sequence[str] = TARGETS,
    planes: Sequence[str] = tuple(PLANE_AXES),
    number: int | None = None,
) -> str | dict[str, str]:
    """Return where the training of a cascade writes the weights of `CascadeNetworks`.

    It is `<folder>/model.pt`, written once all networks of the bundle are trained. Before that, and
    for a round, each network has a file, `<folder>/<target>/<part>/model.pt`.

    Args:
        folder: the bundle's `ckpt_dir`.
        targets: as of `CascadeNetworks`.
        planes: as of `CascadeNetworks`.
        number: of tuning networks, those of this round in place of the best.
    """
    merged = Path(folder, "model.pt")
    if number is None and merged.is_file():
        return str(merged)
    rounds = () if number is None else ("rounds", str(number))
    paths = {}
    for target in targets:
        paths[f"{target}_localise"] = str(Path(folder, target, "localise", "model.pt"))
        paths |= {
            f"{target}_{plane}": str(Path(folder, target, plane, *rounds, "model.pt"))
            for plane in planes
        }
    return paths
