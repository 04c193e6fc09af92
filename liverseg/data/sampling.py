"""Draw batches of different patients, and epochs of a fixed number of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from liverseg.data.datalist_schema import patient_of


class PatientSampler(DistributedSampler):
    """Draw scans so that each batch is of different patients, `num_batches` times an epoch.

    Each patient is as likely as another, and so is each scan of a patient. Patients repeat in a
    batch only where there are fewer of them than the batch has places. In a group of processes each
    draws its own share of a common batch, in which the patients differ as well; MONAI's trainer
    tells the sampler which epoch it is, so that a training that is resumed goes on with other
    draws.

    Args:
        data: items of a datalist.
        batch_size: scans of a batch in each process, as the `DataLoader` takes it.
        num_batches: batches of an epoch.
        seed: the same seed and epoch give the same draws.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], batch_size: int, num_batches: int, seed: int = 0
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if distributed else (1, 0)
        super().__init__(data, num_replicas=ranks, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.num_batches = num_batches
        scans: dict[str, list[int]] = {}
        for index, item in enumerate(data):
            scans.setdefault(patient_of(item), []).append(index)
        self.scans = list(scans.values())

    def __iter__(self) -> Iterator[int]:
        """Yield `len(self)` indices into `data`."""
        generator = np.random.default_rng([self.seed, self.epoch])
        places = self.batch_size * self.num_replicas
        for _ in range(self.num_batches):
            patients = generator.choice(len(self.scans), places, replace=len(self.scans) < places)
            drawn = [int(generator.choice(self.scans[patient])) for patient in patients]
            yield from drawn[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def __len__(self) -> int:
        return self.batch_size * self.num_batches


def class_ratios(num_classes: int, foreground_ratio: float) -> list[float]:
    """Return the share of crops to centre on each class; all but the background share the ratio.

    For the `ratios` of MONAI's `RandCropByLabelClassesd`.
    """
    share = foreground_ratio / (num_classes - 1)
    return [1 - foreground_ratio] + [share] * (num_classes - 1)
