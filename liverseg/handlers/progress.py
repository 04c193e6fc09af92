"""Show a progress bar with the time left."""

from __future__ import annotations

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import Trainer


class Progress:
    """Show a bar over a trainer's epochs with the last loss, or an evaluator's scans, on rank 0.

    Args:
        desc: what the bar says.
    """

    def __init__(self, desc: str) -> None:
        self.desc = desc

    def attach(self, engine: Engine) -> None:
        """Show the bar while `engine` runs."""
        if engine.state.rank != 0:  # type: ignore[attr-defined]
            return
        bar = ProgressBar(persist=True, desc=self.desc, bar_format=None)
        if isinstance(engine, Trainer):
            bar.attach(
                engine,
                output_transform=lambda output: {"loss": output["loss"].item()},
                event_name=Events.EPOCH_COMPLETED,
                closing_event_name=Events.COMPLETED,
            )
        else:
            bar.attach(engine)
