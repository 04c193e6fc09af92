"""Add clicks, an annotator's or simulated ones, and draw the channels that show them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import distance_transform_cdt, distance_transform_edt
from torch import Tensor

from liverseg.errors import InputError

CLICKS = "clicks"  # key of the metadata of an image


class AddClicksd(MapTransform):
    """Write an annotator's clicks into the image's metadata, in mm, which no turn or crop moves.

    They become `meta["clicks"]`, float64 of shape (N, 4): x, y, z in mm and the index of the class.
    Use it right after loading. MONAI's `AddGuidanceFromPointsDeepEditd` scales voxel indices by the
    shapes alone: after an `Orientationd`, as in MONAI Label's chain, it mirrors the clicks on every
    scan that is not stored in RAS order.

    Args:
        keys: images as `LoadVolumed` gives them, MetaTensors (1, H, W, D) in the file's own order.
        clicks: by class, positions [x, y, z] in voxels of the file, the middle of the first voxel
            being [0, 0, 0].
        classes: names of all classes in the order of the network's channels, the background
            included.
        scans: the items that this transform will see, of which clicks can mean only one.

    Raises:
        InputError: for clicks of an unknown class, that are no three numbers or lie outside the
            scan, and for clicks where there are several scans.
    """

    def __init__(
        self,
        keys: KeysCollection,
        clicks: Mapping[str, Sequence[Sequence[float]]],
        classes: Sequence[str],
        scans: Sequence[Any] = (),
    ) -> None:
        super().__init__(keys)
        self.names = list(classes)
        if not isinstance(clicks, Mapping):
            raise InputError(
                f"clicks: found {clicks!r}, expected positions by class: write them as "
                f"\"{{'{self.names[-1]}': [[x, y, "
                'z]]}".'
            )
        self.positions: list[list[float]] = []
        self.indices: list[int] = []
        for name, positions in clicks.items():
            if name not in self.names:
                raise InputError(
                    f"clicks: found the class {name!r}, expected one of "
                    f"{', '.join(self.names)}: rename or remove it."
                )
            for position in positions if isinstance(positions, Sequence) else [positions]:
                if not _is_position(position):
                    raise InputError(
                        f"clicks: found {position!r} for {name}, expected three numbers [x, y, "
                        "z] for each click: fix it."
                    )
                self.positions.append([float(value) for value in position])
                self.indices.append(self.names.index(name))
        if self.positions and len(scans) > 1:
            raise InputError(
                f"clicks: found {len(self.positions)} for {len(scans)} scans, expected one scan "
                "that they belong to: give this scan alone as dataset_dir."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`, with the clicks in the metadata of its images."""
        d = dict(data)
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            shape = image.shape[1:]
            for position, index in zip(self.positions, self.indices, strict=True):
                if not all(
                    -0.5 <= at < length - 0.5 for at, length in zip(position, shape, strict=True)
                ):
                    raise InputError(
                        f"{image.meta.get('filename_or_obj', key)}: found a click {position} for "
                        f"{self.names[index]}, expected voxels from [0, 0, 0] to "
                        f"{[length - 1 for length in shape]}: give it in the voxels of this scan."
                    )
            voxels = torch.tensor(self.positions, dtype=torch.float64).reshape(-1, 3)
            classes = torch.tensor(self.indices, dtype=torch.float64)
            image.meta[CLICKS] = torch.cat([to_mm(voxels, image.affine), classes[:, None]], 1)
        return d


class SimulateClickd(MapTransform):
    """Click once, mostly into the error of a prediction; for MONAI's `Interaction` in training.

    The class is drawn among those that were missed somewhere, then a voxel of it with odds of
    exp(depth) − 1, the depth being the distance to the nearest voxel that is not such an error: the
    middle of large errors. That is the rule of Diaz-Pinto et al. 2022 and of MONAI's
    `AddRandomGuidanceDeepEditd`, with one click at a time. MONAI's is no use in batches: what it
    leaves unclicked gets the clicks of the sample before, and lists of clicks of different lengths
    do not collate. Here the click is drawn straight into the image's channels.

    A share of the clicks is put anywhere in a class, whatever the prediction, as annotators do who
    click before they see a first mask, and as MONAI's `AddInitialSeedPointDeepEditd` does in every
    iteration.

    The draws are NumPy's global ones, as those of `Interaction`, which nothing but
    `set_determinism` seeds.

    Args:
        keys: image, (1 + num_classes, H, W, D), and label, (1, H, W, D). The image's last channels
            show the clicks.
        sigma: of a click, in voxels; see `draw_clicks`.
        anywhere: the share of clicks that are put anywhere in a class, 0 to 1.
    """

    def __init__(self, keys: KeysCollection, sigma: float, anywhere: float = 0.0) -> None:
        super().__init__(keys)
        self.image_key, self.label_key = self.keys
        self.sigma, self.anywhere = sigma, anywhere

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with one click more, if there is an error and chance has it.

        `Interaction` adds "pred", logits (num_classes, H, W, D), which are taken out, and
        "probability", how likely there is a click this time.
        """
        d = dict(data)
        logits = d.pop("pred")
        if np.random.random() >= d["probability"]:
            return d
        label, channels = d[self.label_key][0], d[self.image_key][-len(logits) :]
        if np.random.random() >= self.anywhere:
            found = find_error(label, logits.max(0).indices, len(logits), draw=True)
        else:
            index = int(np.random.choice(label.unique().tolist()))
            voxels = np.argwhere(_array(label) == index)
            found = index, voxels[np.random.randint(len(voxels))].tolist()
        if found:
            draw_clicks(channels, torch.tensor([found[1]]), [found[0]], self.sigma)
        return d


def find_error(
    label: Tensor, prediction: Tensor, num_classes: int, draw: bool = False
) -> tuple[int, tuple[int, int, int]] | None:
    """Return where an annotator would click, if anywhere: a wrong voxel's true class and place.

    Args:
        label: class indices (H, W, D).
        prediction: class indices of the same shape.
        num_classes: of the classes, background included.
        draw: as `SimulateClickd` draws it; else the deepest voxel of all errors, the first where
            several are.
    """
    truth, wrong = _array(label), _array(label) != _array(prediction)
    # MONAI's chessboard distance takes a tenth of the time, but calls many voxels the middle.
    distance = distance_transform_cdt if draw else distance_transform_edt
    depths = {}
    for index in range(num_classes):
        missed = wrong & (truth == index)
        if missed.any():
            # The border of the volume is an edge as well: nobody clicks there.
            depths[index] = distance(np.pad(missed, 1))[1:-1, 1:-1, 1:-1]
    if not depths:
        return None
    if draw:
        index = int(np.random.choice(list(depths)))
        odds = np.expm1(depths[index].ravel().astype(np.float64))
        at = np.random.choice(odds.size, p=odds / odds.sum())
    else:
        index = max(depths, key=lambda known: depths[known].max())
        at = depths[index].argmax()
    x, y, z = (int(position) for position in np.unravel_index(at, truth.shape))
    return index, (x, y, z)


def draw_clicks(channels: Tensor, voxels: Tensor, classes: Sequence[int], sigma: float) -> None:
    """Draw clicks into the channels of their classes, in place, as exp(−r² / 2 sigma²).

    A click is 1 at its centre and 0 from 3 sigma on. Where clicks overlap the larger value counts,
    so that each looks the same whatever the others are. MONAI's `AddGuidanceSignalDeepEditd` adds
    them up and divides by the sum's largest value, and a click that stands alone fades when others
    stand close together.

    Args:
        channels: (num_classes, H, W, D), float.
        voxels: (N, 3), in voxels of `channels`.
        classes: N indices of channels.
        sigma: in voxels of `channels`.
    """
    for voxel, index in zip(voxels.tolist(), classes, strict=True):
        box, profiles = [], []
        for at, length in zip(voxel, channels.shape[1:], strict=True):
            start = max(math.ceil(at - 3 * sigma), 0)
            stop = min(math.floor(at + 3 * sigma) + 1, length)
            distance = torch.arange(start, stop, device=channels.device) - at
            box.append(slice(start, stop))
            profiles.append(torch.exp(-(distance**2) / (2 * sigma**2)))
        drawn = channels[index][tuple(box)]
        drawn.copy_(torch.maximum(drawn, torch.einsum("i,j,k->ijk", profiles).to(drawn)))


def to_mm(voxels: Tensor, affine: Tensor) -> Tensor:
    """Return positions (N, 3) in voxels as positions in mm, float64."""
    affine = affine.to("cpu", torch.float64)
    return voxels.to("cpu", torch.float64) @ affine[:3, :3].T + affine[:3, 3]


def to_voxels(points_mm: Tensor, affine: Tensor) -> Tensor:
    """Return positions (N, 3) in mm as positions in voxels, float64; the reverse of `to_mm`."""
    return to_mm(points_mm, torch.linalg.inv(affine.to("cpu", torch.float64)))


def _is_position(value: Any) -> bool:
    try:
        return len(value) == 3 and all(math.isfinite(float(part)) for part in value)
    except (TypeError, ValueError):
        return False


def _array(volume: Tensor) -> np.ndarray:
    return volume.detach().cpu().as_subclass(Tensor).numpy()
