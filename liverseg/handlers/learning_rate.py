"""Log the learning rate to TensorBoard."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine


def write_learning_rate(engine: Engine, writer: Any) -> None:
    """Write the learning rate; an `epoch_event_writer` of MONAI's `TensorBoardStatsHandler`."""
    rate = engine.optimizer.param_groups[0]["lr"]  # type: ignore[attr-defined]
    writer.add_scalar("learning_rate", rate, engine.state.epoch)
