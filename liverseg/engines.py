"""Go through many scans; one that fails does not end the others."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from torch.nn.parallel import DistributedDataParallel

from liverseg.errors import InputError, message
from liverseg.inferers.utils import get_file_name

logger = logging.getLogger(__name__)

# Keys of what stands in the place of a scan that could not be loaded: its path, and why.
FAILED, REASON = "failed", "reason"
# The disk is full or read-only, and will be for the next scan.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# So many failures are named in one message.
LISTED = 10


class ScanDataset(Dataset):
    """Load items as MONAI's `Dataset`; a bad one becomes a failed scan for `ScanEvaluator`.

    A data set of one item raises its error, as there is no other to go on with.
    A batch is one item.

    Args:
        data: items with at least `image`, a path.
        transform: what loads them.
    """

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        # A damaged file may raise anything.
        except Exception as error:
            if len(self) == 1:
                raise
            # As text, because errors lose their cause on the way out of a worker process.
            return {FAILED: str(self.data[index]["image"]), REASON: _log_reason(error)}


class ScanEvaluator(SupervisedEvaluator):
    """Evaluate as MONAI's evaluator; a scan that fails does not end the others.

    A scan that cannot be loaded (by a `ScanDataset`), segmented, postprocessed, saved or measured
    is logged and left out: metrics and handlers of ITERATION_COMPLETED see none that failed before.
    When all are done, and all handlers with them, `run` raises an error that names those that
    failed.

    Some errors are not those of a scan, and end the run at once: a disk that is full, a GPU that
    has failed, and one that two scans in a row end with before any has been segmented. So does the
    error of a single scan.

    Args:
        args: of MONAI's.
        iteration_update: of MONAI's.
        kwargs: of MONAI's.

    Attributes:
        failures: `image` and `error` of each scan that failed; at the end of the epoch, those of
            all ranks.
    """

    def __init__(
        self,
        *args: Any,
        iteration_update: Callable[[SupervisedEvaluator, Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.update = iteration_update or super()._iteration
        if isinstance(self.network, DistributedDataParallel):
            # The wrapper sends buffers in each call, and ranks whose scans are others make another
            # number of calls.
            self.network = self.network.module
        self.single = len(self.data_loader.dataset) == 1  # type: ignore[union-attr,arg-type]
        self.failures: list[dict[str, str]] = []
        self.done = 0
        self.image = ""

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Run over all scans.

        Raises:
            InputError: at the end, for scans that failed; on the first rank alone, with which
                torchrun ends all.
        """
        self.failures, self.done = [], 0
        super().run(global_epoch)
        if self.failures and self.state.rank == 0:
            listed = "; ".join(map(_named, self.failures[:LISTED]))
            more = len(self.failures) - LISTED
            raise InputError(
                f"{len(self.failures)} of {len(self.failures) + self.done} scans failed, expected "
                "none; the others are done, and summary.json lists all: "
                f"{listed}{f'; and {more} more' if more > 0 else ''}."
            )

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> Any:
        if FAILED in batchdata:
            self._fail(batchdata[FAILED][0], batchdata[REASON][0])
            return None
        self.image = get_file_name(batchdata[CommonKeys.IMAGE], 0)
        with self._one_scan():
            return self.update(engine, batchdata)
        return None

    def _fire_event(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        # Ignite has no other way to leave an iteration out.
        if event_name == Events.ITERATION_COMPLETED:
            if self.state.output is not None:
                with self._one_scan():
                    super()._fire_event(event_name, *event_args, **event_kwargs)
                    self.done += 1
        # MONAI's metrics fail where there is nothing to aggregate.
        elif event_name != Events.EPOCH_COMPLETED or self._gather():
            super()._fire_event(event_name, *event_args, **event_kwargs)

    @contextmanager
    def _one_scan(self) -> Iterator[None]:
        """Record an error of the block as that of the scan, where it may be one."""
        try:
            yield
        except Exception as error:
            if self.single or is_of_machine(error):
                raise
            reason = _log_reason(error)
            if not self.done and self.failures and self.failures[-1]["error"] == reason:
                raise
            self._fail(self.image, reason)

    def _fail(self, image: str, reason: str) -> None:
        self.failures.append({"image": image, "error": reason})
        logger.warning("Failed: %s", _named(self.failures[-1]))

    def _gather(self) -> bool:
        """Gather the failures of all ranks; return whether each has a scan that did not fail."""
        parts: list[Any] = idist.all_gather((self.failures, self.done))  # type: ignore[assignment]
        # By image, as a padded sampler gives a scan twice.
        self.failures = list(
            {failure["image"]: failure for failures, _ in parts for failure in failures}.values()
        )
        self.done = sum(done for _, done in parts)
        return all(done for _, done in parts)


def _named(failure: Mapping[str, str]) -> str:
    error = failure["error"].rstrip(".")
    return error if failure["image"] in error else f"{failure['image']}: {error}"


def reason_of(error: BaseException) -> str:
    """Return the message of an expected error, or the error behind an unexpected one."""
    expected = message(error)
    if expected is not None:
        return expected
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _log_reason(error: Exception) -> str:
    if message(error) is None:
        logger.error("Unexpected error", exc_info=error)
    return reason_of(error)


def is_of_machine(error: BaseException | None) -> bool:
    """Return whether the next scan would fail as well."""
    while error is not None:
        if (
            isinstance(error, torch.AcceleratorError)
            or getattr(error, "errno", None) in DISK_ERRORS
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
