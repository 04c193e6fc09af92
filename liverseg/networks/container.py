"""Join several networks to one, with weights from one file or from one for each."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import nn

from liverseg.errors import InputError
from liverseg.networks.weights import load_weights


class NetworkContainer(nn.Module):
    """A network made of several that are trained one by one."""

    def parts(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        return dict(self.named_children())

    def load_weights(
        self, paths: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
    ) -> None:
        """Load the weights of each network.

        Args:
            paths: the file that holds them all, or one for each network, by name, in any order.

        Raises:
            InputError: for a network without path or a path without network, and as
                `liverseg.networks.load_weights`.
        """
        if not isinstance(paths, Mapping):
            load_weights(self, paths)
            return
        parts = self.parts()
        if set(paths) != set(parts):
            found = ", ".join(paths) or "no network"
            raise InputError(
                f"found weights for {found}, expected {', '.join(parts)}: give one path for each "
                "network."
            )
        for name, network in parts.items():
            load_weights(network, paths[name])
