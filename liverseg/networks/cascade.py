"""The networks of a cascade by name: one that localises each target, and one that tunes it in each plane."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from liverseg.networks.weights import load_weights_by_name


class CascadeNetworks(nn.ModuleDict):
    """`<target>_localise` and `<target>_<plane>` for each target and plane, which `CascadeInferer` runs.

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
        targets: Sequence[str] = ("liver", "lesion"),
        planes: Sequence[str] = ("axial", "coronal", "sagittal"),
    ) -> None:
        parts = {"localise": localise, **dict.fromkeys(planes, tune)}
        self.parts = [(target, part) for target in targets for part in parts]
        super().__init__({f"{target}_{part}": copy.deepcopy(parts[part]) for target, part in self.parts})

    def weights_in(self, folder: str | os.PathLike[str], number: int | None = None) -> dict[str, str]:
        """Where training leaves the weights of each network: `<folder>/<target>/<part>/model.pt`.

        Args:
            folder: the bundle's `ckpt_dir`.
            number: of tuning networks, those of this round in place of the best.
        """
        paths = {}
        for target, part in self.parts:
            rounds = () if number is None or part == "localise" else ("rounds", str(number))
            paths[f"{target}_{part}"] = str(Path(folder, target, part, *rounds, "model.pt"))
        return paths

    def load_weights(self, paths: Mapping[str, str | os.PathLike[str]]) -> None:
        """Load the weights of each network from its path, as `load_weights_by_name`."""
        load_weights_by_name(dict(self.items()), paths)
