"""Load 3-D volumes, and refuse what no later step could handle with a sentence that says why."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor, PydicomReader
from monai.transforms import LoadImaged

from liverseg.errors import InputError

AFFINE_TOLERANCE_MM = 1e-2

# Every LoadImage warns that this optional GPU decoder is not installed.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class LoadVolumed(LoadImaged):
    """Load volumes as float32 `MetaTensor` of shape (1, H, W, D), checked.

    A NIfTI file, or a folder with one DICOM series (extra `dicom`), through MONAI's readers.

    Args:
        keys: the items to load; every one must lie on the grid of the first that is there.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        InputError: for a missing or unreadable file, a volume that is not 3-D or holds no voxels, NaN or infinite
            voxels, and keys of one item on different grids.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
            super().__init__(
                keys, "NibabelReader", np.float32, ensure_channel_first=True, allow_missing_keys=allow_missing_keys
            )
        # LoadImage registers every reader it knows; their complaints would hide why nibabel could not read the file.
        self._loader.readers = self._loader.readers[-1:]

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """`data` with paths replaced by volumes."""
        loaded = dict(data)
        volumes = []
        for key, meta_key, postfix in self.key_iterator(loaded, self.meta_keys, self.meta_key_postfix):
            volumes.append(self._load(key, str(loaded[key]), reader))
            loaded[key] = volumes[-1]
            _check_volume(volumes[-1])
            check_same_grid(volumes[0], volumes[-1])
            if not self._loader.image_only:
                loaded[meta_key or f"{key}_{postfix}"] = volumes[-1].meta
        return loaded

    def _load(self, key: Hashable, path: str, reader: ImageReader | None) -> MetaTensor:
        if not Path(path).exists():
            raise InputError(f"{path}: there is no such file (key {key!r}): mend the path or remove the scan.")
        try:
            volume = self._loader(path, reader or (PydicomReader() if Path(path).is_dir() else None))
        # Readers and codecs raise whatever they like for a file that is no image, or only the beginning of one.
        except Exception as error:
            raise InputError(
                f"{path}: not readable as a volume ({_reason(error)}), expected a whole NIfTI file or a folder "
                "with one DICOM series (which needs liverseg[dicom]): replace it or remove the scan."
            ) from error
        return volume if self._loader.image_only else volume[0]


def _reason(error: BaseException) -> str:
    # LoadImage reports what its readers raised as text: tracebacks, each ending with the exception and its message.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [number for number, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return " ".join(lines[raised[-1] if raised else 0 :]).rstrip(".") or type(error).__name__


def _check_volume(volume: MetaTensor) -> None:
    file, shape = volume.meta["filename_or_obj"], tuple(volume.shape)
    if len(shape) != 4 or shape[0] != 1:
        found = f"{len(shape) - 1}-D" if shape[0] == 1 else f"4-D or {shape[0]} channels"
        raise InputError(
            f"{file}: the volume is {found} with shape {_shape_text(volume)}, expected one 3-D volume: "
            "save each channel or time point as a file of its own."
        )
    if volume.numel() == 0:
        raise InputError(f"{file}: the volume of shape {_shape_text(volume)} holds no voxel: replace the file.")
    # A sum is not finite exactly when a voxel is not (intensities are far from float32's range), and needs no copy.
    if not math.isfinite(float(volume.as_tensor().sum())):
        bad = int((~torch.isfinite(volume.as_tensor())).sum())
        raise InputError(f"{file}: {bad} voxels are NaN or infinite, expected finite intensities: replace them.")


def _shape_text(volume: MetaTensor) -> str:
    shape = tuple(volume.shape)
    return "×".join(str(n) for n in (shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])))


def check_same_grid(first: MetaTensor, other: MetaTensor) -> None:
    """Refuse two volumes (1, H, W, D) whose voxels are not those of each other, in whatever order of the axes.

    Raises:
        InputError: with both grids.
    """
    (shape, affine), (other_shape, other_affine) = _canonical_grid(first), _canonical_grid(other)
    if shape == other_shape and np.allclose(affine, other_affine, atol=AFFINE_TOLERANCE_MM, rtol=0):
        return
    grids = [f"shape {_shape_text(v)} and affine {np.round(v.affine.numpy()[:3], 3).tolist()}" for v in (other, first)]
    raise InputError(
        f"{other.meta['filename_or_obj']}: its grid ({grids[0]}) is not that of {first.meta['filename_or_obj']} "
        f"({grids[1]}), expected the same: resample one onto the other."
    )


def _canonical_grid(volume: MetaTensor) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine in RAS order: files that store the same voxels in another axis order are on the same grid."""
    shape, affine = tuple(volume.shape[1:]), volume.affine.numpy()
    orientation = nib.orientations.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    return tuple(shape[axis] for axis in order), affine @ nib.orientations.inv_ornt_aff(orientation, shape)
