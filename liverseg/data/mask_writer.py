"""Write masks with the shape of the scan, each whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter


class MaskWriter(NibabelWriter):
    """MONAI's NIfTI writer, but a mask of one slice stays a volume, and no reader meets half a file.

    MONAI's own drops the last axis of a one-slice volume with the channel, or keeps the channel as a fourth axis.
    """

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = False, **kwargs: Any
    ) -> None:
        """Take a mask of shape (1, H, W, D), of which no axis but the channel is dropped."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False)
        self.data_obj = self.data_obj[..., 0]

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        """Write to a file beside `filename` and rename it."""
        path = Path(filename)
        partial = path.with_name(f".partial-{path.name}")
        super().write(partial, verbose, **kwargs)
        os.replace(partial, path)
